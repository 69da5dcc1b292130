"""IRNet: class boundaries and displacements from a frozen backbone (Ahn et al. 2019).

Any `Backbone` will do, where the original needs a ResNet-50: each stage is upsampled to the stride-4
grid by the power of two that it needs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from chexseg_jax.models.backbone import Backbone, Stages
from chexseg_jax.models.layers import Conv, GroupNorm, resize

EDGE_WIDTH = 32
EDGE_GROUPS = 4
DISPLACEMENT_WIDTHS = (64, 128, 256, 256, 256)
DISPLACEMENT_GROUPS = (8, 16, 16, 16, 16)


class Branch(nnx.Module):
    """A 1 x 1 convolution, group norm, upsampling, ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 1, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(outputs, groups, dtype=dtype)

    def __call__(
        self, maps: Float[Array, "b h w c"], height: int, width: int
    ) -> Float[Array, "b height width o"]:
        """Return the branch's maps on a grid at least as fine."""
        return jax.nn.relu(upsample(self.norm(self.conv(maps)), height, width))


class Heads(nnx.Module):
    """The trained heads of IRNet, for boundaries and for displacements."""

    def __init__(self, channels: Sequence[int], *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.edges = nnx.List(
            [Branch(c, EDGE_WIDTH, EDGE_GROUPS, dtype=dtype, rngs=rngs) for c in channels]
        )
        self.edge = Conv(EDGE_WIDTH * len(channels), 1, 1, bias=True, dtype=dtype, rngs=rngs)
        widths = DISPLACEMENT_WIDTHS
        self.shifts = nnx.List(
            [
                Branch(*sizes, dtype=dtype, rngs=rngs)
                for sizes in zip(channels, widths, DISPLACEMENT_GROUPS, strict=True)
            ]
        )
        self.coarse = Branch(sum(widths[2:]), 256, 16, dtype=dtype, rngs=rngs)
        self.fine = Branch(sum(widths[:2]) + 256, 256, 16, dtype=dtype, rngs=rngs)
        self.shift = Conv(256, 2, 1, dtype=dtype, rngs=rngs)
        self.mean_shift = nnx.BatchStat(jnp.zeros(2))

    def boundary(self, stages: Stages) -> Float[Array, "b fh fw"]:
        """Return the logits of boundaries on the stride-4 grid."""
        grid = stages[1].shape[1:3]
        maps = [edge(stage, *grid) for edge, stage in zip(self.edges, stages, strict=True)]
        return self.edge(jnp.concatenate(maps, -1))[..., 0].astype(jnp.float32)

    def displacement(self, stages: Stages, *, train: bool) -> Float[Array, "b fh fw 2"]:
        """Return (dy, dx) to the object's centre, minus their running mean unless `train`."""
        grid, half = stages[1].shape[1:3], stages[2].shape[1:3]
        grids = (grid, grid, half, half, half)
        maps = [
            shift(stage, *size)
            for shift, stage, size in zip(self.shifts, stages, grids, strict=True)
        ]
        coarse = self.coarse(jnp.concatenate(maps[2:], -1), *grid)
        fine = self.fine(jnp.concatenate([maps[0], maps[1], coarse], -1), *grid)
        shifts = self.shift(fine).astype(jnp.float32)
        return shifts if train else shifts - self.mean_shift[...][None, None, None]


class IRNet(nnx.Module):
    """A frozen backbone and the heads; train `heads` only."""

    def __init__(self, backbone: Backbone, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.backbone = backbone
        self.heads = Heads(backbone.channels, dtype=dtype, rngs=rngs)

    def stages(self, images: Float[Array, "b h w 3"]) -> Stages:
        """Return the backbone's maps, with its running statistics and without a gradient."""
        return jax.tree.map(lax.stop_gradient, self.backbone.stages(images, train=False))

    def from_features(
        self, stages: Stages, *, train: bool = False
    ) -> tuple[Float[Array, "b fh fw"], Float[Array, "b fh fw 2"]]:
        """Return boundary logits and displacements of precomputed stages."""
        return self.heads.boundary(stages), self.heads.displacement(stages, train=train)

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b fh fw"], Float[Array, "b fh fw 2"]]:
        """Return boundary logits and displacements on the stride-4 grid."""
        return self.from_features(self.stages(images), train=train)

    def boundaries(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b fh fw"]:
        """Return boundaries on [0, 1], from the mean logit of images and their mirror images."""

        def logits(views: Float[Array, "b h w 3"]) -> Float[Array, "b fh fw"]:
            return self.heads.boundary(self.stages(views))

        straight, mirrored = jax.vmap(logits)(jnp.stack([images, images[:, :, ::-1]]))
        return jax.nn.sigmoid((straight + mirrored[:, :, ::-1]) / 2)


def upsample(
    maps: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b height width c"]:
    """Upsample maps by the smallest power of two that covers a grid, and crop them to it."""
    factor = 1
    while factor * maps.shape[1] < height or factor * maps.shape[2] < width:
        factor *= 2
    larger = resize(maps, factor * maps.shape[1], factor * maps.shape[2], align_corners=False)
    return larger[:, :height, :width]
