"""ResNet, as torchvision has ResNet-18 and ResNet-50 (He et al. 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.backbone import Stages, is_dilated
from chexseg_jax.models.initializers import he_normal_fan_out
from chexseg_jax.models.layers import BatchNorm, Conv, linear, max_pool
from chexseg_jax.models.pooling import GAP, Pooling


class Block(nnx.Module):
    """A residual block: two 3 x 3 convolutions, or a 3 x 3 between two of 1 x 1."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        bottleneck: bool,
        stride: int,
        dilation: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        outputs = 4 * width if bottleneck else width
        # Kernel sizes, output channels and strides; torchvision strides at the first 3 x 3.
        plan = (
            ((1, width, 1), (3, width, stride), (1, outputs, 1))
            if bottleneck
            else ((3, width, stride), (3, width, 1))
        )
        self.convs: nnx.List[Conv] = nnx.List([])
        self.norms: nnx.List[BatchNorm] = nnx.List([])
        channels = inputs
        for size, width_out, step in plan:
            self.convs.append(
                Conv(
                    channels,
                    width_out,
                    size,
                    stride=step,
                    dilation=dilation,
                    init=he_normal_fan_out,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            self.norms.append(BatchNorm(width_out, dtype=dtype))
            channels = width_out
        projected = stride != 1 or inputs != outputs
        self.shortcut = (
            Conv(inputs, outputs, 1, stride=stride, init=he_normal_fan_out, dtype=dtype, rngs=rngs)
            if projected
            else None
        )
        self.shortcut_norm = BatchNorm(outputs, dtype=dtype) if projected else None

    def __call__(self, maps: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b oh ow o"]:
        """Return the block's output."""
        residual = maps
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            residual = norm(conv(residual if index == 0 else jax.nn.relu(residual)), train=train)
        if self.shortcut is not None and self.shortcut_norm is not None:
            maps = self.shortcut_norm(self.shortcut(maps), train=train)
        return jax.nn.relu(residual + maps)


def run_block(
    block: Block, maps: Float[Array, "b h w c"], train: bool, rematerialize: bool
) -> Float[Array, "b oh ow o"]:
    """Return a block's output; its gradient keeps only the input if it is to `rematerialize`."""

    def call(block: Block, maps: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        return block(maps, train=train)

    return (nnx.remat(call) if rematerialize else call)(block, maps)


class ResNet(nnx.Module):
    """ResNet; the default sizes are ResNet-18's. A `Backbone`."""

    def __init__(
        self,
        outputs: int,
        *,
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        width: int = 64,
        output_stride: int = 32,
        pooling: Pooling = GAP,
        dilated: bool = True,
        rematerialize: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build a ResNet.

        Args:
            outputs: number of logits.
            blocks: number of blocks in each of four layers.
            bottleneck: whether blocks are bottlenecks, as from ResNet-50 on.
            width: channels of the stem.
            output_stride: 16 or 32; at 16 the last layer does not stride.
            pooling: of the cells of the last layer.
            dilated: whether the last layer then dilates its 3 x 3 convolutions by two, as in
                DeepLabV3+, or not, as in IRNet.
            rematerialize: whether the gradient computes every block once more, to save memory.
            dtype: of the computation.
            rngs: for the initial values of `params`.
        """
        keeps_grid = is_dilated(output_stride)
        self.stem = Conv(3, width, 7, stride=2, init=he_normal_fan_out, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(width, dtype=dtype)
        self.layers: nnx.List[nnx.List[Block]] = nnx.List([])
        expansion = 4 if bottleneck else 1
        channels = width
        for index, count in enumerate(blocks):
            same_grid = index == 0 or (keeps_grid and index == 3)
            layer: nnx.List[Block] = nnx.List([])
            for position in range(count):
                block = Block(
                    channels,
                    width << index,
                    bottleneck=bottleneck,
                    stride=1 if same_grid or position > 0 else 2,
                    dilation=2 if keeps_grid and dilated and index == 3 else 1,
                    dtype=dtype,
                    rngs=rngs,
                )
                layer.append(block)
                channels = expansion * (width << index)
            self.layers.append(layer)
        self.pooling, self.rematerialize = pooling, rematerialize
        self.head = linear(channels, outputs, rngs=rngs)
        first = expansion * width
        self.channels = (width, first, 2 * first, 4 * first, 8 * first)

    @classmethod
    def resnet50(cls, outputs: int, **options: Any) -> "ResNet":
        """Build a ResNet-50; `options` are those of `ResNet`."""
        return cls(outputs, blocks=(3, 4, 6, 3), bottleneck=True, **options)

    def stages(self, images: Float[Array, "b h w 3"], *, train: bool = False) -> Stages:
        """Return the pooled stem and the outputs of four layers."""
        maps = max_pool(jax.nn.relu(self.stem_norm(self.stem(images), train=train)))
        stages = [maps]
        for layer in self.layers:
            for block in layer:
                maps = run_block(block, maps, train, self.rematerialize and train)
            stages.append(maps)
        return stages[0], stages[1], stages[2], stages[3], stages[4]

    def features(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b fh fw c"]:
        """Return the last layer's output."""
        return self.stages(images, train=train)[-1]

    def classify(
        self, features: Float[Array, "b fh fw c"], content: Float[Array, "b fh fw"] | None = None
    ) -> Float[Array, "b n"]:
        """Return logits: linear map and pooling of the cells."""
        return self.pooling(features.astype(jnp.float32), self.head, content)

    def cell_logits(self, features: Float[Array, "b fh fw c"]) -> Float[Array, "b fh fw n"]:
        """Return the logits of every cell."""
        return self.head(features.astype(jnp.float32))

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Return the logits of images."""
        return self.classify(self.features(images, train=train))
