"""ResNet: sizes, identity shortcuts, and output stride 16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.models.backbone import Backbone
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.resnet import Block, ResNet


def images(count=1, height=64, width=64):
    pixels = np.random.default_rng(0).normal(size=(count, height, width, 3))
    return jnp.asarray(pixels.astype(np.float32))


@jax.jit
def stages(model, images):
    return model.stages(images)


@jax.jit
def model_features(model, images):
    return model.features(images)


def tiny(**options):
    return ResNet(3, **{"blocks": (1, 1, 1, 2), "width": 8, "rngs": nnx.Rngs(0)} | options)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_stages_have_the_documented_strides_and_channels(bottleneck):
    model = tiny(bottleneck=bottleneck)
    assert isinstance(model, Backbone)
    maps = stages(model, images(1, 64, 96))
    for stage, stride, channels in zip(maps, (4, 4, 8, 16, 32), model.channels, strict=True):
        assert stage.shape == (1, 64 // stride, 96 // stride, channels)
        assert np.abs(stage).max() > 0.1
    np.testing.assert_allclose(
        model.classify(model_features(model, images(1, 64, 96))),
        maps[-1].mean((1, 2)) @ model.head.kernel[...] + model.head.bias[...][None],
        atol=1e-5,
    )


def test_a_block_with_a_zero_residual_is_the_identity():
    model = tiny()
    model.layers[0][0].norms[-1].scale[...] = jnp.zeros(8)
    pooled, first, *_ = stages(model, images())
    np.testing.assert_array_equal(first, pooled)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_dilation_is_a_dense_convolution_of_every_second_cell(bottleneck):
    model = tiny(bottleneck=bottleneck, output_stride=16)
    *_, maps, features = stages(model, images())
    subsampled = maps[:, ::2, ::2]
    for dilated in model.layers[3]:
        maps = dilated(maps, train=False)
        undilated = Block(
            subsampled.shape[-1],
            64,
            bottleneck=bottleneck,
            stride=1,
            dilation=1,
            dtype=jnp.float32,
            rngs=nnx.Rngs(1),
        )
        nnx.update(undilated, nnx.state(dilated))
        subsampled = undilated(subsampled, train=False)
    np.testing.assert_allclose(maps[:, ::2, ::2], subsampled, atol=1e-4)
    np.testing.assert_allclose(maps, features, atol=1e-4)


def test_output_stride_16_changes_the_last_layer_only():
    models = tiny(), tiny(output_stride=16), tiny(output_stride=16, dilated=False)
    maps = [stages(model, images()) for model in models]
    for index in range(4):
        np.testing.assert_array_equal(maps[1][index], maps[0][index])
        np.testing.assert_array_equal(maps[2][index], maps[0][index])
    assert maps[1][4].shape == maps[2][4].shape == (1, 4, 4, 64)
    assert np.abs(maps[1][4] - maps[2][4]).max() > 0.1


@pytest.mark.parametrize("network", [ResNet, DenseNet])
def test_other_output_strides_are_refused(network):
    with pytest.raises(ValueError, match="must be 16 or 32, got 8"):
        network(3, output_stride=8, rngs=nnx.Rngs(0))


def test_training_updates_every_statistic():
    model = tiny(bottleneck=True)
    graph, before = nnx.split(model)

    @jax.jit
    def updated(state):
        network = nnx.merge(graph, state)
        network(images(2), train=True)
        return nnx.state(network, nnx.BatchStat)

    before, after = nnx.state(model, nnx.BatchStat), updated(before)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in pairs)


def test_sizes_are_torchvisions():
    def parameters(make):
        return sum(p.size for p in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))

    assert parameters(lambda: ResNet(14, rngs=nnx.Rngs(0))) == 11_183_694
    assert parameters(lambda: ResNet.resnet50(14, rngs=nnx.Rngs(0))) == 23_536_718
