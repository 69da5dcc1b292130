"""Which backbone: a description that a stage's settings hold, and the network it describes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import jax
from flax import nnx
from jax.sharding import Sharding

from chexseg_jax.checkpoints import restore_model
from chexseg_jax.devices import compute_dtype, local_mesh, replicated
from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalisation
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.models.weights import load_torch

Pixels = Literal["imagenet", "chexpert", "xrv"]
"""Whose normalisation a network's weights were trained with."""

NORMALISATIONS: Final[dict[Pixels, Normalisation]] = {
    "imagenet": IMAGENET,
    "chexpert": CHEXPERT,
    "xrv": XRV,
}


@dataclass(frozen=True)
class Network:
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


DENSENET121: Final = Network()
RESNET18: Final = Network("resnet", (2, 2, 2, 2))
RESNET50: Final = Network("resnet", (3, 4, 6, 3), bottleneck=True)


def build(
    network: Network,
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


class WeightsError(ValueError):
    """A file of weights that does not fit."""


def start_from(
    path: Path,
    model: nnx.Module,
    pixels: Normalisation,
    *,
    head: bool = True,
    stage: str = "classify",
) -> None:
    """Fills a network from a PyTorch file, whose weights must expect pixels as they will come.

    Raises:
        WeightsError: they expect another normalisation, or are another network's.
    """
    try:
        wanted = load_torch(path, model, head=head)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if wanted != pixels:
        name = next(name for name, known in NORMALISATIONS.items() if known == wanted)
        raise WeightsError(
            f"{path}: these weights expect pixels normalised as {name}; set --{stage}.pixels={name}"
        )


def restore(
    folder: Path, construct: Callable[[], nnx.Module], sharding: Sharding | None = None
) -> Any:
    """Returns the best checkpoint of a stage's folder in the network that `construct` makes.

    Nothing is initialised: only shapes are worked out before the weights are read.
    """
    where = sharding or replicated(local_mesh())
    return restore_model(folder, nnx.eval_shape(construct), where)
