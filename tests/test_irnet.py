"""IRNet: its trained variables, its mirror symmetry, its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet, upsample
from chexseg_jax.models.resnet import ResNet


def images(count=2, height=48, width=64):
    pixels = np.random.default_rng(0).normal(size=(count, height, width, 3))
    return jnp.asarray(pixels.astype(np.float32))


@jax.jit
def outputs(model, images):
    return model(images)


@jax.jit
def boundaries(model, images):
    return model.boundaries(images)


@pytest.fixture(scope="module")
def model():
    backbone = ResNet(3, blocks=(1, 1, 1, 1), width=8, output_stride=16, rngs=nnx.Rngs(0))
    return IRNet(backbone, rngs=nnx.Rngs(1))


def test_only_the_heads_are_trained(model):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradients_of(params):
        def loss(params):
            network = nnx.merge(graph, params, rest, copy=True)
            edges, shifts = network(images(), train=True)
            return jnp.square(edges).sum() + jnp.square(shifts).sum(), nnx.state(
                network, nnx.BatchStat
            )

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradients_of(params)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(gradients["backbone"]))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["heads"]))
    jax.tree.map(np.testing.assert_array_equal, statistics, nnx.state(model, nnx.BatchStat))


def test_boundaries_mirror_with_the_image(model):
    mirrored = boundaries(model, images()[:, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :, ::-1], boundaries(model, images()), atol=1e-6)
    edges, _ = outputs(model, images())
    other, _ = outputs(model, images()[:, :, ::-1])
    expected = jax.nn.sigmoid((edges + other[:, :, ::-1]) / 2)
    np.testing.assert_allclose(boundaries(model, images()), expected, atol=1e-6)
    assert np.ptp(expected) > 0.01


def test_stages_may_be_precomputed(model):
    stages = jax.jit(lambda model: model.backbone.stages(images()))(model)
    precomputed = jax.jit(lambda model: model.from_features(stages))(model)
    direct = outputs(model, images())
    assert direct[0].shape == (2, 12, 16)
    assert direct[1].shape == (2, 12, 16, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), precomputed, direct)


def test_displacements_are_centred_outside_training(model):
    graph, state = nnx.split(model)
    shifted = nnx.merge(graph, state, copy=True)
    shifted.heads.mean_shift[...] = jnp.asarray([1.0, -2.0])
    centred = outputs(model, images())[1]
    expected = centred - jnp.asarray([1.0, -2.0]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(outputs(shifted, images())[1], expected, atol=1e-6)
    training = jax.jit(lambda model: model(images(), train=True))
    np.testing.assert_allclose(training(shifted)[1], centred, atol=1e-6)


def test_any_backbone_and_any_image_size():
    backbone = DenseNet(3, blocks=(1, 1, 1, 1), growth=4, stem=8, rngs=nnx.Rngs(0))
    edges, shifts = outputs(IRNet(backbone, rngs=nnx.Rngs(1)), images(1, 40, 72))
    assert edges.shape == (1, 10, 18)
    assert shifts.shape == (1, 10, 18, 2)
    assert np.ptp(edges) > 0.01
    assert np.isfinite(shifts).all()


def test_upsampling_by_a_power_of_two_is_cropped():
    maps = jnp.asarray([0.0, 4.0, 8.0]).reshape(1, 3, 1, 1)
    upsampled = upsample(maps, 10, 1)
    np.testing.assert_allclose(
        upsampled[0, :, 0, 0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5], atol=1e-6
    )


def test_heads_have_the_original_size():
    def make():
        backbone = ResNet.resnet50(1, output_stride=16, dilated=False, rngs=nnx.Rngs(0))
        return IRNet(backbone, rngs=nnx.Rngs(1))

    heads = nnx.state(nnx.eval_shape(make).heads, nnx.Param)
    sizes = {name: sum(p.size for p in jax.tree.leaves(heads[name])) for name in heads}
    assert sizes["edges"] + sizes["edge"] == 125_409
    assert sum(sizes.values()) - 125_409 == 1_269_120
