import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import Cams
from chexseg_jax.models.pooling import Pooling
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
    assert bool(jnp.isfinite(upsample_cams(cams, jnp.ones((1, 8, 8), bool))).all())


def test_enlarging_keeps_a_constant_map_and_its_place():
    cams = jnp.ones((1, 2, 2, 1)).at[0, 0, 0, 0].set(2.0)
    larger = upsample_cams(cams, jnp.ones((1, 8, 8), bool))
    assert larger.shape == (1, 8, 8, 1)
    assert float(larger[0, 0, 0, 0]) == 1.0
    np.testing.assert_allclose(larger[0, 7, 7, 0], 0.5, atol=1e-6)


def test_a_peak_in_the_padding_counts_for_nothing():
    content = jnp.zeros((1, 16, 16), bool).at[:, 8:].set(True)
    cams = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(10.0).at[0, 2, 2, 0].set(1.0)
    maps = upsample_cams(cams, content)
    assert float(maps.max()) == 1.0 and not bool(maps[~content].any())
    peak = np.unravel_index(int(maps[0, ..., 0].argmax()), (16, 16))
    assert peak[0] >= 8 and peak[1] >= 8


class Cells(nnx.Module):
    """A classifier whose only feature is brightness, at stride 8; every output is its logit."""

    def features(self, images, *, train=False):
        b, h, w, _ = images.shape
        return images[..., :1].reshape(b, h // 8, 8, w // 8, 8, 1).mean((2, 4))

    def cell_logits(self, features):
        return jnp.repeat(features, 14, -1)

    def classify(self, features, content=None):
        return Pooling("lse", 5.0)(features, lambda maps: jnp.repeat(maps, 14, -1), content)


@pytest.mark.parametrize("kind", ["grad-cam", "cell-probability"])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0)])
def test_maps_of_every_kind_peak_where_the_evidence_is_and_never_in_the_padding(kind, scales):
    images = np.zeros((1, 32, 32, 1), np.uint8)
    images[0, :, 8:24] = 60
    images[0, 8:16, 16:24] = 250
    # Inverted, so that the black padding is the brightest feature.
    inverted = Normalization((1.0,) * 3, (-1.0,) * 3)
    cams, logits = Cams(inverted, kind, scales)(Cells(), jnp.asarray(images))
    assert cams.shape == (1, 4 * int(max(scales)), 4 * int(max(scales)), 10)
    assert logits.shape == (1, 10)
    assert float(cams.max()) == 1.0
    quarter = cams.shape[2] // 4
    assert not bool(cams[:, :, :quarter].any()) and not bool(cams[:, :, -quarter:].any())
    lit = cams[0, quarter : 2 * quarter, 2 * quarter : 3 * quarter, 0]
    dark = cams[0, 2 * quarter :, quarter : 2 * quarter, 0]
    assert float(lit.max()) < float(dark.min())
