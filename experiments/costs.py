"""What a compiled function costs, by XLA's own count: operations, bytes, memory.

The body of a loop is counted once, however often it runs: where loops do the work, a workload states
its operations and bytes itself. Of a function divided over devices, every number is one device's.
"""

from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Cost:
    """One call's floating point operations and bytes moved, and the bytes it holds; None if unknown."""

    flops: float | None
    moved: float | None
    memory: int | None


def cost_of(compiled: Any) -> Cost:
    """Returns the cost of what `jax.jit(...).lower(...).compile()` gave.

    Memory is arguments, results and scratch; what a result takes over from an argument counts once.
    """
    counted = compiled.cost_analysis() or {}
    held = compiled.memory_analysis()
    memory = None
    if held is not None:
        parts = (held.argument_size_in_bytes, held.output_size_in_bytes, held.temp_size_in_bytes)
        memory = sum(parts) - held.alias_size_in_bytes
    return Cost(_positive(counted.get("flops")), _positive(counted.get("bytes accessed")), memory)


def peak_in_use() -> int | None:
    """Returns the most bytes the first device has held since the program began, where it tells."""
    told = jax.local_devices()[0].memory_stats() or {}
    return told.get("peak_bytes_in_use")


def _positive(count: float | None) -> float | None:
    return count if count is not None and count > 0 else None
