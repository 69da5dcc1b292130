import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.models.pooling import GAP, Pooling

MAPS = jax.random.uniform(jax.random.key(0), (2, 3, 4, 5))
KERNEL = jax.random.normal(jax.random.key(1), (5, 6))


def head(maps):
    return maps @ KERNEL


def test_the_mean_of_the_features_is_densenets():
    np.testing.assert_allclose(GAP(MAPS, head), MAPS.mean((1, 2)) @ KERNEL, rtol=1e-6)


def test_log_sum_exp_by_hand():
    maps = jnp.log(jnp.array([1.0, 2.0, 3.0, 6.0])).reshape(1, 2, 2, 1)
    found = Pooling("lse", 1.0)(maps, lambda m: m)
    np.testing.assert_allclose(found, [[np.log(12 / 4)]], rtol=1e-6)
    weighted = Pooling("lse", 1.0)(maps, lambda m: m, jnp.array([[[1.0, 0.0], [0.5, 0.0]]]))
    np.testing.assert_allclose(weighted, [[np.log((1 + 0.5 * 3) / 1.5)]], rtol=1e-6)


def test_sharpness_goes_from_the_mean_to_the_maximum():
    cells = head(MAPS)
    soft, sharp = (Pooling("lse", r)(MAPS, head) for r in (1e-3, 1e3))
    np.testing.assert_allclose(soft, cells.mean((1, 2)), atol=1e-2)
    np.testing.assert_allclose(sharp, cells.max((1, 2)), atol=1e-2)


def test_padding_and_an_image_without_content():
    content = jnp.zeros((2, 3, 4)).at[0, 1, 2].set(0.25)
    found = Pooling("lse")(MAPS, head, content)
    np.testing.assert_allclose(found[0], head(MAPS)[0, 1, 2], rtol=1e-5)
    np.testing.assert_allclose(found[1], Pooling("lse")(MAPS, head)[1], rtol=1e-6)


def test_large_logits_and_their_gradients_are_finite():
    def loss(maps):
        return Pooling("lse", 10.0)(maps, head, jnp.ones((2, 3, 4)).at[:, 0].set(0)).sum()

    value, gradient = jax.value_and_grad(loss)(1e4 * MAPS)
    assert bool(jnp.isfinite(value)) and bool(jnp.isfinite(gradient).all())
    assert not bool(gradient[:, 0].any())


def test_a_sharpness_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        Pooling("lse", 0.0)
