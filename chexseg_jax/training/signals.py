"""Stopping when asked to: what SIGTERM and SIGINT do, at once or at the end of a step.

A training puts a stop off until its step is done and saved; everything else writes whole shards, and
stops where it is. With several processes a signal may reach one of them, or reach them in different
steps: each step then tells all of them, so that they save the same one and stop together.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Somebody asked the program to stop; like KeyboardInterrupt, no error."""

    def __init__(self, number: int, where: str = "") -> None:
        """Takes the signal, and what was kept."""
        super().__init__(where)
        self.number, self.where = number, where

    @property
    def code(self) -> int:
        """The exit code that says so: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number


@dataclass
class SignalState:
    """Whether a stop waits for somebody who has work to finish, and which was asked for."""

    waiting: bool = False
    asked: int = 0


_patience = SignalState()


def _ask(number: int, _: FrameType | None) -> None:
    if not _patience.waiting or _patience.asked:  # the second time it is meant
        raise Stopped(number)
    _patience.asked = number


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Signals end what runs in here with `Stopped`, in the main thread."""
    before = {number: signal.signal(number, _ask) for number in SIGNALS}
    _patience.waiting, _patience.asked = False, 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[SignalState]:
    """In here a signal is only noted, in `asked`; `Stopped` is raised when it suits, or at the end."""
    _patience.waiting = True
    try:
        yield _patience
        if _patience.asked:
            raise Stopped(_patience.asked)
    finally:
        _patience.waiting, _patience.asked = False, 0
