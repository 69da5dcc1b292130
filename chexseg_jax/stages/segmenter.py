"""Expert masks, pseudo-masks and rho to a segmenter.

One training for the paper's three: rho = 0 is weakly supervised, 1 fully, 0.9 CheXseg. As in the paper
the encoder starts from the classifier's weights. Pseudo-masks of uncertain findings are ignored in the
loss; thresholds are chosen on expert masks kept apart, where the release takes them from the training
epoch's running counts.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from chexseg_jax.evaluation.metrics import Counts, count, mean_of, stack, threshold_bins
from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.losses import dice
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.cpu import compute_dtype
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
from chexseg_jax.training.loop import fit
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 1


@dataclass(frozen=True)
class SegmenterConfig:
    """DeepLabv3+ and its training; the defaults are the paper's (§3.3.2) and its code's."""

    width: int = 256  # channels of the decoder
    rates: tuple[int, int, int] = (12, 24, 36)  # dilations of the pyramid
    dropout: float = 0.5
    init: Path | None = None
    """A PyTorch file to start the whole segmenter from (smp's `best_model.pth`)."""
    learning_rate: float = 1e-4
    batch_size: int = 8
    epochs: float = 20.0  # of expert and pseudo-masks together
    every: int = 200  # steps between validations
    augment: float = 0.0
    maps: int | None = None
    """How many pseudo-masks to draw from, chosen by the seed; all of them if not given."""


def _construct(backbone: Any, config: SegmenterConfig, seed: int = 0) -> DeepLabV3Plus:
    return DeepLabV3Plus(
        backbone(),
        outputs=len(PATHOLOGIES),
        width=config.width,
        rates=config.rates,
        dropout=config.dropout,
        dtype=compute_dtype(),
        rngs=nnx.Rngs(seed),
    )


def objective(normalise: Normalization) -> Objective:
    """Returns the loss of a batch: 1 minus the mean Dice score of the pathologies that are known."""

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        logits = model(normalise(batch["images"]), train=True, key=key)
        return 1 - dice(logits, batch["masks"], batch["known"]).mean(), {}

    return loss_of


def restore_segmenter(config: SegmenterConfig, backbone: Any, folder: Path) -> DeepLabV3Plus:
    """Returns the segmenter that a run of this stage left; `backbone` makes its encoder."""
    return restore(folder, partial(_construct, backbone, config))


def counts_of(
    model: Any, source: Source, normalise: Normalization, size: int, batch_size: int
) -> Counts:
    """Returns the counts of every image of a source with masks, at every threshold."""
    run, counts = jit_inference(MaskProbabilities(normalise), model), []
    mine = Subset(source, shard_for_process(len(source)))
    for batch, number in ordered_batches(letterboxed(mine, size, keep=len(mine)), batch_size):
        bins = threshold_bins(run(batch["images"])[:number])
        pairs = zip(bins, batch["masks"], strict=False)
        counts += [count(some, masks) for some, masks in pairs]
    return all_gather(stack(counts), len(source))


def run(
    config: SegmenterConfig,
    *,
    backbone: Any,
    normalise: Normalization,
    expert_train: Source,
    expert_val: Source,
    pseudo: PseudoMaskSource,
    images: Source,
    rho: float,
    size: int,
    seed: int,
    folder: StageFolder,
) -> None:
    """Trains the segmenter; the best by mean IoU on expert-val, over what is drawn there, is kept.

    Args:
        config: network and training.
        backbone: the encoder, with the weights it is to start from.
        normalise: what the encoder's weights expect.
        expert_train: images with experts' masks.
        expert_val: the same, kept apart to choose checkpoint and thresholds.
        pseudo: pseudo-masks of `images`, in the same order.
        images: images with labels only.
        rho: the probability that a sample is an expert's.
        size: the letterbox, pixels.
        seed: of weights, order and mix.
        folder: where it goes.
    """
    model = _construct(lambda: backbone, config, seed)
    if config.init:
        start_from(config.init, model, normalise)
    chosen = sample_indices(len(images), config.maps, seed)

    def weak(index: int, example: Example) -> Example:
        shown, known = pseudo.letterboxed(chosen[index], example["image_id"], size)
        return {**example, "masks": shown, "known": known}

    def expert(_: int, example: Example) -> Example:
        return {**example, "known": np.ones(len(PATHOLOGIES), bool)}

    experts = shuffled_repeated(
        Mapped(letterboxed(expert_train, size, keep=1024), expert), seed, strength=config.augment
    )
    weaks = shuffled_repeated(
        Mapped(letterboxed(Subset(images, chosen), size), weak), seed + 1, strength=config.augment
    )

    def evaluate(model: Any) -> dict[str, float]:
        counts = counts_of(model, expert_val, normalise, size, config.batch_size).pooled()
        best = np.where(counts.truths > 0, np.nan_to_num(counts.iou()).max(0), np.nan)
        score = mean_of(best)
        named = {f"iou/{n}": float(v) for n, v in zip(PATHOLOGIES, best, strict=True) if v == v}
        return {"score": 0.0 if np.isnan(score) else score, **named}

    examples = len(expert_train) + len(chosen)
    best = fit(
        model,
        mix(experts, weaks, rho, seed),
        objective(normalise),
        optax.adam(config.learning_rate),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=max(1, round(config.epochs * examples / config.batch_size)),
        every=config.every,
        key=jax.random.key(seed),
        evaluate=evaluate,
    )
    folder.finish(**best, expert=len(expert_train), pseudo=len(chosen))
