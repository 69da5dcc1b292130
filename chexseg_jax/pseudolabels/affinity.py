"""Affinities between neighbouring cells, and the losses that teach them.

Two cells are alike unless a boundary crosses the straight path between them (IRNet, Ahn et al. 2019,
eq. 3).
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Offset = tuple[int, int]


@lru_cache
def paths(radius: int) -> tuple[tuple[Offset, ...], ...]:
    """Returns the paths to every neighbour (dy, dx) within `radius`, in one half-plane.

    A path holds the lattice points less than one cell from the straight line, from the neighbour,
    which comes first, back to the origin, which comes last. Shorter paths come first.
    """
    reach = range(1 - radius, radius)
    neighbours = [(0, x) for x in range(1, radius)]
    neighbours += [(y, x) for y in range(1, radius) for x in reach if x * x + y * y < radius**2]
    found = []
    for dy, dx in neighbours:
        box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
        near = [p for p in box if (dy * p[1] - dx * p[0]) ** 2 < dy * dy + dx * dx]
        found.append(tuple(sorted(near, key=lambda p: -(abs(p[0]) + abs(p[1])))))
    return tuple(sorted(found, key=len))


def _path_table(radius: int) -> Int[np.ndarray, "p l 2"]:
    """Returns the paths as one array, short ones filled up with the origin, which changes no maximum."""
    every = paths(radius)
    longest = max(map(len, every))
    return np.array([[*path, *[(0, 0)] * (longest - len(path))] for path in every], np.int32)


def _window(
    grid: Float[Array, "b h w"], dy: Int[Array, ""] | int, dx: Int[Array, ""] | int, size: Offset
) -> Float[Array, "b sh sw"]:
    """Returns the `size` cells of a grid that start at row dy and column dx."""
    return jax.lax.dynamic_slice(grid, (0, dy, dx), (grid.shape[0], *size))


def _path_affinities(
    bounds: Float[Array, "b h w"], path: Int[Array, "l 2"], start: Offset, size: Offset
) -> Float[Array, "b sh sw"]:
    """Returns 1 - the greatest boundary on one path, for each origin in a window of the grid."""

    def along(greatest: Float[Array, "b sh sw"], step: Int[Array, "2"]):
        crossed = _window(bounds, start[0] + step[0], start[1] + step[1], size)
        return jnp.maximum(greatest, crossed), None

    # The first step is the maximum's start, so that a tie with a constant never takes gradient.
    first = _window(bounds, start[0] + path[0, 0], start[1] + path[0, 1], size)
    greatest, _ = jax.lax.scan(along, first, path[1:])
    return 1 - greatest


def affinities(bounds: Float[Array, "b h w"], radius: int) -> Float[Array, "p b h w"]:
    """Returns the affinity of each cell to each neighbour of `paths(radius)`; 0 beyond the border."""
    reach, size = radius - 1, (bounds.shape[1], bounds.shape[2])
    framed = jnp.pad(
        bounds, ((0, 0), (0, reach), (reach, reach)), constant_values=1
    )  # a wall: nothing is alike across it
    one = lambda path: _path_affinities(framed, path, (0, reach), size)  # noqa: E731
    return jax.lax.map(one, jnp.asarray(_path_table(radius)))


def pair_losses(
    edge_logits: Float[Array, "b h w"],
    displacements: Float[Array, "b h w 2"],
    labels: Int[Array, "b h w k"],
    radius: int,
) -> dict[str, Float[Array, "k"]]:
    """Returns IRNet's loss for each pathology, its five terms and three pair counts (its eq. 4-8).

    Labels are 1 disease, 0 background, anything else unsure; a pair counts if both its ends are sure.
    A scan over the neighbours adds up the terms: neither pair labels nor affinities are ever stored
    for more than one neighbour. As in the release, pairs start from cells whose whole half-disc lies
    on the grid. Each term is a sum over the batch divided by its number of pairs.
    """
    reach = radius - 1
    start, size = (0, reach), (labels.shape[1] - reach, labels.shape[2] - 2 * reach)
    if min(size) < 1:
        raise ValueError(f"a grid of {labels.shape[1:3]} cells has no pairs within radius {radius}")
    bounds = jax.nn.sigmoid(edge_logits)
    here = jax.lax.dynamic_slice(labels, (0, *start, 0), (labels.shape[0], *size, labels.shape[3]))
    origin = jax.lax.dynamic_slice(
        displacements, (0, *start, 0), (labels.shape[0], *size, displacements.shape[3])
    )

    def one(sums: Float[Array, "8 k"], path: Int[Array, "l 2"]):
        dy, dx = path[0, 0], path[0, 1]
        corner = (0, start[0] + dy, start[1] + dx, 0)
        there = jax.lax.dynamic_slice(labels, corner, here.shape)
        disease = ((here == 1) & (there == 1)).astype(jnp.float32)
        ground = ((here == 0) & (there == 0)).astype(jnp.float32)
        differ = ((here == 1) & (there == 0)) | ((here == 0) & (there == 1))
        differ = differ.astype(jnp.float32)

        alike = _path_affinities(bounds, path, start, size)
        same_cost, other_cost = -jnp.log(alike + 1e-5), -jnp.log(1 + 1e-5 - alike)
        moved = origin - jax.lax.dynamic_slice(displacements, corner, origin.shape)
        off_target = jnp.abs(moved - jnp.stack([dy, dx]).astype(moved.dtype)[None, None, None])
        total = lambda cost, pairs: jnp.einsum("bhw,bhwk->k", cost, pairs)  # noqa: E731
        terms = [
            total(same_cost, ground),
            total(same_cost, disease),
            total(other_cost, differ),
            total(off_target.sum(-1), disease),
            total(jnp.abs(moved).sum(-1), ground),
            *(pairs.sum((0, 1, 2)) for pairs in (ground, disease, differ)),
        ]
        return sums + jnp.stack(terms), None

    zeros = jnp.zeros((8, labels.shape[-1]), jnp.float32)
    sums, _ = jax.lax.scan(jax.checkpoint(one), zeros, jnp.asarray(_path_table(radius)))
    ground_pairs, disease_pairs, differ_pairs = sums[5:]
    terms = {
        "background": sums[0] / (ground_pairs + 1e-5),
        "disease": sums[1] / (disease_pairs + 1e-5),
        "boundary": sums[2] / (differ_pairs + 1e-5),
        "disease_displacement": sums[3] / (2 * disease_pairs + 1e-5),
        "background_displacement": sums[4] / (2 * ground_pairs + 1e-5),
        "background_pairs": ground_pairs,
        "disease_pairs": disease_pairs,
        "boundary_pairs": differ_pairs,
    }
    alike = (terms["background"] + terms["disease"]) / 2 + terms["boundary"]
    moved = terms["disease_displacement"] + terms["background_displacement"]
    return {**terms, "total": (alike + moved) / 2}
