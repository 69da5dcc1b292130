"""DeepLabV3+: its size, its dropout, and the composition of its modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.models.deeplab import DeepLabV3Plus, Pyramid
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.layers import resize
from chexseg_jax.models.resnet import ResNet


def images(count=2, height=64, width=96):
    pixels = np.random.default_rng(0).normal(size=(count, height, width, 3))
    return jnp.asarray(pixels.astype(np.float32))


@jax.jit
def segment(model, images):
    return model(images)


@pytest.fixture
def model():
    backbone = ResNet(3, blocks=(1, 1, 1, 1), width=8, output_stride=16, rngs=nnx.Rngs(0))
    return DeepLabV3Plus(backbone, outputs=4, width=16, low_level=6, rngs=nnx.Rngs(1))


def test_logits_are_the_composition_of_the_modules(model):
    @jax.jit
    def by_parts(model):
        _, fine, _, _, coarse = model.backbone.stages(images())
        pyramid = model.pyramid
        levels = [level(coarse, train=False) for level in pyramid.levels]
        pooled = pyramid.pool(coarse.mean((1, 2), keepdims=True), train=False)
        levels.append(jnp.tile(pooled, (1, 4, 6, 1)))
        context = pyramid.project(jnp.concatenate(levels, -1), train=False)
        context = resize(model.refine(context, train=False), 16, 24, align_corners=True)
        fused = jnp.concatenate([context, model.low_level(fine, train=False)], -1)
        logits = model.head(model.fuse(fused, train=False))
        return resize(logits, 64, 96, align_corners=True)

    expected = by_parts(model)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(segment(model, images()), expected, atol=1e-5)


def test_a_zero_kernel_in_the_head_leaves_its_bias_at_every_pixel(model):
    model.head.kernel[...] = jnp.zeros_like(model.head.kernel[...])
    model.head.bias[...] = jnp.asarray([1.0, -2.0, 3.0, 0.5])
    logits = segment(model, images())
    expected = np.broadcast_to([1, -2, 3, 0.5], (2, 64, 96, 4))
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_large_rates_on_a_small_map_are_pointwise(model):
    """At rates beyond the map, 4 x 6 cells, only the centre tap reads cells and not padding."""
    coarse = jax.random.normal(jax.random.key(0), (2, 4, 6, 64))
    unit = model.pyramid.levels[2]
    tap = unit.depthwise.kernel[...][1, 1, 0]
    expected = jax.nn.relu(unit.norm(unit.conv(coarse * tap[None, None, None]), train=False))
    np.testing.assert_allclose(unit(coarse, train=False), expected, atol=1e-6)


def test_dropout_zeroes_a_fraction_and_scales_the_rest():
    maps = jnp.ones((1, 100, 100, 2))
    pyramid = Pyramid(4, 8, (2, 4, 6), 0.25, dtype=jnp.float32, rngs=nnx.Rngs(0))
    dropped = np.asarray(pyramid.dropout(maps, deterministic=False, rngs=jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_training_needs_a_key_and_depends_on_it(model):
    with pytest.raises(ValueError, match="dropout needs a key"):
        model(images(), train=True)
    graph, state = nnx.split(model)

    @jax.jit
    def logits(key):
        return nnx.merge(graph, state, copy=True)(images(), train=True, key=key)

    first, again, other = (logits(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_batch_of_one_image_trains():
    """The pyramid's pool then normalizes a single cell, where PyTorch refuses."""
    pyramid = Pyramid(5, 8, (1, 2), 0.5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(pyramid, nnx.Param, ...)
    coarse = jax.random.normal(jax.random.key(0), (1, 2, 3, 5))

    @jax.jit
    def gradients_of(params, coarse):
        def loss(params, coarse):
            network = nnx.merge(graph, params, rest, copy=True)
            maps = network(coarse, train=True, key=jax.random.key(0))
            return jnp.square(maps).sum(), nnx.state(network, nnx.BatchStat)

        return jax.grad(loss, (0, 1), has_aux=True)(params, coarse)

    gradients, statistics = gradients_of(params, coarse)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.abs(gradients[1]).max() > 0
    np.testing.assert_allclose(statistics["pool"]["norm"]["var"][...], 0.9, rtol=1e-6)


def test_a_densenet_can_be_the_backbone():
    backbone = DenseNet(
        1, blocks=(1, 1, 1, 1), growth=4, stem=8, output_stride=16, rngs=nnx.Rngs(0)
    )
    model = DeepLabV3Plus(backbone, outputs=2, width=8, low_level=4, rngs=nnx.Rngs(1))
    logits = segment(model, images(1))
    assert logits.shape == (1, 64, 96, 2)
    assert np.ptp(logits) > 0.01


def test_the_size_is_that_of_the_original():
    def make():
        backbone = ResNet(1, output_stride=16, rngs=nnx.Rngs(0))
        return DeepLabV3Plus(backbone, rngs=nnx.Rngs(1))

    state = nnx.state(nnx.eval_shape(make), nnx.Param)
    del state["backbone"]["head"]
    assert sum(p.size for p in jax.tree.leaves(state)) == 12_331_610
