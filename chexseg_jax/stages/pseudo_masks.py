"""Make pseudo-masks: random walk of the maps, thresholds, and the image's own labels.

The release writes masks of all ten pathologies for every image, and full ones where a map is zero. Here
a finding gets a mask only where its label is positive and its probability reaches the gate; an uncertain
finding is marked as ignored; a map of zeros gives an empty mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, UInt8

from chexseg_jax.evaluation.metrics import Counts, count, stack, threshold_bins
from chexseg_jax.evaluation.thresholds import pseudo_mask_thresholds
from chexseg_jax.images import Normalization, content_mask
from chexseg_jax.inference.apply import (
    Boundaries,
    MaskProbabilities,
    jit_inference,
    jit_sharded,
)
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.pseudolabels.storage import PseudoMasks, write_pseudo_masks
from chexseg_jax.pseudolabels.thresholds import (
    hard_masks,
    otsu_masks,
    soft_masks,
    walked_cams,
)
from chexseg_jax.runtime.process_shards import all_gather, shard_for_process
from chexseg_jax.runtime.stage_folder import RecordReader, StageFolder, missing_shards
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 4

Maps = Float[np.ndarray, "b s s k"]
MapsOf = Callable[[Float[np.ndarray, "b fh fw k"] | None, UInt8[np.ndarray, "b s s 1"]], Maps]
"""Maps at the size of the letterbox, divided by their maximum, from class activation maps, which a
teacher does not need, and images."""


@dataclass(frozen=True)
class PseudoMasksConfig:
    """The walk and the thresholds; the walk's defaults are CheXseg's code (the paper is silent)."""

    radius: int = 3  # cells of stride 4
    beta: float = 5.0
    steps: int = 8
    thresholds: Literal["fixed", "otsu", "chosen"] = "fixed"
    """fixed: the two below; otsu: of each map; chosen: of each pathology, by IoU on expert-train, or on
    expert-val for a teacher, which was trained on the former."""
    threshold: float = 0.6  # of the walked map, divided by its maximum
    cam_threshold: float = 0.4
    """Of the map itself; CheXlocalize's most frequent choice, where the release takes Otsu's."""
    fewest: int = 8
    """Expert masks that a pathology needs for a chosen threshold of its own."""
    gate: float = 0.0  # minimum probability of a finding that gets a mask
    batch_size: int = 16


def upsampled(
    cams: Float[Array, "b fh fw k"], images: UInt8[Array, "b s s 1"]
) -> Float[Array, "b s s k"]:
    """Return maps at the images' size."""
    return upsample_cams(cams, content_mask(images))


def cam_maps() -> MapsOf:
    """Return the class activation maps themselves."""
    return jit_sharded(upsampled)


@dataclass(frozen=True)
class TeacherMaps:
    """A segmenter's probabilities, divided by their maximum.

    Pseudo-labels of a network trained on few labels, for a student that also sees these labels: noisy
    student self-training (Xie et al. 2020), and the distillation that the paper's first version
    (arXiv 2102.10484v1) describes in its abstract.
    """

    normalize: Normalization

    def __call__(self, model: Any, images: UInt8[Array, "b s s 1"]) -> Float[Array, "b s s k"]:
        """Return the maps of letterboxed images."""
        return upsample_cams(MaskProbabilities(self.normalize)(model, images), content_mask(images))


def teacher_maps(teacher: Any, normalization: Normalization) -> MapsOf:
    """Return the maps of a teacher, which needs the images alone."""
    infer = jit_inference(TeacherMaps(normalization), teacher)
    return lambda cams, images: infer(images)


def walk(config: PseudoMasksConfig) -> Callable[..., Float[Array, "b s s k"]]:
    """Return the random walk as a function of maps, boundaries and images."""
    return partial(walked_cams, radius=config.radius, beta=config.beta, steps=config.steps)


def walked_maps(config: PseudoMasksConfig, irnet: Any, normalization: Normalization) -> MapsOf:
    """Return the maps walked along IRNet's boundaries."""
    boundaries = jit_inference(Boundaries(normalization), irnet)
    walked = jit_sharded(walk(config))
    return lambda cams, images: walked(cams, boundaries(images), images)


def choose(
    config: PseudoMasksConfig,
    maps: MapsOf,
    cams_of: Callable[[Any], Any],
    experts: Source,
    image_size: int,
) -> Float[np.ndarray, "k"]:
    """Choose the thresholds on the maps of images with expert masks, of findings labelled positive."""
    shard = Subset(experts, shard_for_process(len(experts)))
    counts: list[Counts] = []
    for batch, number in ordered_batches(letterboxed(shard, image_size), config.batch_size):
        positive = pathology_labels(batch["labels"])[:, None, None] == 1
        bins = threshold_bins(maps(cams_of(batch["images"]), batch["images"]) * positive)
        counts += map(count, bins[:number], (batch["masks"] * positive)[:number])
    return pseudo_mask_thresholds(all_gather(stack(counts), len(experts)), config.fewest)


def rows_of(source: Source, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield the id, the native size and the labels of every image."""
    for batch, number in ordered_batches(source, batch_size):
        for i in range(number):
            yield {name: batch[name][i] for name in ("image_id", "sizes", "labels")}


def run(
    config: PseudoMasksConfig,
    *,
    maps: MapsOf,
    thresholds: Float[np.ndarray, "k"] | None,
    soft: bool,
    cams: RecordReader | None,
    images: Source,
    image_size: int,
    folder: StageFolder,
) -> None:
    """Write `masks-*.arrayrecord`: each image's masks, as `pseudolabels.storage` has them.

    Args:
        config: gate and batch size.
        maps: what is thresholded.
        thresholds: of each pathology, or None for Otsu's of every map.
        soft: whether to keep probabilities, 1/2 at the threshold, in place of hard masks.
        cams: class activation maps of the images, with their logits; None if neither maps nor gate
            need them.
        images: images with labels.
        image_size: side of the letterbox, pixels.
        folder: where the masks go.

    Raises:
        ValueError: there is a gate, and no logits.
    """
    if cams is None and config.gate > 0:
        raise ValueError("the gate of pseudo-masks needs the classifier's logits")

    def masks_of(values: Maps) -> UInt8[np.ndarray, "b s s k"]:
        if thresholds is None:
            return np.stack([otsu_masks(value) for value in values])
        return (soft_masks if soft else hard_masks)(values, thresholds.astype(np.float32))

    for path, indices in missing_shards(folder, "masks", len(images), "arrayrecord"):
        read_twice = len(indices) if cams is None else 0
        source = letterboxed(Subset(images, indices), image_size, cache=read_twice)
        if cams is None:
            records = list(rows_of(source, config.batch_size))
        else:
            records = [cams[index] for index in indices]
        labels = pathology_labels(np.stack([record["labels"] for record in records]))
        masked = labels == 1
        if config.gate > 0:
            logits = np.stack([record["logits"] for record in records])
            masked &= 1 / (1 + np.exp(-logits)) >= config.gate
        masks = [
            PseudoMasks.blank(str(record["image_id"]), record["sizes"], label < 0)
            for record, label in zip(records, labels, strict=True)
        ]
        positive = np.flatnonzero(masked.any(-1))
        done = 0
        for batch, number in ordered_batches(Subset(source, positive), config.batch_size):
            rows = positive[done : done + number]
            stored = None
            if cams is not None:
                stored = np.stack([records[i]["cams"] for i in np.resize(rows, config.batch_size)])
                stored = stored.astype(np.float32)
            values = maps(stored, batch["images"])[:number]
            for row, mask in zip(rows, masks_of(values), strict=True):
                masks[row].draw(mask, masked[row])
            done += number
        write_pseudo_masks(path, masks)
    named = None if thresholds is None else dict(zip(PATHOLOGIES, thresholds.tolist(), strict=True))
    folder.finish(images=len(images), thresholds=named)
