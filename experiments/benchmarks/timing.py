"""Time calls: warm-up, repeats, and several implementations in alternation.

Devices run asynchronously. A repeat is as many calls as fill 0.2 s with one wait at the end, so that the
dispatch of a call overlaps with the call before, as it does in a training.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jax

from experiments.benchmarks.roofline import Cost, cost_of
from experiments.benchmarks.workloads import Workload

REPEAT_SECONDS: Final = 0.2
"""The minimum duration of a repeat."""

MAX_CALLS: Final = 1000
"""The maximum number of calls in a repeat."""


class Runner(Protocol):
    """A compiled function with its arguments."""

    images: int  # in one call

    def start(self) -> Any:
        """Start a call and return what `wait` takes."""

    def wait(self, started: Any) -> None:
        """Wait for a call and all calls before it."""


class CompiledWorkload:
    """A `Runner` of a workload, with its compile time and its cost."""

    def __init__(self, workload: Workload) -> None:
        """Compile the workload."""
        started = time.perf_counter()
        self._run = workload.function.lower(*workload.arguments).compile()
        self.compile_seconds = time.perf_counter() - started
        self._arguments, self._is_training = workload.arguments, workload.is_training
        self.images = workload.case.images
        counted, devices = cost_of(self._run), jax.device_count()
        self._synchronous = jax.default_backend() == "cpu" and devices > 1
        self.cost = Cost(
            workload.flops / devices if workload.flops else counted.flops,
            workload.bytes_moved / devices if workload.bytes_moved else counted.bytes_moved,
            counted.memory,
        )

    def start(self) -> Any:
        """Start a call; a training continues from its last state."""
        result = self._run(*self._arguments)
        if self._is_training:
            self._arguments = (result[0], *self._arguments[1:])
        # On several CPU devices, calls in flight can take all of XLA's threads and deadlock.
        return jax.block_until_ready(result) if self._synchronous else result

    def wait(self, started: Any) -> None:
        """Wait for a call."""
        jax.block_until_ready(started)


@dataclass(frozen=True)
class Times:
    """Seconds of a call over repeats."""

    median: float
    minimum: float
    maximum: float
    repeats: int

    @classmethod
    def of(cls, samples: list[float]) -> "Times":
        """Summarize the seconds of a call in each repeat."""
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))


def _mean_seconds(runner: Runner, calls: int) -> float:
    started_at = time.perf_counter()
    for _ in range(calls):
        started = runner.start()
    runner.wait(started)
    return (time.perf_counter() - started_at) / calls


def time_alternating(
    runners: Mapping[str, Runner], repeats: int, seconds: float
) -> dict[str, Times]:
    """Time runners in alternation, A B A B, so that all see the same state of the machine.

    Args:
        runners: by name.
        repeats: the maximum number of repeats of each.
        seconds: the time for all of them; the repeat in which it runs out is the last, and one is always
            made.
    """
    calls = {}
    for name, runner in runners.items():
        once = _mean_seconds(runner, 1)
        if once < REPEAT_SECONDS:  # the first call may have allocated memory or chosen algorithms
            once = _mean_seconds(runner, 1)
        calls[name] = min(max(round(REPEAT_SECONDS / max(once, 1e-6)), 1), MAX_CALLS)
    started = time.perf_counter()
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            samples[name].append(_mean_seconds(runner, calls[name]))
        if time.perf_counter() - started > seconds:
            break
    return {name: Times.of(values) for name, values in samples.items()}
