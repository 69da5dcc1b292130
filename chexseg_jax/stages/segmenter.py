"""Train a segmenter on expert masks and pseudo-masks mixed with probability rho.

One training for the paper's three: rho = 0 is weakly supervised, 1 fully, 0.9 CheXseg. As in the paper
the encoder starts from the classifier's weights. Pseudo-masks of uncertain findings are ignored in the
loss; thresholds are chosen on held-out expert masks, where the release takes them from the training
epoch's running counts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import numpy as np

from chexseg_jax.evaluation.metrics import Counts, count, mean_of, stack, threshold_bins
from chexseg_jax.evaluation.thresholds import best_ious
from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.losses import (
    SegmentationLoss,
    SegmentationTargets,
    segmentation_loss,
    segmentation_targets,
)
from chexseg_jax.models.spec import DecoderSpec, NetworkSpec
from chexseg_jax.pathologies import COMMON_PATHOLOGIES, PATHOLOGIES
from chexseg_jax.pseudolabels.storage import CERTAIN, PseudoMaskSource
from chexseg_jax.runtime.process_shards import all_gather, shard_for_process
from chexseg_jax.runtime.stage_folder import StageFolder
from chexseg_jax.training.checkpoints import restore
from chexseg_jax.training.data import (
    Example,
    Mapped,
    Source,
    Subset,
    letterboxed,
    mix,
    ordered_batches,
    sample_indices,
    shuffled_repeated,
)
from chexseg_jax.training.loop import Schedule, adam, fit
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 3
Selection = Literal["all", "common"]
CACHED_IMAGES = 1024
"""Letterboxed expert images kept in memory, 1.1 MB each at 320 pixels."""


@dataclass(frozen=True)
class SegmenterConfig:
    """DeepLabv3+ and its training; the defaults are the paper's (§3.3.2) and its code's."""

    width: int = 256  # channels of the decoder
    rates: tuple[int, int, int] = (12, 24, 36)  # dilations of the pyramid
    dropout: float = 0.5
    init: str | None = None
    """A PyTorch file to start the whole segmenter from (smp's `best_model.pth`), or
    hf://OWNER/NAME[@REVISION]. `--classifier.normalization` says what its images were."""
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    loss: SegmentationLoss = "dice"
    targets: SegmentationTargets = "hard"
    """What a teacher's masks are to the loss: hard masks, their probabilities, or hard masks without the
    pixels of which the teacher is unsure. Masks of experts and of maps are hard."""
    batch_size: int = 8
    accumulate: int = 1
    """Parts in which a step takes its batch, for want of memory; BatchNorm sees one part at a time."""
    epochs: float = 20.0
    every: int = 200  # steps between validations
    augment: float = 0.0  # zoom within this share, shift within half of it
    exposure: float | None = None
    """Random contrast within this share and brightness within half of it; `augment` if not given."""
    gamma: float = 0.0  # random exponent of grey levels, from 2^-gamma to 2^gamma
    average: float = 0.0
    """Decay of a moving average of the weights, which is then the trained network; 0 for none."""
    maps: int | None = None
    """How many pseudo-masks to use, sampled by the seed; all of them if not given."""
    epoch: Literal["all", "used"] = "all"
    """Samples of an epoch: as many as there are expert masks and pseudo-masks together, the same for
    every rho, or as many as those that rho draws from, as in the paper."""
    select: Selection = "all"
    """Keep the checkpoint of the best mean IoU of all pathologies, or of the paper's four common."""

    def network_spec(self, encoder: NetworkSpec) -> NetworkSpec:
        """Return the specification of the segmenter that these settings train on an encoder."""
        decoder = DecoderSpec(self.width, self.rates, self.dropout)
        return NetworkSpec(
            **{**vars(encoder), "kind": "segmenter", "output_stride": 16, "decoder": decoder}
        )


def objective(
    normalization: Normalization, loss: SegmentationLoss, targets: SegmentationTargets = "hard"
) -> Objective:
    """Return the loss of a batch of 8-bit masks over the valid pathologies."""

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        logits = model(normalization(batch["images"]), train=True, key=key)
        masks, weights = segmentation_targets(batch["masks"], batch["valid"], targets)
        return segmentation_loss(logits, masks, weights, loss), {}

    return loss_of


def counts_of(
    model: Any, shard: Source, total: int, normalization: Normalization, batch_size: int
) -> Counts:
    """Return the counts of all images at every threshold, gathered from every process's shard."""
    run, counts = jit_inference(MaskProbabilities(normalization), model), []
    for batch, number in ordered_batches(shard, batch_size):
        bins = threshold_bins(run(batch["images"])[:number])
        counts += [count(b, masks) for b, masks in zip(bins, batch["masks"], strict=False)]
    return all_gather(stack(counts), total)


def selection_scores(counts: Counts, select: Selection) -> dict[str, float]:
    """Return the mean IoU that selects a checkpoint, and each pathology's, at their best thresholds."""
    names = COMMON_PATHOLOGIES if select == "common" else PATHOLOGIES
    ious = dict(zip(PATHOLOGIES, best_ious(counts).tolist(), strict=True))
    score = mean_of([ious[name] for name in names])
    named = {f"iou/{name}": iou for name, iou in ious.items() if iou == iou}
    return {"score": 0.0 if np.isnan(score) else score, **named}


def run(
    config: SegmenterConfig,
    *,
    spec: NetworkSpec,
    encoder: Any,
    expert_train: Source,
    expert_val: Source,
    pseudo_masks: PseudoMaskSource | None,
    images: Source,
    rho: float,
    seed: int,
    folder: StageFolder,
    teacher: Path | None = None,
) -> None:
    """Train the segmenter; keep the best by mean IoU on expert-val, over `select` of those there.

    Args:
        config: the training.
        spec: the network, from `SegmenterConfig.network_spec`.
        encoder: the encoder with its initial weights; None if there is a teacher.
        expert_train: images with expert masks; not read if rho is 0.
        expert_val: held-out expert masks that choose the checkpoint.
        pseudo_masks: of `images`, in the same order; None if rho is 1.
        images: images with labels only.
        rho: the probability that a sample is an expert's.
        seed: of weights, order and mix.
        folder: where checkpoints, metrics and the manifest go.
        teacher: the folder of a segmenter of the same specification, whose training goes on here.
    """
    if teacher is not None:
        model = restore(teacher)
    else:
        model = spec.build(seed, backbone=encoder)
        if config.init:
            start_from(Path(config.init), model, spec.normalization)
    indices = sample_indices(len(images), config.maps, seed)
    experts = expert_dataset(expert_train, spec.image_size) if rho > 0 else None
    weak = None
    if rho < 1:
        if pseudo_masks is None:
            raise ValueError(f"pseudo-masks are needed at rho = {rho:g}")
        weak = _weak_dataset(images, pseudo_masks, indices, spec.image_size)
    shard = Subset(expert_val, shard_for_process(len(expert_val)))
    validation = letterboxed(shard, spec.image_size, cache=len(shard))  # decoded once

    def evaluate(model: Any) -> dict[str, float]:
        counts = counts_of(
            model, validation, len(expert_val), spec.normalization, config.batch_size
        )
        return selection_scores(counts.pooled(), config.select)

    def dataset(source: Source | None, seed: int) -> grain.MapDataset | None:
        return None if source is None else augmented(config, source, seed)

    steps = training_steps(config, len(expert_train), len(images), rho)
    best = fit(
        model,
        mix(dataset(experts, seed), dataset(weak, seed + 1), rho, seed),
        objective(spec.normalization, config.loss, config.targets),
        adam(config.schedule, config.learning_rate, steps),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=steps,
        every=config.every,
        key=jax.random.key(seed),
        evaluate=evaluate,
        average=config.average,
        accumulate=config.accumulate,
    )
    folder.finish(
        **best,
        network=asdict(spec),
        expert=len(expert_train),
        pseudo=0 if weak is None else len(indices),
    )


def training_steps(config: SegmenterConfig, experts: int, images: int, rho: float) -> int:
    """Return the optimizer steps of a training on the masks of experts and of `images`."""
    pseudo = images if config.maps is None else min(config.maps, images)
    if config.epoch == "used":
        experts, pseudo = experts * (rho > 0), pseudo * (rho < 1)
    return max(1, round(config.epochs * (experts + pseudo) / config.batch_size))


def augmented(config: SegmenterConfig, source: Source, seed: int) -> grain.MapDataset:
    """Repeat a source without end, shuffled and augmented as the settings say."""
    return shuffled_repeated(
        source, seed, strength=config.augment, exposure=config.exposure, gamma=config.gamma
    )


def expert_dataset(source: Source, image_size: int) -> Source:
    """Return letterboxed examples with 8-bit masks, valid for every pathology."""
    valid = np.ones(len(PATHOLOGIES), bool)
    return Mapped(
        letterboxed(source, image_size, cache=CACHED_IMAGES),
        lambda _, example: {
            **example,
            "masks": example["masks"] * np.uint8(CERTAIN),
            "valid": valid,
        },
    )


def _weak_dataset(
    images: Source, pseudo_masks: PseudoMaskSource, indices: Sequence[int], image_size: int
) -> Source:
    def add_masks(index: int, example: Example) -> Example:
        masks, valid = pseudo_masks.letterboxed(indices[index], example["image_id"], image_size)
        return {**example, "masks": masks, "valid": valid}

    return Mapped(letterboxed(Subset(images, indices), image_size), add_masks)
