"""Seeds and images to IRNet: where does one class end and the next begin?

The release adds up the ten pathologies' losses cumulatively, so that the first counts ten times; keeps
the learning rate constant; and pads labels with background. Here the loss is the mean over the findings
present, the rate decays polynomially, and what lies beyond the frame is unsure. The frozen backbone is
our classifier unless a PyTorch file of the paper's, an ImageNet ResNet-50, is at hand.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from chexseg_jax.images import Normalization, letterbox
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.spec import RESNET50, NormalizationName, build_backbone
from chexseg_jax.pseudolabels.affinity import pair_losses
from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.runtime.stage_folder import Records, StageFolder
from chexseg_jax.training.checkpoints import restore
from chexseg_jax.training.data import BatchError, Example, Mapped, Source, shuffled_repeated
from chexseg_jax.training.loop import fit, poly
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 1
HEADS = nnx.All(nnx.Param, nnx.PathContains("heads"))
"""What is trained."""


@dataclass(frozen=True)
class IrnetConfig:
    """IRNet's training; the defaults are the paper's (App. B) and, where it is silent, IRNet's."""

    radius: int = 10  # cells of stride 4 within which pairs are compared
    learning_rate: float = 0.1  # of the boundary branch; the displacement branch takes ten times it
    momentum: float = 0.0
    weight_decay: float = 1e-4
    batch_size: int = 16
    epochs: float = 3.0
    every: int = 1000  # steps between checkpoints
    augment: float = 0.5
    init: Path | None = None
    """A PyTorch file of a ResNet-50 to be the frozen backbone in the classifier's place."""
    init_whole: bool = False
    """Whether that file is a whole IRNet, its heads to start from."""
    pixels: NormalizationName = "imagenet"
    """The normalisation that file's weights expect."""


def constructor() -> Any:
    """Returns a function that makes the backbone of `init`: a ResNet-50 of stride 16."""
    return partial(
        build_backbone, RESNET50, 1000, jax.random.key(0), output_stride=16, dilated=False
    )


def load_irnet(folder: Path, backbone: Any) -> IRNet:
    """Returns the IRNet that a run of this stage left in a folder; `backbone` makes its backbone."""
    return restore(folder, partial(_construct, backbone))


def _construct(backbone: Any, seed: int = 0) -> IRNet:
    return IRNet(backbone(), rngs=nnx.Rngs(seed), dtype=compute_dtype())


def objective(radius: int, normalise: Normalization) -> Objective:
    """Returns the loss of a batch: the mean over the findings that are seeded in it."""

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        edges, displacements = model(normalise(batch["images"]), train=True)
        labels = batch["seeds"].astype(jnp.int32)
        here = (labels == 1).any((1, 2), keepdims=True)
        terms = pair_losses(
            edges.astype(jnp.float32),
            displacements.astype(jnp.float32),
            jnp.where(here, labels, -1),
            radius,
        )
        present = (terms["disease_pairs"] > 0).astype(jnp.float32)
        loss = (terms["total"] * present).sum() / jnp.maximum(present.sum(), 1)
        names = ("background", "disease", "boundary")
        shares = {n: (terms[n] * present).sum() / jnp.maximum(present.sum(), 1) for n in names}
        return loss, shares

    return loss_of


def descent(config: IrnetConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimiser of both branches, over so many steps."""

    def descend(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(poly(rate, steps), momentum=config.momentum or None),
        )

    def branch(heads: Any) -> Any:
        paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), heads)
        return jax.tree.map(lambda path: "boundary" if "edge" in path else "displacement", paths)

    rate = config.learning_rate
    return optax.partition({"boundary": descend(rate), "displacement": descend(10 * rate)}, branch)


def run(
    config: IrnetConfig,
    *,
    backbone: Any,
    normalise: Normalization,
    seeds: Records,
    images: Source,
    size: int,
    seed: int,
    folder: StageFolder,
) -> None:
    """Trains IRNet's heads on a frozen backbone; the last step is kept."""
    if not len(seeds):
        raise BatchError(
            "no image has a positive finding with a map, so there is nothing to relate; "
            "check the labels, or use --pseudo=cam"
        )

    def example(_: int, record: Example) -> Example:
        shown = images[int(record["index"])]
        framed = letterbox(shown["image"], size)
        return {"image_id": shown["image_id"], "images": framed, "seeds": record["seeds"]}

    if config.init and not config.init_whole:
        start_from(config.init, backbone, normalise, head=False, stage="relate")
    model = IRNet(backbone, rngs=nnx.Rngs(seed), dtype=compute_dtype())
    if config.init and config.init_whole:
        start_from(config.init, model, normalise, stage="relate")
    steps = max(1, round(config.epochs * len(seeds) / config.batch_size))

    best = fit(
        model,
        shuffled_repeated(Mapped(seeds, example), seed, strength=config.augment),
        objective(config.radius, normalise),
        descent(config, steps),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=steps,
        every=config.every,
        key=jax.random.key(seed),
        trained=HEADS,
    )
    folder.finish(**best, images=len(seeds))
