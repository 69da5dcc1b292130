"""Hardware peaks and the cost of compiled functions: operations and bytes per second.

Peaks are from the makers' data sheets, dense (NVIDIA's 2:4 sparsity would double them): NVIDIA A100
(2021: 312 and 156 TFLOP/s; 1.555, 1.935, 2.039 TB/s), H100 (2023: SXM 989 and 494, PCIe 756 and 378,
NVL 835 and 417 TFLOP/s; 3.35, 2.0, 3.9 TB/s), H200 (2024: 989 and 494 TFLOP/s, 4.8 TB/s); Google
Cloud TPU's system architecture pages (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e), v4, v5e, v5p,
v6e (275, 197, 459, 918 TFLOP/s; 1.228, 0.819, 2.765, 1.638 TB/s; 32, 16, 95, 32 GB of HBM; interchip
interconnect of 2,400, 1,600, 4,800, 3,200 Gbps, all links of a chip in one direction). NVLink is half
of the sheets' 600 and 900 GB/s, which are of both directions. Float32 is TF32 on NVIDIA's devices and
is multiplied in bfloat16 on TPUs: XLA's default on both. On a device that is not listed, and on any
CPU, peaks are measured: a large matrix product, and a large array read and written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

GIB: Final = 2**30


@dataclass(frozen=True)
class Peak:
    """A device's peak rates, and their source."""

    bfloat16: float  # operations a second
    float32: float
    bandwidth: float  # bytes a second
    source: str = "data sheet"
    memory: float | None = None  # bytes
    interconnect: float | None = (
        None  # bytes a second that a chip sends to others, all links together
    )

    def flops_per_second(self, dtype: DTypeLike) -> float:
        """Return the operations a second in a precision."""
        return self.bfloat16 if jnp.dtype(dtype) == jnp.bfloat16 else self.float32


DATA_SHEETS: Final[dict[str, Peak]] = {
    "H200": Peak(989e12, 494e12, 4.8e12, memory=141e9, interconnect=450e9),
    "H100 NVL": Peak(835e12, 417e12, 3.9e12, memory=94e9),
    "H100 PCIe": Peak(756e12, 378e12, 2.0e12, memory=80e9),
    "H100": Peak(989e12, 494e12, 3.35e12, memory=80e9, interconnect=450e9),
    "A100-SXM4-80GB": Peak(312e12, 156e12, 2.039e12, memory=80e9, interconnect=300e9),
    "A100 80GB PCIe": Peak(312e12, 156e12, 1.935e12, memory=80e9),
    "A100": Peak(312e12, 156e12, 1.555e12, memory=40e9),
    "TPU v4": Peak(275e12, 275e12, 1.228e12, memory=32 * GIB, interconnect=300e9),
    "TPU v5 lite": Peak(197e12, 197e12, 0.819e12, memory=16 * GIB, interconnect=200e9),
    "TPU v5e": Peak(197e12, 197e12, 0.819e12, memory=16 * GIB, interconnect=200e9),
    "TPU v5": Peak(459e12, 459e12, 2.765e12, memory=95 * GIB, interconnect=600e9),
    "TPU v6": Peak(918e12, 918e12, 1.638e12, memory=32 * GIB, interconnect=400e9),
}
"""By a substring of JAX's `device_kind`; the first match counts."""


def data_sheet_peak(kind: str) -> Peak | None:
    """Return the data sheet's peak of a kind of device, None if it is not listed."""
    return next((peak for part, peak in DATA_SHEETS.items() if part in kind), None)


def peak_of(device: Any) -> Peak:
    """Return a device's peak, measured on it if it is not listed."""
    return data_sheet_peak(device.device_kind) or measure_peak(device)


def measure_peak(device: Any, side: int = 2048, length: int = 2**26) -> Peak:
    """Measure a product of two `side` x `side` matrices and the rewriting of `length` floats."""
    with jax.default_device(device):
        square = jax.jit(lambda matrix: matrix @ matrix)
        rates = {}
        for dtype in (jnp.bfloat16, jnp.float32):
            matrix = jnp.full((side, side), 1 / side, dtype)
            rates[dtype] = 2 * side**3 / _min_seconds(square, matrix)
        numbers = jnp.ones(length, jnp.float32)
        # In place, because new memory takes longer to be mapped than to be filled.
        negate = jax.jit(jnp.negative, donate_argnums=0)
        bandwidth = 2 * numbers.nbytes / _min_seconds(negate, numbers)
    source = f"measured in this run: a product of {side} x {side}, {length} float32 rewritten"
    return Peak(rates[jnp.bfloat16], rates[jnp.float32], bandwidth, source)


def _min_seconds(function: Callable[[Any], Any], argument: Any, repeats: int = 5) -> float:
    """Time a few calls, each on the result of the one before, and return the minimum."""
    result, samples = jax.block_until_ready(function(argument)), []
    for _ in range(repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(function(result))
        samples.append(time.perf_counter() - started)
    return min(samples)


@dataclass(frozen=True)
class Cost:
    """Floating point operations, bytes moved and bytes of memory of one call; None if unknown."""

    flops: float | None = None
    bytes_moved: float | None = None
    memory: int | None = None


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """Return the cost of a compiled function, as XLA counts it.

    Memory is arguments, results and scratch; a donated buffer counts once.
    """
    counts: Any = compiled.cost_analysis() or {}
    sizes: Any = compiled.memory_analysis()
    memory = None
    if sizes is not None:
        total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        memory = total + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    # XLA reports -1 or 0 for what it cannot count.
    flops, bytes_moved = (
        count if count is not None and count > 0 else None
        for count in (counts.get("flops"), counts.get("bytes accessed"))
    )
    return Cost(flops, bytes_moved, memory)


def peak_bytes_in_use() -> int | None:
    """Return the first device's maximum of allocated bytes so far, None where it is not counted."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")
