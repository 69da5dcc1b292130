"""Random walk: propagate maps by powers of a sparse transition matrix built from boundaries.

The matrix is symmetric up to its normalization and is stored by its diagonals, one plane of affinities
for each neighbour offset of a half-plane; a product is a weighted sum of shifted maps. IRNet and the
release square the dense N x N matrix t times for 2^t steps. Here fewer products than steps are needed:
the power x^n is a sum of Chebyshev polynomials with binomial weights, which vanish beyond a few standard
deviations.
"""

from collections.abc import Callable
from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chexseg_jax.pseudolabels.affinity import affinities, paths
from chexseg_jax.runtime.cpu import by_platform

NEGLIGIBLE = 1e-8
"""The total weight of the last polynomials that may be left out."""


def chebyshev(steps: int) -> Float[np.ndarray, "n"]:
    """Compute the weights c of x^steps = sum_j c_j T_j(x), up to the last that is not negligible.

    As |T_j| <= 1 on [-1, 1], where the eigenvalues lie, truncation changes a map by less than
    `NEGLIGIBLE` in the norm that weighs each cell by its degree. 256 steps need 90 products, 8 need 8.
    """
    weights = np.zeros(steps + 1)
    for j in range(steps % 2, steps + 1, 2):  # T_j and x^n are both odd, or both even
        weights[j] = comb(steps, (steps - j) // 2) / 2 ** (steps - 1 if j else steps)
    tails = np.cumsum(weights[::-1])[::-1]
    truncated = weights[: np.flatnonzero(tails > NEGLIGIBLE)[-1] + 1]
    return truncated / truncated.sum()  # so that a constant map is a fixed point


def random_walk(
    maps: Float[Array, "b h w k"],
    boundaries: Float[Array, "b h w"],
    *,
    radius: int,
    beta: float,
    steps: int,
    batched: bool | None = None,
) -> Float[Array, "b h w k"]:
    """Propagate maps by `steps` steps of a random walk.

    The transition matrix is T = A^beta with normalized columns (IRNet, eq. 9), and the walk starts from
    the maps times 1 - boundaries. `steps` is a power of two in IRNet (256) and in CheXseg (8); here it
    is any number. Products are computed as differences of neighbours, T x - x = sum_k w_k (x_k - x), so
    that weights need not sum to one in float32 and 256 steps stay exact to 1e-5.

    Args:
        maps: to propagate.
        boundaries: boundary probabilities.
        radius: of a step, in cells.
        beta: the exponent of the affinities.
        steps: of the walk.
        batched: whether to walk all images at once rather than one by one; by default on every platform
            but CPUs.
    """
    walk = partial(_walk, radius=radius, beta=beta, steps=steps)
    if batched is not None:
        return walk(maps, boundaries) if batched else _image_by_image(walk, maps, boundaries)
    return by_platform(maps, boundaries, cpu=partial(_image_by_image, walk), default=walk)


def _image_by_image(
    walk: Callable[..., Float[Array, "b h w k"]],
    maps: Float[Array, "b h w k"],
    boundaries: Float[Array, "b h w"],
) -> Float[Array, "b h w k"]:
    """Walk one image at a time, whose affinities fit into a CPU's cache."""
    return jax.lax.map(lambda image: walk(*image), (maps[:, None], boundaries[:, None]))[:, 0]


def _walk(
    maps: Float[Array, "b h w k"],
    boundaries: Float[Array, "b h w"],
    *,
    radius: int,
    beta: float,
    steps: int,
) -> Float[Array, "b h w k"]:
    height, width = boundaries.shape[1:]
    reach = radius - 1
    offsets = [path[0] for path in paths(radius)]
    padding = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    affinity = jnp.pad(affinities(boundaries, radius) ** beta, padding)

    def shifted(padded: Float[Array, "*b fh fw"], dy: int, dx: int) -> Float[Array, "*b h w"]:
        top, left = reach + dy, reach + dx
        return padded[..., top : top + height, left : left + width]

    # Each cell to its neighbour ahead, and, by symmetry, the neighbour behind to it.
    pairs = [
        (offset, shifted(plane, 0, 0), shifted(plane, -offset[0], -offset[1]))
        for offset, plane in zip(offsets, affinity, strict=True)
    ]
    degrees = jnp.ones_like(boundaries)  # of the cell itself
    for _, ahead, behind in pairs:
        degrees += ahead + behind

    def laplacian(x: Float[Array, "b k h w"]) -> Float[Array, "b k h w"]:
        """Compute T x - x."""
        padded, change = jnp.pad(x, padding), jnp.zeros_like(x)
        for (dy, dx), ahead, behind in pairs:
            change += ahead[:, None] * (shifted(padded, dy, dx) - x)
            change += behind[:, None] * (shifted(padded, -dy, -dx) - x)
        return change / degrees[:, None]

    weights = jnp.asarray(np.pad(chebyshev(steps), (0, 2)), maps.dtype)

    def chebyshev_step(j, state):
        """Apply T_(j+1) - T_j = T_j - T_(j-1) + 2 (T - 1) T_j, the recurrence in differences."""
        term, change, total = state
        change += 2 * laplacian(term)
        return term + change, change, total + weights[j + 1] * (term + change)

    x = (maps * (1 - boundaries)[..., None]).transpose(0, 3, 1, 2)
    change = laplacian(x)
    start = (x + change, change, weights[0] * x + weights[1] * (x + change))
    _, _, result = jax.lax.fori_loop(1, weights.size - 3, chebyshev_step, start)
    return result.transpose(0, 2, 3, 1)
