import jax
import jax.numpy as jnp
import numpy as np

from chexseg_jax.pseudolabels.gradcam import grad_cam, normalize_cams, upsample_cams


def head(seed=0, channels=5, outputs=4):
    kernel = jax.random.normal(jax.random.key(seed), (channels, outputs))

    def classify(features):
        return jax.nn.relu(features).mean((1, 2)) @ kernel

    return kernel, classify


def test_equals_one_gradient_per_class():
    features = jax.random.normal(jax.random.key(1), (2, 3, 4, 5))
    _, classify = head()
    cams, logits = grad_cam(features, classify)
    np.testing.assert_allclose(logits, classify(features), rtol=1e-6)
    for k in range(4):
        gradients = jax.grad(lambda f, k=k: classify(f)[:, k].sum())(features)
        weights = gradients.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(
            cams[..., k], jax.nn.relu((weights * features).sum(-1)), atol=1e-6
        )


def test_behind_plain_pooling_it_is_the_class_activation_map():
    features = jax.random.normal(jax.random.key(2), (2, 3, 4, 5))
    kernel = jax.random.normal(jax.random.key(3), (5, 4))
    cams, _ = grad_cam(features, lambda maps: maps.mean((1, 2)) @ kernel)
    np.testing.assert_allclose(cams, jax.nn.relu(features @ kernel) / 12, atol=1e-6)


def test_chosen_outputs_are_the_same_maps():
    features = jax.random.normal(jax.random.key(4), (1, 3, 3, 5))
    _, classify = head()
    every, _ = grad_cam(features, classify)
    some, _ = grad_cam(features, classify, [3, 1])
    np.testing.assert_array_equal(some, every[..., jnp.array([3, 1])])


def test_a_map_of_zeros_stays_zero():
    cams = jnp.zeros((1, 2, 2, 2)).at[0, 0, 1, 0].set(4.0)
    scaled = normalize_cams(cams)
    assert float(scaled[0, 0, 1, 0]) == 1.0
    assert float(scaled[..., 1].max()) == 0.0
    assert bool(jnp.isfinite(upsample_cams(cams, 8)).all())


def test_enlarging_keeps_a_constant_map_and_its_place():
    cams = jnp.ones((1, 2, 2, 1)).at[0, 0, 0, 0].set(2.0)
    larger = upsample_cams(cams, 8)
    assert larger.shape == (1, 8, 8, 1)
    assert float(larger[0, 0, 0, 0]) == 1.0
    np.testing.assert_allclose(larger[0, 7, 7, 0], 0.5, atol=1e-6)
