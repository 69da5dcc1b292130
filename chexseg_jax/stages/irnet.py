"""Train the boundary head of IRNet on CRF seeds.

The release adds up the ten pathologies' losses cumulatively, so that the first counts ten times; keeps
the learning rate constant; and pads labels with background. Here the loss is the mean over the findings
present, the rate decays polynomially, and labels beyond the frame are ignored. The frozen backbone is
the classifier, or the paper's ImageNet ResNet-50 if its PyTorch file is given. The displacement head,
which tells instances apart and cannot change a semantic mask, is trained only if asked for.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from chexseg_jax.images import Normalization
from chexseg_jax.models.spec import NORMALIZATIONS, RESNET50, NetworkSpec, NormalizationName
from chexseg_jax.pseudolabels.affinity import pair_losses
from chexseg_jax.runtime.stage_folder import RecordReader, StageFolder
from chexseg_jax.training.data import (
    BatchError,
    Example,
    Mapped,
    Source,
    network_input,
    shuffled_repeated,
)
from chexseg_jax.training.loop import fit, poly
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 2
HEADS = nnx.All(nnx.Param, nnx.PathContains("heads"))
BOUNDARY_HEAD = nnx.All(nnx.Param, nnx.Any(nnx.PathContains("edges"), nnx.PathContains("edge")))
"""The trained variables, with the displacement head and without."""


@dataclass(frozen=True)
class IrnetConfig:
    """IRNet's training; the defaults are the paper's (App. B) and, where it is silent, IRNet's."""

    radius: int = 10  # cells of stride 4 within which pairs are compared
    learning_rate: float = 0.1  # of the boundary head; the displacement head takes ten times it
    displacement: bool = False
    """Train the displacement head too; no mask depends on it."""
    momentum: float = 0.0
    weight_decay: float = 1e-4
    batch_size: int = 16
    accumulate: int = 1
    """Parts in which a step takes its batch, for want of memory; BatchNorm sees one part at a time."""
    epochs: float = 3.0
    every: int = 1000  # steps between checkpoints
    augment: float = 0.5
    """Of zoom and shift; the exposure stays, because the frozen backbone has not learned another."""
    init: str | None = None
    """Weights of a ResNet-50, the frozen backbone in place of the classifier: a PyTorch file,
    `imagenet`, or hf://OWNER/NAME[@REVISION]."""
    init_whole: bool = False
    """Whether that file is a whole IRNet, whose heads are loaded too."""
    normalization: NormalizationName = "imagenet"
    """The pixel normalization that this file's weights expect."""

    def network_spec(self, classifier: NetworkSpec) -> NetworkSpec:
        """Return the specification of the IRNet that these settings train on a classifier's backbone."""
        if self.init is None:
            return NetworkSpec(**{**vars(classifier), "kind": "irnet"})
        return NetworkSpec(
            kind="irnet",
            backbone=RESNET50,
            outputs=1000,
            output_stride=16,
            image_size=classifier.image_size,
            normalization=NORMALIZATIONS[self.normalization],
            dilated=False,
            photometry=classifier.photometry,
        )


def objective(
    radius: int, normalization: Normalization, *, displacement: bool = False
) -> Objective:
    """Return the loss of a batch: the mean over the findings with seeds in it."""

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        stages = model.stages(normalization(batch["images"]))
        boundaries, displacements = model.heads.boundary(stages), None
        if displacement:
            displacements = model.heads.displacement(stages, train=True)
        labels = batch["seeds"].astype(jnp.int32)
        seeded = (labels == 1).any((1, 2), keepdims=True)
        terms = pair_losses(boundaries, displacements, jnp.where(seeded, labels, -1), radius)
        present = (terms["foreground_pairs"] > 0).astype(jnp.float32)
        loss = (terms["total"] * present).sum() / jnp.maximum(present.sum(), 1)
        names = ("background", "foreground", "boundary")
        means = {n: (terms[n] * present).sum() / jnp.maximum(present.sum(), 1) for n in names}
        return loss, means

    return loss_of


def optimizer(config: IrnetConfig, steps: int) -> optax.GradientTransformation:
    """Return SGD with polynomial decay for both heads over a number of steps."""

    def sgd(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(poly(rate, steps), momentum=config.momentum or None),
        )

    def branch(heads: Any) -> Any:
        paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), heads)
        return jax.tree.map(lambda path: "boundary" if "edge" in path else "displacement", paths)

    rate = config.learning_rate
    return optax.partition({"boundary": sgd(rate), "displacement": sgd(10 * rate)}, branch)


def trained(config: IrnetConfig) -> nnx.filterlib.Filter:
    """Return the filter of the variables that a training updates."""
    return HEADS if config.displacement else BOUNDARY_HEAD


def training_steps(config: IrnetConfig, images: int) -> int:
    """Return the optimizer steps of a training on the seeds of these images."""
    return max(1, round(config.epochs * images / config.batch_size))


def run(
    config: IrnetConfig,
    *,
    spec: NetworkSpec,
    classifier: Any,
    seeds: RecordReader,
    images: Source,
    seed: int,
    folder: StageFolder,
) -> None:
    """Train IRNet's heads on a frozen backbone; keep the last step.

    Args:
        config: the training.
        spec: the network, from `IrnetConfig.network_spec`.
        classifier: the frozen backbone, unless `config.init` brings one.
        seeds: the output of the seeds stage.
        images: the images that seeds refer to by index.
        seed: of weights and order.
        folder: where checkpoints, metrics and the manifest go.

    Raises:
        BatchError: no image is seeded.
    """
    if not len(seeds):
        raise BatchError(
            "no image has a positive finding with a map, so IRNet has nothing to learn from; "
            "check the labels, or use --pseudo=cam"
        )

    def example(_: int, record: Example) -> Example:
        source = images[int(record["index"])]
        return {
            "image_id": source["image_id"],
            "images": network_input(source, spec.image_size),
            "seeds": record["seeds"],
        }

    model = spec.build(seed, backbone=None if config.init else classifier)
    if config.init:
        target = model if config.init_whole else model.backbone
        path, whole = Path(config.init), config.init_whole
        start_from(path, target, spec.normalization, head=whole, stage="irnet")
    steps = training_steps(config, len(seeds))
    best = fit(
        model,
        shuffled_repeated(Mapped(seeds, example), seed, strength=config.augment, exposure=0),
        objective(config.radius, spec.normalization, displacement=config.displacement),
        optimizer(config, steps),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=steps,
        every=config.every,
        key=jax.random.key(seed),
        trained=trained(config),
        accumulate=config.accumulate,
    )
    folder.finish(**best, network=asdict(spec), images=len(seeds))
