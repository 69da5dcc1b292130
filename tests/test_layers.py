"""Layers against numbers worked out by hand and against their direct formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from chexseg_jax.models import initializers
from chexseg_jax.models.layers import (
    BatchNorm,
    Conv,
    GroupNorm,
    as_convolution,
    as_grouped_convolution,
    as_reduce_window,
    concatenate_moments,
    convolve,
    depthwise,
    inner_taps,
    max_pool,
    moments_of,
    resize,
)
from chexseg_jax.runtime.cpu import as_matmul, as_shifted_adds, as_shifted_maxima


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_a_strided_convolution_pads_both_sides():
    conv = Conv(1, 1, 3, stride=2, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.ones((3, 3, 1, 1))
    maps = jnp.arange(16.0).reshape(1, 4, 4, 1)
    # Windows centred on cells (0, 0), (0, 2), (2, 0), (2, 2).
    np.testing.assert_array_equal(conv(maps)[0, ..., 0], [[10, 24], [51, 90]])


@pytest.mark.parametrize("stride", [1, 2])
def test_forms_of_a_1x1_convolution_agree(stride):
    maps, kernel = normal(2, 6, 7, 3), normal(1, 1, 3, 4, seed=1)

    def loss(maps, kernel, form):
        return jnp.sum(jnp.sin(form(maps, kernel, stride)))

    forms = (as_matmul, as_convolution, convolve)
    gradients = [jax.grad(loss, (0, 1))(maps, kernel, form) for form in forms]
    expected = np.asarray(maps)[:, ::stride, ::stride] @ np.asarray(kernel)[0, 0]
    for form in forms:
        np.testing.assert_allclose(form(maps, kernel, stride), expected, atol=1e-6)
    for values in zip(*gradients, strict=True):
        np.testing.assert_allclose(values[0], values[1], atol=1e-5)
        np.testing.assert_array_equal(values[0], values[2])  # of a CPU


def test_max_pool_by_hand():
    maps = -jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(maps)[0, ..., 0], [[0, -1], [-4, -5]])


@pytest.mark.parametrize("shape", [(2, 7, 8, 3), (1, 1, 2, 1), (2, 5, 5, 4)])
def test_forms_of_max_pool_agree_in_values_and_gradients_of_ties(shape):
    maps = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape).astype(np.float32))

    def pulled(form):
        pooled, pull = jax.vjp(form, maps)
        return pooled, *pull(jnp.arange(1.0, pooled.size + 1).reshape(pooled.shape))

    for left, right in zip(pulled(as_shifted_maxima), pulled(as_reduce_window), strict=True):
        np.testing.assert_array_equal(left, right)


def test_max_pool_propagates_nan():
    maps = jnp.ones((1, 5, 5, 1)).at[0, 2, 2].set(jnp.nan)
    for form in (as_shifted_maxima, as_reduce_window, max_pool):
        pooled = form(maps)[0, ..., 0]
        np.testing.assert_array_equal(pooled, [[1, 1, 1], [1, np.nan, 1], [1, 1, 1]])


@pytest.mark.parametrize("dilation", [1, 2, 5, 7, 36])
def test_depthwise_forms_agree(dilation):
    maps, kernel = normal(2, 6, 8, 3), normal(3, 3, 1, 3, seed=1)

    def loss(maps, kernel, form):
        taps = inner_taps(kernel, dilation, 6, 8)
        return jnp.sum(jnp.sin(form(maps, taps, dilation)))

    expected = np.zeros((2, 6, 8, 3), np.float32)
    padded = np.pad(maps, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    for i in range(3):
        for j in range(3):
            window = padded[:, i * dilation : i * dilation + 6, j * dilation : j * dilation + 8]
            expected += window * np.asarray(kernel)[i, j, 0]
    np.testing.assert_allclose(depthwise(maps, kernel, dilation), expected, atol=1e-5)
    for form in (as_shifted_adds, as_grouped_convolution):
        convolved = form(maps, inner_taps(kernel, dilation, 6, 8), dilation)
        np.testing.assert_allclose(convolved, expected, atol=1e-5)
    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    gradients = [gradient(maps, kernel, f) for f in (as_shifted_adds, as_grouped_convolution)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_batch_norm_by_hand():
    norm = BatchNorm(1)
    maps = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(2, 1, 2, 1)
    normed = norm(maps, train=True)
    # Mean 3, biased variance 3.5, unbiased 14/3.
    np.testing.assert_allclose(
        normed.ravel(), (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5 + 1e-5), rtol=1e-6
    )
    np.testing.assert_allclose(norm.mean[...], [0.3], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 + 0.1 * 14 / 3], rtol=1e-6)
    evaluated = norm(maps, train=False)
    np.testing.assert_allclose(
        evaluated.ravel(), (np.array([1, 2, 3, 6]) - 0.3) / np.sqrt(0.9 + 1.4 / 3 + 1e-5), rtol=1e-6
    )
    np.testing.assert_allclose(norm.mean[...], [0.3], rtol=1e-6)


def test_batch_norm_of_one_cell_gives_its_bias():
    norm = BatchNorm(2)
    norm.bias[...] = jnp.asarray([0.5, -1.0])
    maps = jnp.asarray([1e3, -7.0]).reshape(1, 1, 1, 2)
    np.testing.assert_array_equal(norm(maps, train=True).ravel(), [0.5, -1.0])
    np.testing.assert_allclose(norm.var[...], [0.9, 0.9], rtol=1e-6)

    def total(maps):
        copy = BatchNorm(2)
        return copy(maps, train=True).sum()

    assert np.isfinite(jax.grad(total)(maps)).all()


def test_shared_moments_equal_moments_of_the_whole():
    first, second = normal(4, 3, 3, 2), 5 + 3 * normal(4, 3, 3, 4, seed=1)
    maps = jnp.concatenate([first, second], -1)
    own, shared = BatchNorm(6), BatchNorm(6)
    expected = own(maps, train=True)
    moments = concatenate_moments(moments_of(first), moments_of(second))
    np.testing.assert_allclose(shared(maps, train=True, moments=moments), expected, atol=1e-6)
    np.testing.assert_allclose(shared.mean[...], own.mean[...], rtol=1e-6)
    np.testing.assert_allclose(shared.var[...], own.var[...], rtol=1e-6)


def test_batch_statistics_are_global_on_a_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    # Each device would see another mean.
    maps = normal(8, 2, 2, 3) + jnp.arange(8.0).reshape(8, 1, 1, 1)
    placed = jax.device_put(maps, NamedSharding(mesh, PartitionSpec("data")))
    assert len(placed.sharding.device_set) == 8
    sharded, local = jax.jit(moments_of)(placed), moments_of(maps)
    np.testing.assert_allclose(sharded.mean, np.asarray(maps).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(sharded.variance, np.asarray(maps).var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(sharded.variance, local.variance, rtol=1e-5)


def test_statistics_stay_float32_in_bfloat16():
    norm = BatchNorm(1, dtype=jnp.bfloat16)
    maps = (256 + normal(16, 16, 16, 1)).astype(jnp.bfloat16)
    assert norm(maps, train=True).dtype == jnp.bfloat16
    expected = np.asarray(maps, np.float32).mean() * 0.1
    np.testing.assert_allclose(norm.mean[...], [expected], rtol=1e-6)


def test_group_norm_by_hand():
    norm = GroupNorm(4, 2)
    norm.scale[...] = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    maps = 2 + 3 * normal(2, 3, 5, 4)
    groups = np.asarray(maps).reshape(2, 15, 2, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = expected.reshape(2, 3, 5, 4) * np.array([1, 2, 3, 4])
    np.testing.assert_allclose(norm(maps), expected, atol=2e-5)


def test_resize_by_hand():
    ramp = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1, 1)
    aligned = resize(ramp, 3, 1, align_corners=True)
    np.testing.assert_allclose(aligned.ravel(), [0, 0.5, 1], atol=1e-7)
    halves = resize(ramp, 4, 1, align_corners=False)
    np.testing.assert_allclose(halves.ravel(), [0, 0.25, 0.75, 1], atol=1e-7)
    maps = normal(1, 3, 4, 2)
    corners = resize(maps, 9, 16, align_corners=True)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, maps[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-6)


def test_initializers_have_pytorchs_standard_deviation():
    key = jax.random.key(0)
    shape = (3, 3, 64, 96)
    assert np.std(initializers.he_normal_fan_in(key, shape)) == pytest.approx(
        np.sqrt(2 / (9 * 64)), rel=0.02
    )
    assert np.std(initializers.he_normal_fan_out(key, shape)) == pytest.approx(
        np.sqrt(2 / (9 * 96)), rel=0.02
    )
    values = initializers.uniform_fan_in(key, (400, 100))
    assert np.abs(values).max() == pytest.approx(0.05, rel=0.01)
    assert np.abs(values).max() <= 0.05
    traced = jax.jit(lambda key: initializers.he_normal_fan_in(key, shape))(key)
    np.testing.assert_allclose(traced, initializers.he_normal_fan_in(key, shape), rtol=1e-6)
