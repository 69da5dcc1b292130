"""Convolutions, norms and resizing with PyTorch's conventions, channels last.

Padding is symmetric and explicit, which "SAME" is not where a stride is two. Running variances are
unbiased, as PyTorch keeps them; a batch of one cell keeps the biased one, where PyTorch refuses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.initialisers import Initialiser, uniform, uniform_in

EPSILON = 1e-5
MOMENTUM = 0.1


class Conv(nnx.Module):
    """A square convolution that keeps the grid, but for its stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        init: Initialiser = uniform_in,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        fan_in = size * size * inputs
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), fan_in)) if bias else None

    def __call__(self, maps: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        """Returns the maps convolved."""
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
    *,
    multiplied: bool | None = None,
) -> Float[Array, "b oh ow o"]:
    """Returns maps convolved with a square kernel, zeros outside.

    Args:
        maps: what is convolved.
        kernel: of odd sides.
        stride: the distance between cells of the result.
        dilation: the distance between taps.
        multiplied: a kernel of one tap as a matrix product rather than as a convolution; by default
            where there is no accelerator, for there XLA pulls its own back up to ten times as slowly.
    """
    if multiplied is None:
        multiplied = jax.default_backend() == "cpu"
    if multiplied and kernel.shape[0] == 1:
        # As matrices: of more axes XLA would transpose a copy for the kernel's gradient.
        cells = maps[:, ::stride, ::stride]
        product = cells.reshape(-1, cells.shape[-1]) @ kernel[0, 0]
        return product.reshape(*cells.shape[:3], -1)
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
    """A 3 x 3 convolution of every channel by itself."""

    def __init__(
        self, channels: int, *, dilation: int = 1, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.dilation, self.dtype = dilation, dtype
        self.kernel = nnx.Param(uniform_in(rngs.params(), (3, 3, 1, channels)))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the maps convolved."""
        kernel = self.kernel[...].astype(self.dtype)
        return depthwise(maps.astype(self.dtype), kernel, self.dilation)


def depthwise(
    maps: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 1 c"],
    dilation: int = 1,
    *,
    shifted: bool | None = None,
) -> Float[Array, "b h w c"]:
    """Returns each channel convolved with its own 3 x 3 kernel, zeros outside.

    Args:
        maps: what is convolved.
        kernel: the last axis is the channel.
        dilation: the distance between taps.
        shifted: as nine multiply-adds of shifted maps rather than as a grouped convolution; by
            default where there is no accelerator, for there XLA's own is 4 to 24 times slower.
    """
    if shifted is None:
        shifted = jax.default_backend() == "cpu"
    height, width = maps.shape[1:3]
    # Taps a whole map away see padding only: an ASPP's wide rates are 1 x 1 on small maps.
    rows = range(3) if dilation < height else range(1, 2)
    columns = range(3) if dilation < width else range(1, 2)
    up, left = dilation * (1 - rows[0]), dilation * (1 - columns[0])
    if not shifted:
        return lax.conv_general_dilated(
            maps,
            kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1],
            (1, 1),
            ((up, up), (left, left)),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=maps.shape[-1],
        )
    padded = jnp.pad(maps, ((0, 0), (up, up), (left, left), (0, 0)))
    convolved = jnp.zeros_like(maps)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            window = padded[:, i * dilation :, j * dilation :][:, :height, :width]
            convolved += window * kernel[row, column, 0][None, None, None]
    return convolved


class Linear(nnx.Module):
    """An affine map of the last axis; its result is float32."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_in(rngs.params(), (inputs, outputs)))
        initial = uniform(rngs.params(), (outputs,), inputs) if bias else jnp.zeros(outputs)
        self.bias = nnx.Param(initial)

    def __call__(self, vectors: Float[Array, "b i"]) -> Float[Array, "b o"]:
        """Returns the vectors mapped."""
        return vectors.astype(jnp.float32) @ self.kernel[...] + self.bias[...][None]


class Moments(NamedTuple):
    """Mean and biased variance of every channel over a batch and its cells, in float32."""

    mean: Float[Array, "c"]
    variance: Float[Array, "c"]


def moments_of(maps: Float[Array, "b h w c"]) -> Moments:
    """Returns the moments of maps; over the whole batch, on however many devices it lies."""
    values = maps.astype(jnp.float32)
    mean = values.mean((0, 1, 2))
    variance = jnp.square(values).mean((0, 1, 2)) - jnp.square(mean)
    return Moments(mean, jnp.maximum(variance, 0))


def join(first: Moments, second: Moments) -> Moments:
    """Returns the moments of maps joined along their channels."""
    return Moments(*(jnp.concatenate(pair) for pair in zip(first, second, strict=True)))


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with PyTorch's running statistics."""

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(
        self, maps: Float[Array, "b h w c"], *, train: bool, moments: Moments | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the maps normalised, by the batch if `train`, else by the running statistics.

        Args:
            maps: what is normalised.
            train: whether to use the batch's moments and to update the running ones.
            moments: the batch's, where they are already known.
        """
        if train:
            moments = moments or moments_of(maps)
            cells = maps.size // maps.shape[-1]
            unbiased = moments.variance * (cells / max(cells - 1, 1))
            for running, value in ((self.mean, moments.mean), (self.var, unbiased)):
                running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * lax.stop_gradient(value)
        else:
            moments = Moments(self.mean[...], self.var[...])
        factors = self.scale[...] * lax.rsqrt(moments.variance + EPSILON)
        return affine(maps, moments.mean, factors, self.bias[...]).astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018)."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike = jnp.float32):
        self.groups, self.dtype = groups, dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the maps normalised, an image and a group of channels at a time."""
        *grid, channels = maps.shape
        values = maps.astype(jnp.float32).reshape(*grid, self.groups, channels // self.groups)
        mean = values.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(values - mean).mean((1, 2, 4), keepdims=True)
        normed = ((values - mean) * lax.rsqrt(variance + EPSILON)).reshape(maps.shape)
        zeros = jnp.zeros(channels)
        return affine(normed, zeros, self.scale[...], self.bias[...]).astype(self.dtype)


def affine(
    maps: Float[Array, "b h w c"],
    centre: Float[Array, "c"],
    factors: Float[Array, "c"],
    bias: Float[Array, "c"],
) -> Float[Array, "b h w c"]:
    """Returns (maps - centre) * factors + bias, a channel at a time, in float32."""
    centre, factors, bias = (v[None, None, None] for v in (centre, factors, bias))
    return (maps.astype(jnp.float32) - centre) * factors + bias


def resize(
    maps: Float[Array, "b h w c"], height: int, width: int, *, corners: bool
) -> Float[Array, "b height width c"]:
    """Returns maps enlarged bilinearly.

    Args:
        maps: what is enlarged.
        height: the rows of the result.
        width: the columns of the result.
        corners: whether the corner cells' centres stay in the corners (PyTorch's `align_corners`),
            rather than the cells' outlines.
    """
    if maps.shape[1:3] == (height, width):
        return maps
    down = jnp.asarray(interpolation(maps.shape[1], height, corners), maps.dtype)
    across = jnp.asarray(interpolation(maps.shape[2], width, corners), maps.dtype)
    return jnp.einsum("xw,bywc->byxc", across, jnp.einsum("yh,bhwc->bywc", down, maps))


def interpolation(cells: int, points: int, corners: bool) -> Float[np.ndarray, "points cells"]:
    """Returns the matrix that takes `cells` samples to `points` linearly interpolated ones."""
    if corners:
        where = np.arange(points) * ((cells - 1) / max(points - 1, 1))
    else:
        where = np.clip((np.arange(points) + 0.5) * (cells / points) - 0.5, 0, cells - 1)
    distances = np.abs(where[:, None] - np.arange(cells)[None])
    return np.maximum(0, 1 - distances).astype(np.float32)


def max_pool(
    maps: Float[Array, "b h w c"], *, shifted: bool | None = None
) -> Float[Array, "b oh ow c"]:
    """Returns the largest value of each 3 x 3 window, every second cell.

    Args:
        maps: what is pooled.
        shifted: by comparing shifted maps, first along rows and then along columns, so that of equal
            values the first takes the gradient, as it does otherwise; by default where there is no
            accelerator, for there XLA pulls its own back several times as slowly.
    """
    if shifted is None:
        shifted = jax.default_backend() == "cpu"
    if shifted:
        return _largest_of_three(_largest_of_three(maps, 2), 1)
    return lax.reduce_window(
        maps, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


def _largest_of_three(maps: Float[Array, "b h w c"], axis: int) -> Float[Array, "b oh ow c"]:
    """Returns the largest of each second cell and its neighbours along an axis."""
    last = maps.shape[axis] - (maps.shape[axis] - 1) % 2
    padding = [(0, 0)] * 4
    padding[axis] = (1, 1)
    padded = jnp.pad(maps, padding, constant_values=-jnp.inf)
    before, here, after = (lax.slice_in_dim(padded, i, i + last, 2, axis) for i in range(3))
    largest = before
    for cells in (here, after):
        # Not `maximum`, which would share the gradient of equals; a number that is none is kept.
        largest = jnp.where((cells > largest) | jnp.isnan(cells), cells, largest)
    return largest


def average_pool(maps: Float[Array, "b h w c"], stride: int) -> Float[Array, "b oh ow c"]:
    """Returns the means of 2 x 2 windows, every cell or every second.

    At stride 1 the last row and column repeat, so that the grid is kept and its even cells are those
    of stride 2.
    """
    if stride == 1:
        maps = jnp.pad(maps, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    height, width = maps.shape[1:3]
    rows, columns = (range(0, n - 1, stride) for n in (height, width))
    windows = [
        maps[:, i : rows[-1] + i + 1 : stride, j : columns[-1] + j + 1 : stride]
        for i in (0, 1)
        for j in (0, 1)
    ]
    return sum(windows[1:], windows[0]) / 4
