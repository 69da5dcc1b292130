"""Pooling with PyTorch's conventions, channels last."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
