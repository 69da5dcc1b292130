import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.random_walk import chebyshev, random_walk


def dense_walk(maps, boundaries, radius, beta, steps):
    """The walk as its definition has it: a dense transition matrix, raised to a power, in float64."""
    height, width = boundaries.shape
    cells = height * width
    affinity = np.eye(cells)
    for path in paths(radius):
        for y in range(height):
            for x in range(width):
                points = [(y + dy, x + dx) for dy, dx in path]
                if all(0 <= py < height and 0 <= px < width for py, px in points):
                    strongest = max(boundaries[p] for p in points)
                    here, there = y * width + x, points[0][0] * width + points[0][1]
                    affinity[here, there] = affinity[there, here] = 1 - strongest
    transition = affinity**beta
    transition /= transition.sum(0, keepdims=True)
    start = (maps * (1 - boundaries)[..., None]).reshape(cells, -1)
    walked = start.T @ np.linalg.matrix_power(transition, steps)
    return walked.T.reshape(maps.shape)


def grid(height=7, width=6, kinds=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((height, width, kinds)), generator.random((height, width)) * 0.9


@pytest.mark.parametrize("radius", [2, 3, 5])
@pytest.mark.parametrize("steps", [0, 1, 2, 8, 33, 256, 1024])
def test_walk_is_a_power_of_the_transition_matrix(radius, steps):
    maps, boundaries = grid()
    expected = dense_walk(maps, boundaries, radius, 4.0, steps)
    walked = random_walk(
        jnp.float32(maps)[None], jnp.float32(boundaries)[None], radius=radius, beta=4.0, steps=steps
    )
    np.testing.assert_allclose(walked[0], expected, atol=2e-6)


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 8, 64, 256, 1000])
def test_powers_are_sums_of_chebyshev_polynomials(steps):
    eigenvalues = np.linspace(-1, 1, 401)
    found = np.polynomial.chebyshev.chebval(eigenvalues, chebyshev(steps))
    np.testing.assert_allclose(found, eigenvalues**steps, atol=3e-8)
    assert chebyshev(steps).sum() == pytest.approx(1, abs=1e-15)


def test_many_steps_take_few_products():
    assert {steps: len(chebyshev(steps)) - 1 for steps in (1, 8, 256)} == {1: 1, 8: 8, 256: 90}


def test_a_flat_map_stays_flat():
    flat, boundaries = jnp.full((1, 9, 8, 2), 0.3), jnp.zeros((1, 9, 8))
    walked = random_walk(flat, boundaries, radius=4, beta=5.0, steps=256)
    np.testing.assert_allclose(walked, flat, rtol=2e-7)


@pytest.mark.parametrize("edges", [0.0, 0.5, 0.999])
def test_walk_stays_exact_where_it_mixes_fast_and_slowly(edges):
    maps, _ = grid(12, 10, 1)
    boundaries = np.where(np.indices((12, 10)).sum(0) % 4 == 0, edges, 0.02)
    expected = dense_walk(maps, boundaries, 4, 5.0, 256)
    walked = random_walk(
        jnp.float32(maps)[None], jnp.float32(boundaries)[None], radius=4, beta=5.0, steps=256
    )
    np.testing.assert_allclose(walked[0], expected, atol=2e-6)


def test_walk_on_three_cells_by_hand():
    # Cells in a row, no boundary: the ends see 2 cells, the middle sees 3, all alike.
    walked = random_walk(
        jnp.array([[[[6.0], [0.0], [0.0]]]]), jnp.zeros((1, 1, 3)), radius=2, beta=1.0, steps=1
    )
    np.testing.assert_allclose(walked[0, 0, :, 0], [3.0, 2.0, 0.0], atol=1e-6)


def test_a_wall_stops_the_walk():
    maps = jnp.zeros((1, 5, 5, 1)).at[0, :, 0, 0].set(1.0)
    boundaries = jnp.zeros((1, 5, 5)).at[0, :, 2].set(1.0)
    walked = random_walk(maps, boundaries, radius=4, beta=8.0, steps=64)
    assert float(walked[0, :, 3:].max()) == 0.0
    assert float(walked[0, :, :2].min()) > 0.1


def test_images_walk_alike_batched_and_one_by_one():
    images = [grid(seed=seed) for seed in range(3)]
    maps, boundaries = (jnp.float32(np.stack(arrays)) for arrays in zip(*images, strict=True))
    walks = [
        random_walk(maps, boundaries, radius=3, beta=5.0, steps=8, batched=batched)
        for batched in (True, False)
    ]
    np.testing.assert_allclose(*walks, atol=1e-6)


def test_walk_mirrors_with_its_image():
    maps, boundaries = grid()
    walk = jax.jit(lambda m, b: random_walk(m, b, radius=3, beta=5.0, steps=8))
    straight = walk(jnp.float32(maps)[None], jnp.float32(boundaries)[None])
    mirrored = walk(jnp.float32(maps)[None, :, ::-1], jnp.float32(boundaries)[None, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :, ::-1], straight, atol=1e-6)
