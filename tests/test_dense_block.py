"""A block in one array against the same layers on concatenations, in values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.models.dense_block import (
    BlockOutputs,
    LayerWeights,
    NormedConv,
    computed_apart,
    dense_block,
    normed_conv,
)
from chexseg_jax.models.layers import concatenate_moments, moments_of

WIDTH, NARROW, GROWTH, LAYERS = 5, 6, 3, 3


def weights(seed=0):
    rng = np.random.default_rng(seed)

    def part(size, inputs, outputs):
        kernel = rng.normal(size=(size, size, inputs, outputs)) / (size * np.sqrt(inputs))
        values = (rng.uniform(0.5, 2, inputs), rng.normal(size=inputs), kernel)
        return NormedConv(*(jnp.asarray(v.astype(np.float32)) for v in values))

    widths = range(WIDTH, WIDTH + LAYERS * GROWTH, GROWTH)
    return [LayerWeights(part(1, w, NARROW), part(3, NARROW, GROWTH)) for w in widths]


def maps(dtype=jnp.float32):
    values = 1 + 2 * np.random.default_rng(1).normal(size=(2, 5, 4, WIDTH))
    return jnp.asarray(values, dtype)


def concatenated(maps, moments, layers, dilation):
    narrow_moments = []
    for layer in layers:
        narrow = normed_conv(maps, moments, layer.narrow)
        narrow_moments.append(moments_of(narrow))
        new = normed_conv(narrow, narrow_moments[-1], layer.new, dilation)
        maps = jnp.concatenate([maps, new], -1)
        moments = concatenate_moments(moments, moments_of(new))
    return BlockOutputs(maps, moments, narrow_moments)


def gradients_of(form, maps, layers, dilation):
    """Return the gradients of a function of the block's output and of its moments."""

    def loss(maps, layers):
        outputs = form(maps, moments_of(maps), layers, dilation)
        mean, variance = (v[None, None, None] for v in outputs.moments)
        normed = (outputs.maps.astype(jnp.float32) - mean) * jnp.sqrt(variance + 1)
        return jnp.square(jnp.sin(normed)).mean()

    return jax.jit(jax.grad(loss, (0, 1)))(maps, layers)


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_outputs_and_gradients_equal_those_of_concatenations(dilation, rematerialize):
    in_one_array = partial(dense_block, rematerialize=rematerialize)
    inputs = (maps(), moments_of(maps()), weights(), dilation)
    found, expected = in_one_array(*inputs), concatenated(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    forms = (in_one_array, concatenated)
    gradients = [gradients_of(form, maps(), weights(), dilation) for form in forms]
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *gradients)


def test_gradient_equals_finite_differences():
    layers, direction = weights(), weights(7)

    def loss(step):
        moved = jax.tree.map(lambda a, b: a + step * b, layers, direction)
        outputs = dense_block(maps(), moments_of(maps()), moved, 1)
        return float(jnp.square(outputs.maps).mean() + outputs.moments.variance.sum())

    def total(layers):
        outputs = dense_block(maps(), moments_of(maps()), layers, 1)
        return jnp.square(outputs.maps).mean() + outputs.moments.variance.sum()

    products = jax.tree.map(jnp.vdot, jax.grad(total)(layers), direction)
    slope = sum(float(p) for p in jax.tree.leaves(products))
    assert abs(slope) > 1
    assert slope == pytest.approx((loss(1e-3) - loss(-1e-3)) / 2e-3, rel=2e-2)


def test_bfloat16_follows_float32():
    exact = gradients_of(dense_block, maps(), weights(), 1)
    rounded = gradients_of(dense_block, maps(jnp.bfloat16), weights(), 1)
    for value, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        error = np.linalg.norm(np.asarray(value, np.float32) - expected)
        assert error < 0.1 * np.linalg.norm(expected)


def test_a_block_without_layers_returns_its_input():
    moments = moments_of(maps())
    outputs = dense_block(maps(), moments, [], 1)
    np.testing.assert_array_equal(outputs.maps, maps())
    np.testing.assert_array_equal(outputs.moments.mean, moments.mean)


def test_accelerators_compute_the_gradients_product_twice():
    """What is set apart keeps XLA from merging the two; a CPU merges them."""
    function = jax.jit(computed_apart)
    shape = jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32)
    text = {
        platform: function.trace(shape).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "optimization_barrier" in text["tpu"]
    assert "optimization_barrier" not in text["cpu"]
    np.testing.assert_array_equal(function(maps()), maps())


def test_narrow_moments_pass_no_gradient():
    def loss(layers):
        narrow = dense_block(maps(), moments_of(maps()), layers, 1).narrow_moments
        return sum(jnp.sum(m.mean) for m in narrow)

    assert all(np.all(g == 0) for g in jax.tree.leaves(jax.grad(loss)(weights())))
