"""Which network a checkpoint holds: one frozen description, enough to build it again and to feed it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import jax
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalization
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.cpu import compute_dtype

NormalizationName = Literal["imagenet", "chexpert", "xrv"]
"""Whose normalisation a network's weights were trained with."""

NORMALIZATIONS: Final[dict[NormalizationName, Normalization]] = {
    "imagenet": IMAGENET,
    "chexpert": CHEXPERT,
    "xrv": XRV,
}


@dataclass(frozen=True)
class BackboneSpec:
    """A DenseNet or a ResNet; the default is DenseNet-121."""

    kind: Literal["densenet", "resnet"] = "densenet"
    blocks: tuple[int, int, int, int] = (6, 12, 24, 16)  # layers in each block
    growth: int = 32  # channels a layer adds (DenseNet)
    width: int = 64  # channels of the stem
    bottleneck: bool = False  # three convolutions a block instead of two (ResNet)

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> "Network":
        """Returns what `asdict` and JSON made of a network."""
        return cls(**{**stated, "blocks": tuple(stated["blocks"])})


DENSENET121: Final = BackboneSpec()
RESNET18: Final = BackboneSpec("resnet", (2, 2, 2, 2))
RESNET50: Final = BackboneSpec("resnet", (3, 4, 6, 3), bottleneck=True)


def build_backbone(
    network: BackboneSpec,
    outputs: int,
    key: jax.Array,
    *,
    output_stride: int = 32,
    dilated: bool = True,
) -> DenseNet | ResNet:
    """Returns the network with fresh weights; `dilated` is as in `ResNet`."""
    rngs, dtype = nnx.Rngs(key), compute_dtype()
    if network.kind == "densenet":
        return DenseNet(
            outputs,
            blocks=network.blocks,
            growth=network.growth,
            stem=network.width,
            output_stride=output_stride,
            dtype=dtype,
            rngs=rngs,
        )
    return ResNet(
        outputs,
        blocks=network.blocks,
        bottleneck=network.bottleneck,
        width=network.width,
        output_stride=output_stride,
        dilated=dilated,
        dtype=dtype,
        rngs=rngs,
    )


Kind = Literal["segmenter", "classifier", "irnet"]


@dataclass(frozen=True)
class DecoderSpec:
    """The sizes of DeepLabv3+'s decoder."""

    width: int
    rates: tuple[int, int, int]


@dataclass(frozen=True)
class NetworkSpec:
    """Which network it is, and what it expects of pixels."""

    kind: Kind
    network: BackboneSpec
    """The backbone; of a classifier, all of it."""
    outputs: int
    """Of the backbone's head: 14 log odds, or 42 logits of a classifier of three classes."""
    output_stride: int
    image_size: int
    normalisation: Normalization
    dilated: bool = True
    """Whether a ResNet of stride 16 widens its last stage's filters; IRNet's own does not."""
    decoder: DecoderSpec | None = None
    """Of a segmenter."""

    def construct(self) -> Any:
        """Returns the network with fresh weights."""
        backbone = build_backbone(
            self.network,
            self.outputs,
            jax.random.key(0),
            output_stride=self.output_stride,
            dilated=self.dilated,
        )
        if self.kind == "classifier":
            return backbone
        rngs, dtype = nnx.Rngs(0), compute_dtype()
        if self.kind == "irnet":
            return IRNet(backbone, rngs=rngs, dtype=dtype)
        if self.decoder is None:
            raise ValueError("a segmenter has a decoder")
        sizes = asdict(self.decoder)
        return DeepLabV3Plus(backbone, outputs=len(PATHOLOGIES), **sizes, dtype=dtype, rngs=rngs)

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> "Description":
        """Returns what `asdict` and JSON made of a description."""
        decoder = stated["decoder"]
        pixels = {name: tuple(values) for name, values in stated["normalisation"].items()}
        return cls(
            **{
                **stated,
                "network": BackboneSpec.read(stated["network"]),
                "normalisation": Normalization(**pixels),
                "decoder": decoder and DecoderSpec(decoder["width"], tuple(decoder["rates"])),
            }
        )
