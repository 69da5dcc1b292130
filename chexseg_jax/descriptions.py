"""Which network a set of weights is for: enough to build it again, and to feed it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
from flax import nnx

from chexseg_jax.devices import compute_dtype
from chexseg_jax.images import Normalisation
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.networks import Network, build
from chexseg_jax.pathologies import PATHOLOGIES

Kind = Literal["segmenter", "classifier", "irnet"]


@dataclass(frozen=True)
class Decoder:
    """The sizes of DeepLabv3+'s decoder."""

    width: int
    rates: tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """Which network it is, and what it expects of pixels."""

    kind: Kind
    network: Network
    """The backbone; of a classifier, all of it."""
    outputs: int
    """Of the backbone's head: 14 log odds, or 42 logits of a classifier of three classes."""
    output_stride: int
    image_size: int
    normalisation: Normalisation
    dilated: bool = True
    """Whether a ResNet of stride 16 widens its last stage's filters; IRNet's own does not."""
    decoder: Decoder | None = None
    """Of a segmenter."""

    def construct(self) -> Any:
        """Returns the network with fresh weights."""
        backbone = build(
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
                "network": Network.read(stated["network"]),
                "normalisation": Normalisation(**pixels),
                "decoder": decoder and Decoder(decoder["width"], tuple(decoder["rates"])),
            }
        )
