"""DenseNet against the usual implementation, and its output stride against subsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.models.backbone import Backbone
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.layers import average_pool, max_pool

TINY = dict(blocks=(1, 2, 1, 1), growth=4, stem=8)


@jax.jit
def stages(model, images):
    return model.stages(images)


def images(count=2, height=64, width=64):
    pixels = np.random.default_rng(0).normal(size=(count, height, width, 3))
    return jnp.asarray(pixels.astype(np.float32))


def usual(model, images):
    """Compute logits the usual way: a norm has its own moments, pooling follows the convolution."""
    maps = max_pool(jax.nn.relu(model.stem_norm(model.stem(images), train=True)))
    for index, block in enumerate(model.blocks):
        for layer in block:
            narrow = layer.conv1(jax.nn.relu(layer.norm1(maps, train=True)))
            new = layer.conv2(jax.nn.relu(layer.norm2(narrow, train=True)))
            maps = jnp.concatenate([maps, new], -1)
        if index < 3:
            transition = model.transitions[index]
            maps = transition.conv(jax.nn.relu(transition.norm(maps, train=True)))
            maps = average_pool(maps, 2)
    return model.classify(model.norm(maps, train=True))


def objective(forward):
    def loss(params, graph, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = forward(model, images())
        return jnp.sum(jnp.sin(logits)), (logits, nnx.state(model, nnx.BatchStat))

    return jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)


def test_training_equals_the_usual_implementation():
    model = DenseNet(3, blocks=(2, 0, 0, 1), growth=4, stem=8, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    shared = objective(lambda model, images: model(images, train=True))(params, graph, rest)
    separate = objective(usual)(params, graph, rest)
    before = jax.tree.leaves(rest)
    (_, (_, after)), _ = shared
    assert all(
        np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(after), before, strict=True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), shared, separate)


def test_every_second_cell_at_stride_16_is_the_map_at_stride_32():
    model = DenseNet(3, **TINY, rngs=nnx.Rngs(0))
    dilated = DenseNet(3, **TINY, output_stride=16, rngs=nnx.Rngs(0))
    coarse, fine = stages(model, images()), stages(dilated, images())
    for index in range(4):
        np.testing.assert_array_equal(fine[index], coarse[index])
    assert fine[4].shape == (2, 4, 4, model.channels[4])
    assert np.abs(coarse[4]).max() > 0.1
    np.testing.assert_allclose(fine[4][:, ::2, ::2], coarse[4], atol=1e-5)


def test_stages_have_the_documented_strides_and_channels():
    model = DenseNet(3, **TINY, rngs=nnx.Rngs(0))
    assert isinstance(model, Backbone)
    maps = stages(model, images(1, 64, 96))
    for stage, stride, channels in zip(maps, (4, 4, 8, 16, 32), model.channels, strict=True):
        assert stage.shape == (1, 64 // stride, 96 // stride, channels)
    features = jax.jit(lambda model, images: model.features(images))
    np.testing.assert_array_equal(features(model, images(1, 64, 96)), maps[-1])


def test_evaluation_changes_no_state():
    model = DenseNet(3, **TINY, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(model))

    @jax.jit
    def evaluated(model):
        model(images())
        return nnx.state(model)

    jax.tree.map(np.testing.assert_array_equal, evaluated(model), before)


def test_classify_is_a_mean_of_positive_features():
    model = DenseNet(2, **TINY, rngs=nnx.Rngs(0))
    features = np.zeros((1, 2, 2, model.channels[-1]), np.float32)
    features[0, 0, 0, 3] = 4
    features[0, 1, 1, 3] = -9
    expected = model.head.kernel[...][3] * 1.0
    np.testing.assert_allclose(model.classify(jnp.asarray(features))[0], expected, rtol=1e-6)


def test_average_pool_by_hand():
    maps = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(average_pool(maps, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    same = average_pool(maps, 1)[0, ..., 0]
    np.testing.assert_array_equal(same[::2, ::2], [[2.5, 4.5], [10.5, 12.5]])
    assert same[3, 3] == 15


def test_bfloat16_follows_float32():
    model = DenseNet(3, **TINY, rngs=nnx.Rngs(0))
    half = DenseNet(3, **TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    features = stages(half, images())[-1]
    assert features.dtype == jnp.bfloat16
    assert half.classify(features).dtype == jnp.float32
    np.testing.assert_allclose(
        half.classify(features), model.classify(stages(model, images())[-1]), atol=0.05
    )


def test_densenet_121_has_torchvisions_size():
    model = nnx.eval_shape(lambda: DenseNet(14, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == 6_968_206
    assert model.channels == (64, 256, 512, 1024, 1024)


@pytest.mark.parametrize("output_stride", [16, 32])
def test_odd_sizes_are_accepted(output_stride):
    model = DenseNet(3, **TINY, output_stride=output_stride, rngs=nnx.Rngs(0))
    maps = stages(model, images(1, 50, 70))
    assert [stage.shape[1:3] for stage in maps[:4]] == [(13, 18), (13, 18), (6, 9), (3, 4)]
    assert maps[4].shape[1:3] == ((3, 4) if output_stride == 16 else (1, 2))
    assert np.isfinite(maps[4]).all()
