"""The random walk: a jitted loop of sparse matrix products that spreads maps until boundaries stop them.

The transition matrix is never built. It is stored by its diagonals, one plane of affinities for each
neighbour offset of a half-plane, as an affinity is the same seen from either end; a product is a
weighted sum of shifted maps. IRNet and the release square the whole matrix t times, N x N numbers, for
2^t steps. Here fewer products than steps are needed: the power x^n is a sum of Chebyshev polynomials
whose weights are the binomial distribution's, and beyond a few standard deviations they vanish.
"""

from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chexseg_jax.pseudolabels.affinity import affinities, paths

NEGLIGIBLE = 1e-8
"""The share of a power that its last polynomials may have, to be left out."""


def chebyshev(steps: int) -> Float[np.ndarray, "n"]:
    """Returns the weights c of x^steps = sum_j c_j T_j(x), up to the last that is not negligible.

    As |T_j| <= 1 on [-1, 1], where the walk's eigenvalues lie, what is left out changes a walked map
    by less than `NEGLIGIBLE` in the norm that weighs each cell by its degree. 256 steps need 90
    products, 8 need 8.
    """
    weights = np.zeros(steps + 1)
    for j in range(steps % 2, steps + 1, 2):  # T_j and x^n are both odd, or both even
        weights[j] = comb(steps, (steps - j) // 2) / 2 ** (steps - 1 if j else steps)
    beyond = np.cumsum(weights[::-1])[::-1]
    kept = weights[: np.flatnonzero(beyond > NEGLIGIBLE)[-1] + 1]
    return kept / kept.sum()  # so that a flat map stays as it is


def random_walk(
    maps: Float[Array, "b h w k"],
    bounds: Float[Array, "b h w"],
    *,
    radius: int,
    beta: float,
    steps: int,
    together: bool | None = None,
) -> Float[Array, "b h w k"]:
    """Returns maps spread by `steps` steps of a random walk that boundaries hold back.

    The walk is T = A^beta with its columns normalised (IRNet, eq. 9), and starts from the maps where
    there is no boundary. `steps` is a power of two in the release (256 there, 8 in CheXseg); any
    number will do here. Only differences of neighbours are ever weighted, T x - x =
    sum_k w_k (x_k - x): the weights then need not add up to one in float32, and 256 steps stay
    exact to 1e-5.

    Args:
        maps: what is spread.
        bounds: where the walk is held back, in [0, 1].
        radius: of a step, in cells.
        beta: how sharply unlike neighbours are told from like ones.
        steps: of the walk.
        together: all images in one product rather than one image after the other; by default where
            there is an accelerator to fill, for a CPU's cache holds the affinities of one image.
    """
    if together is None:
        together = jax.default_backend() != "cpu"
    if not together:
        walk = partial(random_walk, radius=radius, beta=beta, steps=steps, together=True)
        return jax.lax.map(lambda image: walk(*image), (maps[:, None], bounds[:, None]))[:, 0]
    height, width = bounds.shape[1:]
    reach = radius - 1
    offsets = [path[0] for path in paths(radius)]
    frame = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    alike = jnp.pad(affinities(bounds, radius) ** beta, frame)

    def shifted(framed: Float[Array, "*b fh fw"], dy: int, dx: int) -> Float[Array, "*b h w"]:
        top, left = reach + dy, reach + dx
        return framed[..., top : top + height, left : left + width]

    # From each cell to the neighbours ahead, and from those behind to it, which is the same number.
    pairs = [
        (offset, shifted(plane, 0, 0), shifted(plane, -offset[0], -offset[1]))
        for offset, plane in zip(offsets, alike, strict=True)
    ]
    degrees = jnp.ones_like(bounds)  # the cell itself counts 1
    for _, ahead, behind in pairs:
        degrees += ahead + behind

    def drift(flat: Float[Array, "b k h w"]) -> Float[Array, "b k h w"]:
        """Returns T x - x."""
        framed, change = jnp.pad(flat, frame), jnp.zeros_like(flat)
        for (dy, dx), ahead, behind in pairs:
            change += ahead[:, None] * (shifted(framed, dy, dx) - flat)
            change += behind[:, None] * (shifted(framed, -dy, -dx) - flat)
        return change / degrees[:, None]

    weights = jnp.asarray(np.pad(chebyshev(steps), (0, 2)), maps.dtype)

    def climb(j, state):
        """T_(j+1) - T_j = T_j - T_(j-1) + 2 (T - 1) T_j, the recurrence in differences."""
        here, change, total = state
        change += 2 * drift(here)
        return here + change, change, total + weights[j + 1] * (here + change)

    flat = (maps * (1 - bounds)[..., None]).transpose(0, 3, 1, 2)
    change = drift(flat)
    start = (flat + change, change, weights[0] * flat + weights[1] * (flat + change))
    _, _, walked = jax.lax.fori_loop(1, weights.size - 3, climb, start)
    return walked.transpose(0, 2, 3, 1)
