"""Network specifications: one frozen description from which any checkpoint's network is rebuilt.

Every training stage writes its `NetworkSpec` into its manifest and every export into its `config.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalization
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.pooling import GAP, Pooling
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.photometry import TABLES, Photometry
from chexseg_jax.runtime.cpu import compute_dtype

NormalizationName = Literal["imagenet", "chexpert", "xrv"]
"""The pixel normalization that a network's weights were trained with."""

NORMALIZATIONS: Final[dict[NormalizationName, Normalization]] = {
    "imagenet": IMAGENET,
    "chexpert": CHEXPERT,
    "xrv": XRV,
}

Kind = Literal["segmenter", "classifier", "irnet"]


@dataclass(frozen=True)
class BackboneSpec:
    """A DenseNet or a ResNet; the default is DenseNet-121."""

    kind: Literal["densenet", "resnet"] = "densenet"
    blocks: tuple[int, int, int, int] = (6, 12, 24, 16)  # layers in each block
    growth: int = 32  # channels a layer adds (DenseNet)
    width: int = 64  # channels of the stem
    bottleneck: bool = False  # three convolutions a block instead of two (ResNet)
    rematerialize: bool = False
    """In training, compute parts of every block again for its gradient: less memory, more operations."""


DENSENET121: Final = BackboneSpec()
RESNET18: Final = BackboneSpec("resnet", (2, 2, 2, 2))
RESNET50: Final = BackboneSpec("resnet", (3, 4, 6, 3), bottleneck=True)


def build_backbone(
    spec: BackboneSpec,
    outputs: int,
    key: jax.Array,
    *,
    output_stride: int = 32,
    pooling: Pooling = GAP,
    dilated: bool = True,
) -> DenseNet | ResNet:
    """Build a backbone with fresh weights; `dilated` is as in `ResNet`."""
    rngs, dtype = nnx.Rngs(key), compute_dtype()
    if spec.kind == "densenet":
        return DenseNet(
            outputs,
            blocks=spec.blocks,
            growth=spec.growth,
            stem=spec.width,
            output_stride=output_stride,
            pooling=pooling,
            rematerialize=spec.rematerialize,
            dtype=dtype,
            rngs=rngs,
        )
    return ResNet(
        outputs,
        blocks=spec.blocks,
        bottleneck=spec.bottleneck,
        width=spec.width,
        output_stride=output_stride,
        pooling=pooling,
        dilated=dilated,
        rematerialize=spec.rematerialize,
        dtype=dtype,
        rngs=rngs,
    )


@dataclass(frozen=True)
class DecoderSpec:
    """The sizes of DeepLabv3+'s decoder."""

    width: int
    rates: tuple[int, int, int]
    dropout: float = 0.5


@dataclass(frozen=True)
class NetworkSpec:
    """A network's architecture, and the input that its weights expect."""

    kind: Kind
    backbone: BackboneSpec
    outputs: int
    """Outputs of the backbone's head: 14 logits, or 42 of a classifier with three classes each."""
    output_stride: int
    image_size: int
    normalization: Normalization
    dilated: bool = True
    """Whether a ResNet of output stride 16 dilates its last stage; IRNet's own backbone does not."""
    decoder: DecoderSpec | None = None
    """Of a segmenter."""
    photometry: Photometry = "as-is"
    """What was done to the grey levels of the images that it was trained on."""
    pooling: Pooling = GAP
    """Of a classifier's cells."""

    def build(self, seed: int = 0, backbone: Any | None = None) -> Any:
        """Build the network with fresh weights, on a trained backbone if one is given.

        Raises:
            ValueError: a segmenter's decoder is missing.
        """
        if backbone is None:
            backbone = build_backbone(
                self.backbone,
                self.outputs,
                jax.random.key(seed),
                output_stride=self.output_stride,
                pooling=self.pooling,
                dilated=self.dilated,
            )
        if self.kind == "classifier":
            return backbone
        rngs, dtype = nnx.Rngs(seed), compute_dtype()
        if self.kind == "irnet":
            return IRNet(backbone, rngs=rngs, dtype=dtype)
        if self.decoder is None:
            raise ValueError("the specification of a segmenter needs a decoder")
        return DeepLabV3Plus(
            backbone,
            outputs=len(PATHOLOGIES),
            width=self.decoder.width,
            rates=self.decoder.rates,
            dropout=self.decoder.dropout,
            dtype=dtype,
            rngs=rngs,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "NetworkSpec":
        """Read what `asdict` and JSON made of a specification; other keys are passed over.

        Raises:
            KeyError, TypeError, AttributeError: a key is missing or of another kind.
            ValueError: the photometry is unknown.
        """
        content = {"photometry": "as-is", "pooling": {}, **content}  # older ones do not say it
        values = {name: content[name] for name in cls.__dataclass_fields__}
        if values["photometry"] not in TABLES:
            raise ValueError(f"photometry {values['photometry']!r:.80} is unknown to this version")
        backbone, decoder = dict(values["backbone"]), values["decoder"]
        statistics = {name: tuple(v) for name, v in values["normalization"].items()}
        if decoder is not None:
            decoder = DecoderSpec(**{**decoder, "rates": tuple(decoder["rates"])})
        values |= {
            "backbone": BackboneSpec(**{**backbone, "blocks": tuple(backbone["blocks"])}),
            "normalization": Normalization(**statistics),
            "decoder": decoder,
            "pooling": Pooling(**values["pooling"]),
        }
        return cls(**values)
