"""What a device could do at best: operations a second, and bytes a second to and from its memory.

From the makers' data sheets, dense (NVIDIA's 2:4 sparsity doubles what they print): NVIDIA A100
(2021: 312 and 156 TFLOP/s; 1.555, 1.935, 2.039 TB/s), H100 (2023: SXM 989 and 494, PCIe 756 and 378,
NVL 835 and 417 TFLOP/s; 3.35, 2.0, 3.9 TB/s), H200 (2024: 989 and 494 TFLOP/s, 4.8 TB/s); Google
Cloud TPU's system architecture pages, v4, v5e, v5p, v6e (275, 197, 459, 918 TFLOP/s; 1.228, 0.819,
2.765, 1.638 TB/s). On NVIDIA's devices float32 is TF32, and TPUs multiply float32 in bfloat16: XLA's
default on both. A device that is not listed, and any CPU, is measured: a large product, and a large
array read and written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class Peak:
    """One device's limits, and where they come from."""

    bfloat16: float  # operations a second
    float32: float
    bandwidth: float  # bytes a second
    source: str = "data sheet"

    def rate(self, dtype: DTypeLike) -> float:
        """Returns the operations a second in a precision."""
        return self.bfloat16 if jnp.dtype(dtype) == jnp.bfloat16 else self.float32


KNOWN: Final[dict[str, Peak]] = {
    "H200": Peak(989e12, 494e12, 4.8e12),
    "H100 NVL": Peak(835e12, 417e12, 3.9e12),
    "H100 PCIe": Peak(756e12, 378e12, 2.0e12),
    "H100": Peak(989e12, 494e12, 3.35e12),
    "A100-SXM4-80GB": Peak(312e12, 156e12, 2.039e12),
    "A100 80GB PCIe": Peak(312e12, 156e12, 1.935e12),
    "A100": Peak(312e12, 156e12, 1.555e12),
    "TPU v4": Peak(275e12, 275e12, 1.228e12),
    "TPU v5 lite": Peak(197e12, 197e12, 0.819e12),
    "TPU v5e": Peak(197e12, 197e12, 0.819e12),
    "TPU v5": Peak(459e12, 459e12, 2.765e12),
    "TPU v6": Peak(918e12, 918e12, 1.638e12),
}
"""By a part of what JAX calls the kind of device; the first that fits counts."""


def known(kind: str) -> Peak | None:
    """Returns the limits of a kind of device, if it is listed."""
    return next((peak for part, peak in KNOWN.items() if part in kind), None)


def peak_of(device: Any) -> Peak:
    """Returns the limits of a device, measured on it where it is not listed."""
    return known(device.device_kind) or measured(device)


def measured(device: Any, side: int = 2048, length: int = 2**26) -> Peak:
    """Returns what a product of two `side` x `side` matrices and rewriting `length` floats reach."""
    with jax.default_device(device):
        square = jax.jit(lambda matrix: matrix @ matrix)
        rates = {}
        for dtype in (jnp.bfloat16, jnp.float32):
            matrix = jnp.full((side, side), 1 / side, dtype)
            rates[dtype] = 2 * side**3 / _least(square, matrix)
        numbers = jnp.ones(length, jnp.float32)
        # In place, as a system takes longer to give new memory than to fill it.
        negate = jax.jit(jnp.negative, donate_argnums=0)
        bandwidth = 2 * numbers.nbytes / _least(negate, numbers)
    source = f"measured in this run: a product of {side} x {side}, {length} float32 rewritten"
    return Peak(rates[jnp.bfloat16], rates[jnp.float32], bandwidth, source)


def _least(function: Callable[[Any], Any], argument: Any, repeats: int = 5) -> float:
    """Returns the least seconds of a few calls, each on what the one before gave."""
    result, found = jax.block_until_ready(function(argument)), []
    for _ in range(repeats):
        began = time.perf_counter()
        result = jax.block_until_ready(function(result))
        found.append(time.perf_counter() - began)
    return min(found)


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
