"""Make pseudo-masks: random walk of the maps, a threshold, and the image's own labels.

The release writes masks of all ten pathologies for every image, and full ones where a map is zero. Here
a finding gets a mask only where its label is positive and its probability reaches the gate; an uncertain
finding is marked as ignored; a map of zeros gives an empty mask.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import Boundaries, jit_inference, jit_sharded
from chexseg_jax.pathologies import pathology_labels
from chexseg_jax.pseudolabels.storage import PseudoMasks, write_pseudo_masks
from chexseg_jax.pseudolabels.thresholds import cams_to_masks, walk_to_masks
from chexseg_jax.runtime.stage_folder import RecordReader, StageFolder, missing_shards
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 2


@dataclass(frozen=True)
class PseudoMasksConfig:
    """The walk and the thresholds; the defaults are CheXseg's code (the paper is silent)."""

    radius: int = 3  # cells of stride 4
    beta: float = 5.0
    steps: int = 8
    threshold: float = 0.6  # of the walked map, divided by its maximum
    cam_threshold: float = 0.4
    """Of the map itself; CheXlocalize's most frequent choice, where the release takes Otsu's."""
    gate: float = 0.0  # minimum probability of a finding that gets a mask
    batch_size: int = 16


def run(
    config: PseudoMasksConfig,
    *,
    irnet: Any | None,
    normalization: Normalization,
    cams: RecordReader,
    images: Source,
    image_size: int,
    folder: StageFolder,
) -> None:
    """Write `masks-*.jsonl`: each image's id, size in the letterbox, and run lengths.

    Without an IRNet the masks are the maps above a threshold (the paper's CAM rows).
    """
    boundaries = jit_inference(Boundaries(normalization), irnet) if irnet is not None else None
    walk = jit_sharded(
        partial(
            walk_to_masks,
            size=image_size,
            radius=config.radius,
            beta=config.beta,
            steps=config.steps,
            threshold=config.threshold,
        )
    )
    plain = jit_sharded(partial(cams_to_masks, size=image_size, threshold=config.cam_threshold))
    for path, indices in missing_shards(folder, "masks", len(images), "jsonl"):
        records = [cams[index] for index in indices]
        labels = pathology_labels(np.stack([record["labels"] for record in records]))
        logits = np.stack([record["logits"] for record in records])
        masked = (labels == 1) & (1 / (1 + np.exp(-logits)) >= config.gate)
        masks = [
            PseudoMasks.blank(str(record["image_id"]), record["sizes"], label < 0)
            for record, label in zip(records, labels, strict=True)
        ]
        positive = np.flatnonzero(masked.any(-1))
        source = letterboxed(Subset(images, positive + indices.start), image_size)
        done = 0
        for batch, count in ordered_batches(source, config.batch_size):
            rows = positive[done : done + count]
            maps = np.stack([records[i]["cams"] for i in np.resize(rows, config.batch_size)])
            maps = maps.astype(np.float32)
            batch_masks = walk(maps, boundaries(batch["images"])) if boundaries else plain(maps)
            for row, mask in zip(rows, batch_masks, strict=False):
                masks[row].draw(mask, masked[row])
            done += count
        write_pseudo_masks(path, masks, image_size)
    folder.finish(images=len(images))
