"""DenseNet with features, classify and an output stride (Huang et al. 2017).

Two steps differ from the usual implementation, are faster and mathematically equal: the batch moments
of a channel are computed once and shared by all layers that read it, and a transition pools before its
1 x 1 convolution, not after. A block is trained by `dense_block`. At output stride 16 the last block is
dilated: every second cell of its map is exactly the map at stride 32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.backbone import Stages, is_dilated
from chexseg_jax.models.dense_block import LayerWeights, NormedConv, dense_block
from chexseg_jax.models.initializers import he_normal_fan_in
from chexseg_jax.models.layers import (
    BatchNorm,
    Conv,
    Moments,
    average_pool,
    linear,
    max_pool,
    moments_of,
)
from chexseg_jax.models.pooling import GAP, Pooling


class DenseLayer(nnx.Module):
    """A bottleneck of a 1 x 1 and a 3 x 3 convolution that adds `growth` channels."""

    def __init__(
        self,
        inputs: int,
        growth: int,
        bottleneck: int,
        dilation: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        middle = bottleneck * growth
        self.dilation = dilation
        self.norm1 = BatchNorm(inputs, dtype=dtype)
        self.conv1 = Conv(inputs, middle, 1, init=he_normal_fan_in, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(middle, dtype=dtype)
        self.conv2 = Conv(
            middle, growth, 3, dilation=dilation, init=he_normal_fan_in, dtype=dtype, rngs=rngs
        )

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b h w g"]:
        """Return the new channels by the running statistics."""
        narrow = self.conv1(jax.nn.relu(self.norm1(maps, train=False)))
        return self.conv2(jax.nn.relu(self.norm2(narrow, train=False)))

    def weights(self) -> LayerWeights:
        """Return what `dense_block` needs of the layer."""
        pairs = ((self.norm1, self.conv1), (self.norm2, self.conv2))
        return LayerWeights(
            *(NormedConv(n.scale[...], n.bias[...], c.kernel[...]) for n, c in pairs)
        )


class Transition(nnx.Module):
    """A transition that halves the channels, and the grid unless it is `dilated`."""

    def __init__(self, inputs: int, *, dilated: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dilated = dilated
        self.norm = BatchNorm(inputs, dtype=dtype)
        self.conv = Conv(inputs, inputs // 2, 1, init=he_normal_fan_in, dtype=dtype, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "b h w c"], moments: Moments | None, *, train: bool
    ) -> Float[Array, "b oh ow half"]:
        """Return the next block's input."""
        active = jax.nn.relu(self.norm(maps, train=train, moments=moments))
        return self.conv(average_pool(active, 1 if self.dilated else 2))


def train_block(
    block: Sequence[DenseLayer], maps: Float[Array, "b h w c"], rematerialize: bool
) -> tuple[Float[Array, "b h w o"], Moments]:
    """Return a block's output and its moments, and update the running statistics of its layers."""
    weights = [layer.weights() for layer in block]
    dilation = block[0].dilation if block else 1
    maps, moments, narrow_moments = dense_block(
        maps, moments_of(maps), weights, dilation, rematerialize
    )
    cells = maps.size // maps.shape[-1]
    for layer, narrow in zip(block, narrow_moments, strict=True):
        layer.norm1.update(moments.first(layer.norm1.scale.size), cells)
        layer.norm2.update(narrow, cells)
    return maps, moments


def run_block(
    block: Sequence[DenseLayer], maps: Float[Array, "b h w c"]
) -> Float[Array, "b h w o"]:
    """Return a block's output by the running statistics of its layers."""
    for layer in block:
        maps = jnp.concatenate([maps, layer(maps)], -1)
    return maps


class DenseNet(nnx.Module):
    """DenseNet; the default sizes are DenseNet-121's. A `Backbone`."""

    def __init__(
        self,
        outputs: int,
        *,
        blocks: tuple[int, int, int, int] = (6, 12, 24, 16),
        growth: int = 32,
        stem: int = 64,
        bottleneck: int = 4,
        output_stride: int = 32,
        pooling: Pooling = GAP,
        rematerialize: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dilated = is_dilated(output_stride)
        self.stem = Conv(3, stem, 7, stride=2, init=he_normal_fan_in, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(stem, dtype=dtype)
        self.blocks: nnx.List[nnx.List[DenseLayer]] = nnx.List([])
        self.transitions: nnx.List[Transition] = nnx.List([])
        widths = [stem]
        width = stem
        for index, layers in enumerate(blocks):
            if index > 0:
                self.transitions.append(
                    Transition(width, dilated=dilated and index == 3, dtype=dtype, rngs=rngs)
                )
                width //= 2
            dilation = 2 if dilated and index == 3 else 1
            block = [
                DenseLayer(width + i * growth, growth, bottleneck, dilation, dtype=dtype, rngs=rngs)
                for i in range(layers)
            ]
            self.blocks.append(nnx.List(block))
            width += layers * growth
            widths.append(width)
        self.norm = BatchNorm(width, dtype=dtype)
        self.pooling, self.rematerialize = pooling, rematerialize
        self.head = linear(width, outputs, bias=False, rngs=rngs)
        self.channels = (widths[0], widths[1], widths[2], widths[3], widths[4])

    def stages(self, images: Float[Array, "b h w 3"], *, train: bool = False) -> Stages:
        """Return the pooled stem, the outputs of three blocks, and the features."""
        maps = max_pool(jax.nn.relu(self.stem_norm(self.stem(images), train=train)))
        stages = [maps]
        for index, block in enumerate(self.blocks):
            moments = None
            if train:
                maps, moments = train_block(block, maps, self.rematerialize)
            else:
                maps = run_block(block, maps)
            if index < len(self.transitions):
                stages.append(maps)
                maps = self.transitions[index](maps, moments, train=train)
        stages.append(self.norm(maps, train=train, moments=moments))
        return stages[0], stages[1], stages[2], stages[3], stages[4]

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b fh fw c"]:
        """Return the last norm's output, before its ReLU (torchvision's `norm5`)."""
        return self.stages(images, train=train)[-1]

    def classify(
        self, features: Float[Array, "b fh fw c"], content: Float[Array, "b fh fw"] | None = None
    ) -> Float[Array, "b n"]:
        """Return logits: ReLU, linear map and pooling of the cells."""
        return self.pooling(jax.nn.relu(features.astype(jnp.float32)), self.head, content)

    def cell_logits(self, features: Float[Array, "b fh fw c"]) -> Float[Array, "b fh fw n"]:
        """Return the logits of every cell."""
        return self.head(jax.nn.relu(features.astype(jnp.float32)))

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Return the logits of images."""
        return self.classify(self.features(images, train=train))
