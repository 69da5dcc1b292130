import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.pseudolabels.affinity import affinities, pair_losses, paths


def test_paths_run_from_the_neighbour_to_the_origin():
    assert {path[0] for path in paths(2)} == {(0, 1), (1, -1), (1, 0), (1, 1)}
    assert [len(paths(radius)) for radius in (3, 5, 10)] == [12, 34, 152]
    for path in paths(5):
        assert path[-1] == (0, 0)
        assert len(set(path)) == len(path)


def test_affinity_is_one_minus_the_greatest_boundary_on_the_path():
    boundaries = np.zeros((1, 4, 4), np.float32)
    boundaries[0, 1, 1] = 0.25
    found = affinities(jnp.asarray(boundaries), 3)
    across = [path[0] for path in paths(3)].index((0, 2))
    assert float(found[across, 0, 1, 0]) == 0.75
    assert float(found[across, 0, 0, 0]) == 1.0
    assert float(found[across, 0, 0, 3]) == 0.0  # its neighbour lies beyond the border


def slow_terms(edge_logits, displacements, labels, radius):
    """IRNet's loss terms pair by pair, in float64."""
    boundaries = 1 / (1 + np.exp(-edge_logits.astype(np.float64)))
    height, width, kinds = labels.shape
    reach, sums = radius - 1, np.zeros((8, kinds))
    for path in paths(radius):
        dy, dx = path[0]
        for y in range(height - reach):
            for x in range(reach, width - reach):
                affinity = 1 - max(boundaries[y + py, x + px] for py, px in path)
                moved = displacements[y, x] - displacements[y + dy, x + dx]
                for k in range(kinds):
                    pair = {int(labels[y, x, k]), int(labels[y + dy, x + dx, k])}
                    if pair == {0}:
                        sums[0, k] -= np.log(affinity + 1e-5)
                        sums[4, k] += np.abs(moved).sum()
                        sums[5, k] += 1
                    elif pair == {1}:
                        sums[1, k] -= np.log(affinity + 1e-5)
                        sums[3, k] += np.abs(moved - [dy, dx]).sum()
                        sums[6, k] += 1
                    elif pair == {0, 1}:
                        sums[2, k] -= np.log(1 + 1e-5 - affinity)
                        sums[7, k] += 1
    return sums


def test_loss_terms_pair_by_pair():
    generator = np.random.default_rng(1)
    edges = generator.normal(size=(8, 9)).astype(np.float32)
    shifts = generator.normal(size=(8, 9, 2)).astype(np.float32)
    labels = generator.choice([-1, 0, 1, 255], size=(8, 9, 2))
    sums = slow_terms(edges, shifts, labels, 4)
    found = pair_losses(*(jnp.asarray(v)[None] for v in (edges, shifts, labels)), 4)
    for row, name in enumerate(("background_pairs", "foreground_pairs", "boundary_pairs"), start=5):
        np.testing.assert_array_equal(found[name], sums[row])
    background, foreground, differ = sums[5:]
    expected = {
        "background": sums[0] / background,
        "foreground": sums[1] / foreground,
        "boundary": sums[2] / differ,
        "foreground_displacement": sums[3] / (2 * foreground),
        "background_displacement": sums[4] / (2 * background),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    total = (
        (expected["background"] + expected["foreground"]) / 2
        + expected["boundary"]
        + expected["foreground_displacement"]
        + expected["background_displacement"]
    ) / 2
    np.testing.assert_allclose(found["total"], total, rtol=1e-5)


def test_no_pairs_no_loss_and_no_nan():
    labels = jnp.full((1, 8, 8, 1), -1)
    terms = pair_losses(jnp.zeros((1, 8, 8)), jnp.zeros((1, 8, 8, 2)), labels, 3)
    assert float(terms["total"][0]) == 0.0


def test_a_grid_too_small_for_the_radius_is_refused():
    labels = jnp.zeros((1, 8, 8, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"8, 8.*radius 10"):
        pair_losses(jnp.zeros((1, 8, 8)), jnp.zeros((1, 8, 8, 2)), labels, 10)


def test_the_boundary_terms_do_not_depend_on_displacements():
    generator = np.random.default_rng(5)
    edges, labels = generator.normal(size=(2, 9, 9)), generator.integers(-1, 2, (2, 9, 9, 3))
    edges, labels = jnp.asarray(edges, jnp.float32), jnp.asarray(labels)
    shifts = jnp.asarray(generator.normal(size=(2, 9, 9, 2)), jnp.float32)
    both, alone = pair_losses(edges, shifts, labels, 4), pair_losses(edges, None, labels, 4)
    for name in ("background", "foreground", "boundary", "boundary_pairs"):
        np.testing.assert_array_equal(both[name], alone[name])
    rest = (both["foreground_displacement"] + both["background_displacement"]) / 2
    np.testing.assert_allclose(alone["total"], both["total"] - rest, rtol=1e-5)

    def gradient(shifts):
        return jax.grad(lambda e: pair_losses(e, shifts, labels, 4)["total"].sum())(edges)

    np.testing.assert_allclose(gradient(shifts), gradient(None), rtol=1e-5, atol=1e-7)
