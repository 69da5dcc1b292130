"""DeepLabV3+: atrous spatial pyramid pooling and its decoder, on any backbone (Chen et al. 2018).

As in segmentation_models.pytorch: separable convolutions throughout the pyramid, and both upsamplings
with `align_corners`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.backbone import Backbone
from chexseg_jax.models.layers import BatchNorm, Conv, Depthwise, resize


class Unit(nnx.Module):
    """A 1 x 1 convolution, after a dilated depthwise one if `dilation` is given; norm; ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dilation: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.depthwise = (
            None
            if dilation is None
            else Depthwise(inputs, dilation=dilation, dtype=dtype, rngs=rngs)
        )
        self.conv = Conv(inputs, outputs, 1, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, dtype=dtype)

    def __call__(self, maps: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w o"]:
        """Return the unit's maps."""
        if self.depthwise is not None:
            maps = self.depthwise(maps)
        return jax.nn.relu(self.norm(self.conv(maps), train=train))


class Pyramid(nnx.Module):
    """Atrous spatial pyramid pooling (ASPP)."""

    def __init__(
        self,
        inputs: int,
        width: int,
        rates: Sequence[int],
        dropout: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dropout = nnx.Dropout(dropout)
        dilations = (None, *rates)
        self.levels = nnx.List(
            [Unit(inputs, width, dilation=d, dtype=dtype, rngs=rngs) for d in dilations]
        )
        self.pool = Unit(inputs, width, dtype=dtype, rngs=rngs)
        self.project = Unit((len(dilations) + 1) * width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "b h w c"], *, train: bool, key: jax.Array | None
    ) -> Float[Array, "b h w o"]:
        """Combine the maps at every rate and the global mean; drop out if `train` and given a key."""
        levels = [level(maps, train=train) for level in self.levels]
        means = maps.astype(jnp.float32).mean((1, 2), keepdims=True).astype(maps.dtype)
        levels.append(jnp.broadcast_to(self.pool(means, train=train), levels[0].shape))
        projected = self.project(jnp.concatenate(levels, -1), train=train)
        if key is None or not train:
            return projected
        return self.dropout(projected, deterministic=False, rngs=key)


class DeepLabV3Plus(nnx.Module):
    """A segmenter: one logit for every pixel and output."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        outputs: int = 10,
        width: int = 256,
        low_level: int = 48,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.channels[-1], width, rates, dropout, dtype=dtype, rngs=rngs)
        self.refine = Unit(width, width, dilation=1, dtype=dtype, rngs=rngs)
        self.low_level = Unit(backbone.channels[1], low_level, dtype=dtype, rngs=rngs)
        self.fuse = Unit(width + low_level, width, dilation=1, dtype=dtype, rngs=rngs)
        self.head = Conv(width, outputs, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Float[Array, "b h w k"]:
        """Return logits at the size of the images.

        Args:
            images: with sides that are multiples of the backbone's output stride.
            train: whether to apply dropout, and to use and update batch statistics.
            key: of dropout; needed if `train`.

        Raises:
            ValueError: there is no key.
        """
        if train and key is None:
            raise ValueError("dropout needs a key: pass key=... when train=True")
        _, fine, _, _, coarse = self.backbone.stages(images, train=train)
        context = self.refine(self.pyramid(coarse, train=train, key=key), train=train)
        context = resize(context, *fine.shape[1:3], align_corners=True)
        details = self.low_level(fine, train=train)
        fused = self.fuse(jnp.concatenate([context, details], -1), train=train)
        logits = self.head(fused).astype(jnp.float32)
        return resize(logits, *images.shape[1:3], align_corners=True)
