"""What is done differently on CPUs: operations, compiler options, memory.

XLA's CPU backend is slow at three operations of our networks. Each has a second form here that gives the
same numbers, and `by_platform` chooses a form when a function is lowered: an exported function
holds the right one for every platform, whichever machine wrote it. Times are in `docs/performance.md`.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.backend import clear_backends
from jaxtyping import Array, Float

from chexseg_jax.runtime.target import target_platform

YNNPACK_SUMS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""Leave sums to YNNPACK, which is faster than XLA's loops, and convolutions to Eigen, which is faster
than YNNPACK."""

MALLOC_SETTINGS: Final = {-4: 0, -1: -1}
"""glibc's M_MMAP_MAX and M_TRIM_THRESHOLD: allocate from the heap, and never shrink it."""


def by_platform(
    *arrays: jax.Array, cpu: Callable[..., jax.Array], default: Callable[..., jax.Array]
) -> jax.Array:
    """Apply `cpu` where a function is lowered for CPUs, `default` for any other platform."""
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def as_matmul(
    maps: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"], stride: int
) -> Float[Array, "b oh ow o"]:
    """Compute a 1 x 1 convolution as a product of two matrices; its gradients are 10 times as fast.

    Of matrices, because of more axes XLA would transpose a copy for the kernel's gradient.
    """
    cells = maps[:, ::stride, ::stride]
    product = cells.reshape(-1, cells.shape[-1]) @ kernel[0, 0]
    return product.reshape(*cells.shape[:3], -1)


def as_shifted_adds(
    maps: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], dilation: int
) -> Float[Array, "b h w c"]:
    """Compute a depthwise convolution as a sum of shifted, scaled maps; 4 to 24 times as fast."""
    height, width = maps.shape[1:3]
    rows, columns = kernel.shape[:2]
    up, left = dilation * (rows // 2), dilation * (columns // 2)
    padded = jnp.pad(maps, ((0, 0), (up, up), (left, left), (0, 0)))
    convolved = jnp.zeros_like(maps)
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * dilation :, column * dilation :][:, :height, :width]
            convolved += window * kernel[row, column, 0][None, None, None]
    return convolved


def as_shifted_maxima(maps: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
    """Compute a 3 x 3 max pooling of stride 2 by comparing shifted maps, along rows, then columns.

    Of equal values the first takes the gradient, as in `reduce_window`, and NaN is kept.
    """
    return _max_of_three(_max_of_three(maps, 2), 1)


def _max_of_three(maps: Float[Array, "b h w c"], axis: int) -> Float[Array, "b oh ow c"]:
    """Return the maximum of every second cell and its two neighbours along an axis."""
    last = maps.shape[axis] - (maps.shape[axis] - 1) % 2
    padding = [(0, 0)] * 4
    padding[axis] = (1, 1)
    padded = jnp.pad(maps, padding, constant_values=-jnp.inf)
    before, centre, after = (lax.slice_in_dim(padded, i, i + last, 2, axis) for i in range(3))
    maximum = before
    for cells in (centre, after):
        # Not `jnp.maximum`, which would share the gradient of equal values.
        maximum = jnp.where((cells > maximum) | jnp.isnan(cells), cells, maximum)
    return maximum


def compute_dtype() -> Any:
    """Return bfloat16 where the target's hardware multiplies it faster, else float32."""
    return jnp.float32 if target_platform() == "cpu" else jnp.bfloat16


def compiler_options() -> dict[str, str]:
    """Return XLA's options for compiling a network for the target."""
    return _known_options() if target_platform() == "cpu" else {}


@cache
def _known_options() -> dict[str, str]:
    try:
        jax.jit(lambda: 0, compiler_options=YNNPACK_SUMS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another XLA may lack it
        return {}
    return YNNPACK_SUMS


def keep_memory() -> None:
    """Keep freed memory in the process, if its only device is one CPU; call before making arrays.

    XLA allocates a step's scratch, gigabytes, with malloc and frees it; glibc returns that to the
    kernel, which must clear as many pages in the next step. Only the main thread's heap is large enough,
    so computations are dispatched synchronously. In its first steps the heap may still grow. Several
    devices each need a thread, and accelerators have their own memory: there nothing is changed.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    clear_backends()  # the backend reads that setting once
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in MALLOC_SETTINGS.items():
            library.mallopt(parameter, value)


def return_freed_memory() -> None:
    """Give the kernel the heap that `keep_memory` has kept of an earlier stage."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
