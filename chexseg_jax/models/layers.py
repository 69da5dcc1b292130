"""Convolutions, pooling, normalization and resizing with PyTorch's conventions, channels last.

Padding is symmetric and explicit, which "SAME" is not at stride two. Running variances are unbiased, as
in PyTorch; of a batch of a single cell, which PyTorch refuses, they are biased.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.initializers import Initializer, uniform, uniform_fan_in
from chexseg_jax.runtime.cpu import as_matmul, as_shifted_adds, as_shifted_maxima, by_platform

EPSILON = 1e-5
MOMENTUM = 0.1


class Conv(nnx.Module):
    """A square convolution, padded so that a stride of one keeps the grid."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        init: Initializer = uniform_fan_in,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        fan_in = size * size * inputs
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), fan_in)) if bias else None

    def __call__(self, maps: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        """Convolve maps."""
        kernel = self.kernel[...].astype(self.dtype)
        convolved = convolve(maps.astype(self.dtype), kernel, self.stride, self.dilation)
        if self.bias is None:
            return convolved
        return convolved + self.bias[...].astype(self.dtype)[None, None, None]


def convolve(
    maps: Float[Array, "b h w i"],
    kernel: Float[Array, "n n i o"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b oh ow o"]:
    """Convolve maps with a square kernel of odd size, zeros outside."""
    if kernel.shape[0] > 1:
        return as_convolution(maps, kernel, stride, dilation)
    matmul, convolution = (partial(form, stride=stride) for form in (as_matmul, as_convolution))
    return by_platform(maps, kernel, cpu=matmul, default=convolution)


def as_convolution(
    maps: Float[Array, "b h w i"],
    kernel: Float[Array, "n n i o"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b oh ow o"]:
    """Convolve maps by XLA's own operation."""
    reach = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        ((reach, reach), (reach, reach)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Depthwise(nnx.Module):
    """A depthwise 3 x 3 convolution."""

    def __init__(
        self, channels: int, *, dilation: int = 1, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.dilation, self.dtype = dilation, dtype
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (3, 3, 1, channels)))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Convolve maps."""
        kernel = self.kernel[...].astype(self.dtype)
        return depthwise(maps.astype(self.dtype), kernel, self.dilation)


def depthwise(
    maps: Float[Array, "b h w c"], kernel: Float[Array, "3 3 1 c"], dilation: int = 1
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own 3 x 3 kernel, zeros outside."""
    kernel = inner_taps(kernel, dilation, maps.shape[1], maps.shape[2])
    forms = (as_shifted_adds, as_grouped_convolution)
    adds, grouped = (partial(form, dilation=dilation) for form in forms)
    return by_platform(maps, kernel, cpu=adds, default=grouped)


def inner_taps(
    kernel: Float[Array, "3 3 1 c"], dilation: int, height: int, width: int
) -> Float[Array, "kh kw 1 c"]:
    """Drop the outer rows and columns of a kernel whose dilation exceeds the maps' height or width.

    They see padding only: at its large rates an ASPP is a 1 x 1 convolution on small maps.
    """
    rows = slice(None) if dilation < height else slice(1, 2)
    columns = slice(None) if dilation < width else slice(1, 2)
    return kernel[rows, columns]


def as_grouped_convolution(
    maps: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], dilation: int = 1
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own kernel, as one grouped convolution."""
    up, left = (dilation * (size // 2) for size in kernel.shape[:2])
    return lax.conv_general_dilated(
        maps,
        kernel,
        (1, 1),
        ((up, up), (left, left)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=maps.shape[-1],
    )


def linear(inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a float32 linear layer with PyTorch's initial values, its bias zero without `bias`."""
    zeros = nnx.initializers.zeros_init()
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=lambda key, shape, dtype: uniform_fan_in(key, shape),
        bias_init=(lambda key, shape, dtype: uniform(key, shape, inputs)) if bias else zeros,
        rngs=rngs,
    )


def max_pool(maps: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
    """Return the maximum of each 3 x 3 window, every second cell."""
    return by_platform(maps, cpu=as_shifted_maxima, default=as_reduce_window)


def as_reduce_window(maps: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
    """Return the maximum of each 3 x 3 window, every second cell, by XLA's own operation."""
    return lax.reduce_window(
        maps, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


def average_pool(maps: Float[Array, "b h w c"], stride: int) -> Float[Array, "b oh ow c"]:
    """Return the means of 2 x 2 windows, every cell or every second.

    At stride 1 the last row and column are repeated: the grid stays, and its even cells are those of
    stride 2.
    """
    if stride == 1:
        maps = jnp.pad(maps, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    forms = (as_strided_sum, as_window_sum)
    shifted, windowed = (partial(form, stride=stride) for form in forms)
    return by_platform(maps, cpu=shifted, default=windowed) / 4


def as_strided_sum(maps: Float[Array, "b h w c"], stride: int) -> Float[Array, "b oh ow c"]:
    """Return the sums of 2 x 2 windows by adding strided maps; the faster form on CPUs."""
    height, width = maps.shape[1:3]
    rows, columns = (range(0, n - 1, stride) for n in (height, width))
    windows = [
        maps[:, i : rows[-1] + i + 1 : stride, j : columns[-1] + j + 1 : stride]
        for i in (0, 1)
        for j in (0, 1)
    ]
    return sum(windows[1:], windows[0])


def as_window_sum(maps: Float[Array, "b h w c"], stride: int) -> Float[Array, "b oh ow c"]:
    """Return the sums of 2 x 2 windows by XLA's own operation, whose gradient it fuses with others."""
    return lax.reduce_window(maps, 0.0, lax.add, (1, 2, 2, 1), (1, stride, stride, 1), "VALID")


class Moments(NamedTuple):
    """Mean and biased variance of every channel over a batch and its cells, in float32."""

    mean: Float[Array, "c"]
    variance: Float[Array, "c"]

    def first(self, channels: int) -> "Moments":
        """Return the moments of the first so many channels."""
        return Moments(self.mean[:channels], self.variance[:channels])


def moments_of(maps: Float[Array, "b h w c"]) -> Moments:
    """Compute the moments of maps over the whole batch, also where it is sharded over devices."""
    values = maps.astype(jnp.float32)
    mean = values.mean((0, 1, 2))
    variance = jnp.square(values).mean((0, 1, 2)) - jnp.square(mean)
    return Moments(mean, jnp.maximum(variance, 0))


def concatenate_moments(first: Moments, second: Moments) -> Moments:
    """Return the moments of maps concatenated along their channels."""
    return Moments(*(jnp.concatenate(pair) for pair in zip(first, second, strict=True)))


def normalize(
    maps: Float[Array, "b h w c"],
    moments: Moments,
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
) -> Float[Array, "b h w c"]:
    """Normalize maps by their moments, then scale and shift them, in float32."""
    scale = scale * lax.rsqrt(moments.variance + EPSILON)
    mean, scale, bias = (v[None, None, None] for v in (moments.mean, scale, bias))
    return (maps.astype(jnp.float32) - mean) * scale + bias


class BatchNorm(nnx.Module):
    """Batch normalization (Ioffe & Szegedy 2015) with PyTorch's running statistics.

    Unlike `nnx.BatchNorm` it accepts moments that another layer has computed.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(
        self, maps: Float[Array, "b h w c"], *, train: bool, moments: Moments | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalize maps, by the batch's moments if `train`, else by the running statistics.

        Args:
            maps: the input.
            train: whether to use the batch's moments and to update the running ones.
            moments: of the batch, if already computed.
        """
        if train:
            moments = moments or moments_of(maps)
            self.update(moments, maps.size // maps.shape[-1])
        else:
            moments = Moments(self.mean[...], self.var[...])
        return normalize(maps, moments, self.scale[...], self.bias[...]).astype(self.dtype)

    def update(self, moments: Moments, cells: int) -> None:
        """Move the running statistics towards the moments of a batch of so many cells."""
        unbiased = moments.variance * (cells / max(cells - 1, 1))
        for running, value in ((self.mean, moments.mean), (self.var, unbiased)):
            running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * lax.stop_gradient(value)


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018).

    `nnx.GroupNorm` gives the same maps, but gradients that differ in their last bits.
    """

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike = jnp.float32):
        self.groups, self.dtype = groups, dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalize maps over each group of channels of each image."""
        *grid, channels = maps.shape
        values = maps.astype(jnp.float32).reshape(*grid, self.groups, channels // self.groups)
        mean = values.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(values - mean).mean((1, 2, 4), keepdims=True)
        normed = ((values - mean) * lax.rsqrt(variance + EPSILON)).reshape(maps.shape)
        scale, bias = (v[None, None, None] for v in (self.scale[...], self.bias[...]))
        return (normed * scale + bias).astype(self.dtype)


def resize(
    maps: Float[Array, "b h w c"], height: int, width: int, *, align_corners: bool
) -> Float[Array, "b height width c"]:
    """Upsample maps bilinearly, as PyTorch's `interpolate`.

    Args:
        maps: the input.
        height: rows of the result.
        width: columns of the result.
        align_corners: whether the centres of the corner cells are aligned, rather than the outlines of
            the grids.
    """
    if maps.shape[1:3] == (height, width):
        return maps
    rows = jnp.asarray(interpolation(maps.shape[1], height, align_corners), maps.dtype)
    columns = jnp.asarray(interpolation(maps.shape[2], width, align_corners), maps.dtype)
    return jnp.einsum("xw,bywc->byxc", columns, jnp.einsum("yh,bhwc->bywc", rows, maps))


def interpolation(
    cells: int, points: int, align_corners: bool
) -> Float[np.ndarray, "points cells"]:
    """Return the matrix that interpolates `cells` samples linearly at `points` positions."""
    if align_corners:
        positions = np.arange(points) * ((cells - 1) / max(points - 1, 1))
    else:
        positions = np.clip((np.arange(points) + 0.5) * (cells / points) - 0.5, 0, cells - 1)
    distances = np.abs(positions[:, None] - np.arange(cells)[None])
    return np.maximum(0, 1 - distances).astype(np.float32)
