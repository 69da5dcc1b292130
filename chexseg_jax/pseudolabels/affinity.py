"""Affinities between neighbouring cells, and IRNet's losses on pairs of seeds.

The affinity of two cells is 1 minus the maximum boundary probability on the straight path between them
(IRNet, Ahn et al. 2019, eq. 3).
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Offset = tuple[int, int]


@lru_cache
def paths(radius: int) -> tuple[tuple[Offset, ...], ...]:
    """List the paths to every neighbour (dy, dx) within `radius`, in one half-plane.

    A path holds the lattice points less than one cell from the straight line, from the neighbour back to
    the origin. Shorter paths come first.
    """
    reach = range(1 - radius, radius)
    neighbours = [(0, x) for x in range(1, radius)]
    neighbours += [(y, x) for y in range(1, radius) for x in reach if x * x + y * y < radius**2]
    result = []
    for dy, dx in neighbours:
        box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
        near = [p for p in box if (dy * p[1] - dx * p[0]) ** 2 < dy * dy + dx * dx]
        result.append(tuple(sorted(near, key=lambda p: -(abs(p[0]) + abs(p[1])))))
    return tuple(sorted(result, key=len))


def _path_table(radius: int) -> Int[np.ndarray, "p l 2"]:
    """Return the paths as one array, padded with the origin, which leaves the maximum unchanged."""
    longest = max(map(len, paths(radius)))
    return np.array(
        [[*path, *[(0, 0)] * (longest - len(path))] for path in paths(radius)], np.int32
    )


def _window(
    grid: Float[Array, "b h w"], dy: Int[Array, ""] | int, dx: Int[Array, ""] | int, size: Offset
) -> Float[Array, "b sh sw"]:
    """Slice `size` cells of a grid from row dy and column dx."""
    return jax.lax.dynamic_slice(grid, (0, dy, dx), (grid.shape[0], *size))


def _path_affinities(
    boundaries: Float[Array, "b h w"], path: Int[Array, "l 2"], start: Offset, size: Offset
) -> Float[Array, "b sh sw"]:
    """Compute 1 - the maximum boundary on one path, for each origin in a window of the grid."""

    def along(maximum: Float[Array, "b sh sw"], step: Int[Array, "2"]):
        boundary = _window(boundaries, start[0] + step[0], start[1] + step[1], size)
        return jnp.maximum(maximum, boundary), None

    # Starts from the first cell: a tie with a constant would share the gradient.
    first = _window(boundaries, start[0] + path[0, 0], start[1] + path[0, 1], size)
    maximum, _ = jax.lax.scan(along, first, path[1:])
    return 1 - maximum


def affinities(boundaries: Float[Array, "b h w"], radius: int) -> Float[Array, "p b h w"]:
    """Compute the affinity of each cell to each neighbour of `paths(radius)`; 0 outside the grid."""
    reach, size = radius - 1, (boundaries.shape[1], boundaries.shape[2])
    padded = jnp.pad(boundaries, ((0, 0), (0, reach), (reach, reach)), constant_values=1)
    return jax.lax.map(
        lambda path: _path_affinities(padded, path, (0, reach), size),
        jnp.asarray(_path_table(radius)),
    )


def pair_losses(
    edge_logits: Float[Array, "b h w"],
    displacements: Float[Array, "b h w 2"] | None,
    labels: Int[Array, "b h w k"],
    radius: int,
) -> dict[str, Float[Array, "k"]]:
    """Compute IRNet's loss for each pathology, its five terms and three pair counts (its eq. 4-8).

    Labels are 1 foreground, 0 background, anything else ignored; a pair with an ignored end is not
    counted. A scan over the neighbours sums the terms, so that pair labels and affinities of one
    neighbour are in memory at a time. As in the release, pairs start from cells whose whole half-disc
    lies on the grid. Each term is a sum over the batch divided by its number of pairs. Without
    displacements their two terms are zero; the others do not depend on them.
    """
    reach = radius - 1
    start, size = (0, reach), (labels.shape[1] - reach, labels.shape[2] - 2 * reach)
    if min(size) < 1:
        raise ValueError(f"a grid of {labels.shape[1:3]} cells has no pairs within radius {radius}")
    boundaries = jax.nn.sigmoid(edge_logits)
    source = jax.lax.dynamic_slice(
        labels, (0, *start, 0), (labels.shape[0], *size, labels.shape[3])
    )
    total = lambda cost, pairs: jnp.einsum("bhw,bhwk->k", cost, pairs)  # noqa: E731

    def displacement_costs(
        path: Int[Array, "l 2"], pairs: tuple[Float[Array, "b sh sw k"], Float[Array, "b sh sw k"]]
    ) -> list[Float[Array, "k"]]:
        if displacements is None:
            return [jnp.zeros(labels.shape[-1])] * 2
        window = (labels.shape[0], *size, 2)
        origin = jax.lax.dynamic_slice(displacements, (0, *start, 0), window)
        corner = (0, start[0] + path[0, 0], start[1] + path[0, 1], 0)
        moved = origin - jax.lax.dynamic_slice(displacements, corner, window)
        off_target = jnp.abs(moved - path[0].astype(moved.dtype)[None, None, None])
        return [total(off_target.sum(-1), pairs[0]), total(jnp.abs(moved).sum(-1), pairs[1])]

    def add_neighbour(sums: Float[Array, "8 k"], path: Int[Array, "l 2"]):
        dy, dx = path[0, 0], path[0, 1]
        corner = (0, start[0] + dy, start[1] + dx, 0)
        target = jax.lax.dynamic_slice(labels, corner, source.shape)
        foreground = ((source == 1) & (target == 1)).astype(jnp.float32)
        background = ((source == 0) & (target == 0)).astype(jnp.float32)
        differ = ((source == 1) & (target == 0)) | ((source == 0) & (target == 1))
        differ = differ.astype(jnp.float32)

        affinity = _path_affinities(boundaries, path, start, size)
        same_cost, differ_cost = -jnp.log(affinity + 1e-5), -jnp.log(1 + 1e-5 - affinity)
        terms = [
            total(same_cost, background),
            total(same_cost, foreground),
            total(differ_cost, differ),
            *displacement_costs(path, (foreground, background)),
            *(pairs.sum((0, 1, 2)) for pairs in (background, foreground, differ)),
        ]
        return sums + jnp.stack(terms), None

    zeros = jnp.zeros((8, labels.shape[-1]), jnp.float32)
    sums, _ = jax.lax.scan(jax.checkpoint(add_neighbour), zeros, jnp.asarray(_path_table(radius)))
    background_pairs, foreground_pairs, differ_pairs = sums[5:]
    terms = {
        "background": sums[0] / (background_pairs + 1e-5),
        "foreground": sums[1] / (foreground_pairs + 1e-5),
        "boundary": sums[2] / (differ_pairs + 1e-5),
        "foreground_displacement": sums[3] / (2 * foreground_pairs + 1e-5),
        "background_displacement": sums[4] / (2 * background_pairs + 1e-5),
        "background_pairs": background_pairs,
        "foreground_pairs": foreground_pairs,
        "boundary_pairs": differ_pairs,
    }
    boundary = (terms["background"] + terms["foreground"]) / 2 + terms["boundary"]
    displacement = terms["foreground_displacement"] + terms["background_displacement"]
    return {**terms, "total": (boundary + displacement) / 2}
