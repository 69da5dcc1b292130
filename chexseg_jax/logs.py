"""The log of a training: one JSON object a line, for every step and every evaluation."""

import json
from pathlib import Path
from typing import Any

import jax


class Log:
    """Rows of `metrics.jsonl`; going on from a step drops what was logged after it."""

    def __init__(self, path: Path, start: int, name: str) -> None:
        """Opens the log of a training that goes on after `start` steps."""
        self._path, self._name = path, name
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._loss = 0.0
        self._lines: list[str] = []
        if jax.process_index() == 0:
            rows = [row for row in read_log(path) if row["step"] <= start]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(self, step: int, logs: dict[str, Any]) -> float:
        """Notes a step and returns the loss of the one before: looking at it waits for the device."""
        self._settle()
        self._pending = (step, logs)
        return self._loss

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes an evaluation's row."""
        self._lines.append(json.dumps({"step": step, **metrics}))
        self.flush()

    def flush(self) -> None:
        """Writes what is noted."""
        self._settle()
        if self._lines and jax.process_index() == 0:
            with self._path.open("a") as file:
                file.write("".join(line + "\n" for line in self._lines))
        self._lines = []

    def _settle(self) -> None:
        if self._pending is None:
            return
        step, logs = self._pending
        values = {name: float(value) for name, value in jax.device_get(logs).items()}
        self._loss, self._pending = values["loss"], None
        self._lines.append(json.dumps({"step": step, **values}))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a log; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
