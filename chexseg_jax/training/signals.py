"""Stop on SIGTERM and SIGINT, at once or after the current training step.

A training defers signals until its step is saved; the other stages write atomic shards and stop at
once. With several processes a signal may reach one of them, or reach them in different steps: every step
shares the pending signals, so that all processes save the same step and stop together.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from chexseg_jax.runtime.terminal import send_again

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CODE: Final = ("chexseg_jax", "datasets", "experiments", "__main__")
"""The packages that exceptions of a signal may leave."""
FRAGILE: Final = ("asyncio", "orbax", "jax._src.compiler", "jax._src.lib")
"""Modules that swallow an exception of a signal, wrap it, or crash for it when the program ends."""


class Stopped(BaseException):
    """The program was asked to stop by a signal; like KeyboardInterrupt, not an error."""

    def __init__(self, number: int, where: str = "") -> None:
        """Take the signal's number, and a phrase that says what was saved."""
        super().__init__(where)
        self.number, self.where = number, where

    @property
    def code(self) -> int:
        """The exit code: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number


@dataclass
class SignalState:
    """Whether signals are deferred, and the number of the signal that is pending, or 0."""

    deferred: bool = False
    pending_signal: int = 0


_state = SignalState()


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.deferred and not _state.pending_signal:  # a second signal stops at once
        _state.pending_signal = number
    elif _is_fragile(frame):
        send_again(number)
    else:
        raise Stopped(number)


def _is_fragile(frame: FrameType | None) -> bool:
    """Return whether our code has called a module that an exception must not leave."""
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in CODE:
            return False
        if module.startswith(FRAGILE):
            return True
        frame = frame.f_back
    return False


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread when a signal arrives in this context."""
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _state.deferred, _state.pending_signal = False, 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[SignalState]:
    """Record a signal in `pending_signal`; the caller, or the end of the context, raises `Stopped`."""
    _state.deferred = True
    try:
        yield _state
        if _state.pending_signal:
            raise Stopped(_state.pending_signal)
    finally:
        _state.deferred, _state.pending_signal = False, 0
