"""Memory that one step frees is kept for the next, where a CPU computes.

XLA takes a step's scratch, gigabytes, from the C library and gives it back; that hands it to the
kernel, and has as many pages cleared in the next step (`docs/performance.md`). Threads but the first
have heaps too small for it, so computations must start in the thread that calls them, as they do if
what they read is there. In its first steps a heap may grow by more than one step needs, as small things
come to lie in the gap.
"""

import ctypes
import sys
from functools import cache
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.extend.backend import clear_backends

ON_CPUS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""What XLA's compiler for CPUs is told, if it knows it."""

KEPT: Final = {-4: 0, -1: -1}
"""glibc's M_MMAP_MAX and M_TRIM_THRESHOLD: blocks come from the heap, and the heap is never cut."""


def keep_memory() -> None:
    """Keeps freed memory, if one CPU device is all there is; call it before there are arrays.

    Several devices each need a thread, and accelerators have memory of their own: there it does nothing.
    Another C library than glibc is left as it is.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    clear_backends()  # which read that once
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in KEPT.items():
            library.mallopt(parameter, value)


def compute_dtype() -> Any:
    """Returns bfloat16 where the hardware multiplies it faster, else float32."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


@cache
def compiler_options() -> dict[str, str]:
    """Returns what XLA is told when it compiles a network.

    On CPUs it would leave convolutions and sums to YNNPACK: its sums are faster than XLA's own loops,
    its convolutions slower than Eigen's (`docs/performance.md`).
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=ON_CPUS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another XLA may lack it
        return {}
    return ON_CPUS
