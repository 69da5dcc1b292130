"""Maps and boundaries to pseudo-masks: the random walk, a threshold, and the image's own labels.

The release writes masks of all ten pathologies for every image, and full ones where a map is zero. Here
a finding gets a mask only where its label is positive and, if asked for, its probability is high enough;
an uncertain one is marked unknown, to be ignored; a map of zeros gives an empty mask.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import Boundaries, jit_inference, jit_sharded
from chexseg_jax.pathologies import pathology_labels
from chexseg_jax.pseudolabels.gradcam import normalise_cams, upsample_cams
from chexseg_jax.pseudolabels.random_walk import random_walk
from chexseg_jax.pseudolabels.storage import PseudoMasks, write_pseudo_masks
from chexseg_jax.runtime.stage_folder import Records, StageFolder, missing_shards
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
    """Of the plain map; CheXlocalize's most frequent choice, where the release takes Otsu's."""
    gate: float = 0.0  # least probability of a finding that gets a mask
    batch_size: int = 16


def _walked(
    cams: Float[Array, "b fh fw k"],
    bounds: Float[Array, "b h w"],
    size: int,
    config: PseudoMasksConfig,
) -> Bool[Array, "b size size k"]:
    maps = random_walk(
        upsample_cams(cams, bounds.shape[1]),
        bounds,
        radius=config.radius,
        beta=config.beta,
        steps=config.steps,
    )
    shape = (maps.shape[0], size, size, maps.shape[-1])
    return normalise_cams(jax.image.resize(maps, shape, "linear")) > config.threshold


def _plain(cams: Float[Array, "b fh fw k"], size: int, config: PseudoMasksConfig) -> Any:
    return normalise_cams(upsample_cams(cams, size)) > config.cam_threshold


def run(
    config: PseudoMasksConfig,
    *,
    irnet: Any | None,
    normalise: Normalization,
    cams: Records,
    images: Source,
    size: int,
    folder: StageFolder,
) -> None:
    """Writes `masks-*.jsonl`: for each image its id, its size in the letterbox, and run lengths.

    Without an IRNet the masks are the maps above a threshold (the paper's CAM rows).
    """
    bounded = jit_inference(Boundaries(normalise), irnet) if irnet is not None else None
    walked = jit_sharded(partial(_walked, size=size, config=config))
    plain = jit_sharded(partial(_plain, size=size, config=config))
    for path, part in missing_shards(folder, "masks", len(images), "jsonl"):
        found = [cams[index] for index in part]
        labels = pathology_labels(np.stack([record["labels"] for record in found]))
        sure = 1 / (1 + np.exp(-np.stack([record["logits"] for record in found]))) >= config.gate
        masks = [
            PseudoMasks.blank(str(record["image_id"]), record["sizes"], label < 0)
            for record, label in zip(found, labels, strict=True)
        ]
        chosen = np.flatnonzero(((labels == 1) & sure).any(-1))
        source = letterboxed(Subset(images, chosen + part.start), size)
        done = 0
        for batch, count in ordered_batches(source, config.batch_size):
            rows = chosen[done : done + count]
            maps = np.stack([found[i]["cams"] for i in np.resize(rows, config.batch_size)])
            maps = maps.astype(np.float32)
            drawn = walked(maps, bounded(batch["images"])) if bounded else plain(maps)
            for row, mask in zip(rows, drawn, strict=False):
                masks[row].draw(mask, (labels[row] == 1) & sure[row])
            done += count
        write_pseudo_masks(path, masks, size)
    folder.finish(images=len(images))
