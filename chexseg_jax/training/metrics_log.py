"""The log of a training: one JSON object a line, for every step and every evaluation.

Inside `sending_to`, the same numbers go to sinks: TensorBoard, Weights & Biases. Their packages are
imported when a sink is opened, never before.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8

from chexseg_jax.runtime.atomic_write import atomic_write, explain_write_errors

Images = Mapping[str, UInt8[np.ndarray, "h w 3"]]

FLUSH_SECONDS: Final = 60.0
"""Seconds after which TensorBoard sees new numbers."""


@runtime_checkable
class Sink(Protocol):
    """A receiver of numbers and images beside the log."""

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers."""

    def add_images(self, step: int, images: Images) -> None:
        """Send images by name."""

    def close(self) -> None:
        """Send what is buffered."""


Opener = Callable[[Path, int], Sink]
"""Opens a sink for a stage's folder and the number of steps that are done."""


class TensorBoard:
    """Event files in `<folder>/tensorboard`; TensorBoard discards earlier events after `start`.

    Written synchronously with tensorboardX's `EventsWriter`. Its `SummaryWriter` writes in a thread that
    a full disk kills; adding an event and closing then wait for ever.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """Open a new event file."""
        from tensorboardX import event_file_writer, proto, summary

        self._folder, self._summary = folder / "tensorboard", summary
        self._event = proto.event_pb2.Event
        session_log = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # tensorboardX names files by the second and would overwrite one of the same second.
            self._writer = event_file_writer.EventsWriter(
                str(self._folder / "events"), filename_suffix=f".{time.time_ns()}"
            )
        self._flushed = 0.0  # the first numbers are flushed at once
        self._write(start + 1, session_log=session_log)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step's numbers."""
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def add_images(self, step: int, images: Images) -> None:
        """Write images by name."""
        for name, image in images.items():
            self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close the event file."""
        with explain_write_errors(self._folder):
            self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        with explain_write_errors(self._folder):
            self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()


class WeightsAndBiases:
    """A run of a project, named after the stage's folder; the service drops steps it already has."""

    def __init__(self, project: str, folder: Path, start: int) -> None:
        """Open the run, or resume it."""
        import wandb

        self._image, name = wandb.Image, folder.name
        self._run = wandb.init(
            project=project, id=name, name=name, dir=str(folder), resume="allow" if start else None
        )

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers."""
        self._run.log(dict(values), step=step)

    def add_images(self, step: int, images: Images) -> None:
        """Send images by name."""
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return find_spec(package) is not None


def sinks(project: str | None) -> list[Opener]:
    """Return TensorBoard if it is installed, and Weights & Biases if a project is given."""
    tensorboard: list[Opener] = [TensorBoard] if installed("tensorboardX") else []
    return [*tensorboard, *([partial(WeightsAndBiases, project)] if project else [])]


def _no_sinks(folder: Path, start: int) -> list[Sink]:
    return []


_open_sinks: ContextVar[Callable[[Path, int], list[Sink]]] = ContextVar("sinks", default=_no_sinks)


@contextmanager
def sending_to(*openers: Opener) -> Iterator[None]:
    """Send the numbers of every log opened in this context to sinks; close them at its end."""
    with ExitStack() as stack:

        def open_all(folder: Path, start: int) -> list[Sink]:
            return [stack.enter_context(closing(opener(folder, start))) for opener in openers]

        token = _open_sinks.set(open_all)
        try:
            yield
        finally:
            _open_sinks.reset(token)


class MetricsLog:
    """Rows of `metrics.jsonl`; resuming from a step drops the rows after it."""

    def __init__(self, path: Path, start: int) -> None:
        """Open the log of a training that resumes after `start` steps."""
        self._path = path
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._loss = 0.0
        self._lines: list[str] = []
        self._sinks: list[Sink] = []
        if jax.process_index() == 0:
            rows = [row for row in read_metrics(path) if row["step"] <= start]
            with atomic_write(path) as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
            self._sinks = _open_sinks.get()(path.parent, start)

    def add(self, step: int, logs: dict[str, Any]) -> float:
        """Add a step and return the loss of the one before; reading this one would stall the device."""
        self._fetch()
        self._pending = (step, logs)
        return self._loss

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write an evaluation's row."""
        self._append(step, metrics)
        self.flush()

    def flush(self) -> None:
        """Write all rows."""
        self._fetch()
        if self._lines and jax.process_index() == 0:
            with explain_write_errors(self._path), self._path.open("a") as file:
                file.write("".join(line + "\n" for line in self._lines))
        self._lines = []

    def _fetch(self) -> None:
        """Wait for the last step's numbers."""
        if self._pending is None:
            return
        step, logs = self._pending
        values = {name: float(value) for name, value in jax.device_get(logs).items()}
        self._loss, self._pending = values["loss"], None
        self._append(step, values)

    def _append(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step, **values}))
        for sink in self._sinks:
            sink.add_scalars(step, values)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log, up to a truncated line."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
