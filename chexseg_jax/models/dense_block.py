"""The layers of a DenseNet block in training: one array holds the maps, another their gradient.

Every layer reads all the maps before it. Automatic differentiation would keep a concatenation of them
for each layer. Here a block's output is the only copy: each layer adds its channels in place, and the
gradient normalizes them once more (Pleiss et al. 2017, Memory-efficient implementation of DenseNets).
Besides it, only the narrow maps between a layer's two convolutions are kept, or not even these.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from chexseg_jax.models.layers import (
    Moments,
    concatenate_moments,
    convolve,
    moments_of,
    normalize,
)
from chexseg_jax.runtime.cpu import by_platform


class NormedConv(NamedTuple):
    """The weights of a norm and of the convolution after its ReLU."""

    scale: Float[Array, "i"]
    bias: Float[Array, "i"]
    kernel: Float[Array, "n n i o"]


class LayerWeights(NamedTuple):
    """The weights of a layer: to its narrow maps, and from these to its new channels."""

    narrow: NormedConv
    new: NormedConv


class BlockOutputs(NamedTuple):
    """What a block's layers compute."""

    maps: Float[Array, "b h w o"]
    moments: Moments
    narrow_moments: list[Moments]
    """Of each layer's narrow maps, for the running statistics. They pass no gradient on."""


Saved = tuple[BlockOutputs, list[Float[Array, "b h w n"]] | None, list[LayerWeights]]


def normed_conv(
    maps: Float[Array, "b h w i"], moments: Moments, weights: NormedConv, dilation: int = 1
) -> Float[Array, "b h w o"]:
    """Normalize maps, apply ReLU, and convolve them."""
    active = jax.nn.relu(normalize(maps, moments, weights.scale, weights.bias).astype(maps.dtype))
    return convolve(active, weights.kernel.astype(maps.dtype), dilation=dilation)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def dense_block(
    maps: Float[Array, "b h w c"],
    moments: Moments,
    layers: list[LayerWeights],
    dilation: int,
    rematerialize: bool = False,
) -> BlockOutputs:
    """Append every layer's new channels to maps, normalizing by the moments of the batch.

    Args:
        maps: the block's input.
        moments: of `maps`.
        layers: their weights.
        dilation: of their 3 x 3 convolutions.
        rematerialize: whether the gradient computes the narrow maps once more, to save memory.
    """
    return _forward(maps, moments, layers, dilation, rematerialize)[0]


def _forward(
    maps: Float[Array, "b h w c"],
    moments: Moments,
    layers: list[LayerWeights],
    dilation: int,
    rematerialize: bool,
) -> tuple[BlockOutputs, Saved]:
    added = sum(layer.new.kernel.shape[-1] for layer in layers)
    maps = jnp.pad(maps, ((0, 0), (0, 0), (0, 0), (0, added)))
    narrows, narrow_moments = [], []
    for layer in layers:
        width = layer.narrow.scale.size
        narrow = normed_conv(maps[..., :width], moments, layer.narrow)
        narrows.append(narrow)
        narrow_moments.append(moments_of(narrow))
        new = normed_conv(narrow, narrow_moments[-1], layer.new, dilation)
        maps = lax.dynamic_update_slice_in_dim(maps, new, width, -1)
        moments = concatenate_moments(moments, moments_of(new))
    outputs = BlockOutputs(maps, moments, narrow_moments)
    return outputs, (outputs, None if rematerialize else narrows, layers)


def _backward(
    dilation: int, rematerialize: bool, saved: Saved, cotangents: BlockOutputs
) -> tuple[Float[Array, "b h w c"], Moments, list[LayerWeights]]:
    def new_channels(narrow: Float[Array, "b h w n"], weights: NormedConv) -> Array:
        return normed_conv(narrow, moments_of(narrow), weights, dilation)

    (maps, moments, _), narrows, layers = saved
    gradient, moment_gradients, _ = cotangents
    layer_gradients = []
    for index, layer in reversed([*enumerate(layers)]):
        width = layer.narrow.scale.size
        if narrows is not None:
            narrow = narrows[index]
        else:  # not the first ones, which would have to be kept, and not before they are needed
            maps, gradient = lax.optimization_barrier((maps, gradient))
            narrow = normed_conv(maps[..., :width], moments.first(width), layer.narrow)
        of_new = Moments(*(values[width:] for values in moment_gradients))
        new = maps[..., width : gradient.shape[-1]]
        (new_gradient,) = jax.vjp(moments_of, new)[1](of_new)
        _, pull_new = jax.vjp(new_channels, narrow, layer.new)
        narrow_gradient, new_weights = pull_new(new_gradient + gradient[..., width:])
        _, pull_narrow = jax.vjp(normed_conv, maps[..., :width], moments.first(width), layer.narrow)
        _, own_moments, narrow_weights = pull_narrow(narrow_gradient)
        own, _, _ = pull_narrow(computed_apart(narrow_gradient))
        gradient = gradient[..., :width] + own
        sums = map(jnp.add, moment_gradients.first(width), own_moments)
        moment_gradients = Moments(*sums)
        layer_gradients.append(LayerWeights(narrow_weights, new_weights))
    return gradient, moment_gradients, layer_gradients[::-1]


dense_block.defvjp(_forward, _backward)


def computed_apart(maps: Float[Array, "b h w n"]) -> Float[Array, "b h w n"]:
    """Return maps in a way that what is computed from them is not merged with the same elsewhere.

    XLA fuses a product with one reader. The gradient of a layer's input has two, the sum over layers
    and the norm's weights: computed twice it is never written to memory. A CPU computes it once.
    """
    return by_platform(maps, cpu=lambda maps: maps, default=lax.optimization_barrier)
