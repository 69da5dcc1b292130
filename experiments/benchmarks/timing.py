"""Seconds a call takes, measured: warm-up, repeats, and several implementations in turn.

Devices run behind the caller, so a repeat is as many calls as fill a moment, and one wait at its end;
what one call costs to start is hidden behind the call before, as it is in a training.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

MOMENT: Final = 0.2
"""Seconds that a repeat lasts at least."""

MOST_CALLS: Final = 1000
"""Calls in a repeat, however short they are."""


class Runner(Protocol):
    """Something to be timed, compiled and with its arguments at hand."""

    images: int  # that a call handles

    def start(self) -> Any:
        """Starts a call, and returns what `wait` takes."""

    def wait(self, started: Any) -> None:
        """Returns once a call, and all before it, are done."""


@dataclass(frozen=True)
class Times:
    """Seconds a call over repeats."""

    median: float
    least: float
    greatest: float
    repeats: int


def summary(samples: list[float]) -> Times:
    """Returns the median and the extremes of seconds a call."""
    return Times(statistics.median(samples), min(samples), max(samples), len(samples))


def _seconds(runner: Runner, calls: int) -> float:
    """Returns the mean seconds of calls, one started after the other."""
    began = time.perf_counter()
    for _ in range(calls):
        started = runner.start()
    runner.wait(started)
    return (time.perf_counter() - began) / calls


def take_turns(runners: Mapping[str, Runner], repeats: int, seconds: float) -> dict[str, Times]:
    """Returns the times of runners that are measured in turn, A B A B, on one and the same machine.

    Args:
        runners: by name.
        repeats: at most so many of each.
        seconds: for all of them; the turn in which they are over is the last, and there is always one.
    """
    calls = {}
    for name, runner in runners.items():
        once = _seconds(runner, 1)
        if once < MOMENT:  # the first call may still have allocated, or chosen algorithms
            once = _seconds(runner, 1)
        calls[name] = min(max(round(MOMENT / max(once, 1e-6)), 1), MOST_CALLS)
    began = time.perf_counter()
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            samples[name].append(_seconds(runner, calls[name]))
        if time.perf_counter() - began > seconds:
            break
    return {name: summary(some) for name, some in samples.items()}
