"""The log of a training: one JSON object a line, for every step and every evaluation.

The same numbers also go to sinks, TensorBoard and Weights & Biases, for whoever asks with `sending`.
Their packages are imported when a sink is opened, never before.
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


@runtime_checkable
class Sink(Protocol):
    """Where numbers, and perhaps pictures, go beside the log."""

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a step's numbers."""

    def add_images(self, step: int, images: Images) -> None:
        """Sends pictures by name."""

    def close(self) -> None:
        """Sends what is left."""


Opener = Callable[[Path, int], Sink]
"""A stage's folder, and the steps it has behind it, to a sink."""


FLUSH: Final = 60.0
"""Seconds after which TensorBoard sees new numbers."""


class TensorBoard:
    """Event files in `<folder>/tensorboard`; TensorBoard forgets what they hold after `start`.

    They are written by the caller: the package's own thread dies of a full disk, and who then waits for
    its queue waits for ever.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """Opens a new event file."""
        from tensorboardX import event_file_writer, proto, summary

        self._folder, self._summary = folder / "tensorboard", summary
        self._event = proto.event_pb2.Event
        began = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # The package names files by the second, and would write one of the same second over.
            self._events = event_file_writer.EventsWriter(
                str(self._folder / "events"), filename_suffix=f".{time.time_ns()}"
            )
        self._flushed = 0.0  # the first numbers are to be seen at once
        self._send(start + 1, session_log=began)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a step's numbers."""
        for name, value in values.items():
            self._send(step, summary=self._summary.scalar(name, value))

    def add_images(self, step: int, images: Images) -> None:
        """Sends pictures by name."""
        for name, image in images.items():
            self._send(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is left."""
        with explain_write_errors(self._folder):
            self._events.close()

    def _send(self, step: int, **what: Any) -> None:
        with explain_write_errors(self._folder):
            self._events.write_event(self._event(step=step, wall_time=time.time(), **what))
            if time.monotonic() - self._flushed > FLUSH:
                self._events.flush()
                self._flushed = time.monotonic()


class WeightsAndBiases:
    """A run of a project, named as the stage's folder; the service drops steps it already has."""

    def __init__(self, project: str, folder: Path, start: int) -> None:
        """Opens the run, or goes on with it."""
        import wandb

        self._image, name = wandb.Image, folder.name
        self._run = wandb.init(
            project=project, id=name, name=name, dir=str(folder), resume="allow" if start else None
        )

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a step's numbers."""
        self._run.log(dict(values), step=step)

    def add_images(self, step: int, images: Images) -> None:
        """Sends pictures by name."""
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def installed(package: str) -> bool:
    """Returns whether a package can be imported."""
    return find_spec(package) is not None


def sinks(project: str | None) -> list[Opener]:
    """Returns TensorBoard where it is installed, and Weights & Biases where a project is given."""
    tensorboard: list[Opener] = [TensorBoard] if installed("tensorboardX") else []
    return [*tensorboard, *([partial(WeightsAndBiases, project)] if project else [])]


def _no_sinks(folder: Path, start: int) -> list[Sink]:
    return []


_open_sinks: ContextVar[Callable[[Path, int], list[Sink]]] = ContextVar("sinks", default=_no_sinks)


@contextmanager
def sending_to(*openers: Opener) -> Iterator[None]:
    """Every log that is opened in here sends its numbers on; at the end the sinks are closed."""
    with ExitStack() as stack:

        def opened(folder: Path, start: int) -> list[Sink]:
            return [stack.enter_context(closing(opener(folder, start))) for opener in openers]

        token = _open_sinks.set(opened)
        try:
            yield
        finally:
            _open_sinks.reset(token)


class MetricsLog:
    """Rows of `metrics.jsonl`; going on from a step drops what was logged after it."""

    def __init__(self, path: Path, start: int, name: str) -> None:
        """Opens the log of a training that goes on after `start` steps."""
        self._path, self._name = path, name
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
        """Notes a step and returns the loss of the one before: looking at it waits for the device."""
        self._settle()
        self._pending = (step, logs)
        return self._loss

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes an evaluation's row."""
        self._note(step, metrics)
        self.flush()

    def flush(self) -> float:
        """Writes what is noted, and returns the loss of the last step."""
        self._settle()
        if self._lines and jax.process_index() == 0:
            with explain_write_errors(self._path), self._path.open("a") as file:
                file.write("".join(line + "\n" for line in self._lines))
        self._lines = []
        return self._loss

    def _settle(self) -> None:
        if self._pending is None:
            return
        step, logs = self._pending
        values = {name: float(value) for name, value in jax.device_get(logs).items()}
        self._loss, self._pending = values["loss"], None
        self._note(step, values)

    def _note(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step, **values}))
        for sink in self._sinks:
            sink.add_scalars(step, values)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a log; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
