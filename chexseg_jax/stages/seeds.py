"""Class activation maps and images to seeds, IRNet's training labels.

Only findings whose label is positive are seeded, and only images with one are kept. The release seeds
all ten everywhere, so that a map's loudest noise becomes disease.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from chexseg_jax.inference.apply import jit_sharded
from chexseg_jax.pathologies import pathology_labels
from chexseg_jax.pseudolabels.crf import CrfConfig, seeds_from_cams
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.stage_folder import Records, StageFolder, missing_shards, write_records
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 1
STRIDE = 4
"""Pixels between seeds: IRNet's output stride."""


@dataclass(frozen=True)
class SeedsConfig:
    """Thresholds on maps divided by their maximum, and the CRF; defaults as in the paper (App. B)."""

    disease: float = 0.3
    background: float = 0.05
    crf: CrfConfig = field(default_factory=CrfConfig)
    batch_size: int = 16


def _seeds(
    cams: Float[Array, "b fh fw k"],
    images: UInt8[Array, "b s s 1"],
    labels: Int[Array, "b k"],
    config: SeedsConfig,
) -> Int[Array, "b h w k"]:
    side = images.shape[1] // STRIDE
    small = jax.image.resize(images.astype(jnp.float32), (images.shape[0], side, side, 1), "linear")
    return seeds_from_cams(
        upsample_cams(cams, side),
        small,
        labels,
        config.crf,
        disease=config.disease,
        background=config.background,
        stride=STRIDE,
    )


def run(
    config: SeedsConfig, *, cams: Records, images: Source, size: int, folder: StageFolder
) -> None:
    """Writes `seeds-*.arrayrecord`: the index and the seeds of each image with a positive finding."""
    make = jit_sharded(partial(_seeds, config=config))
    for path, part in missing_shards(folder, "seeds", len(images), "arrayrecord"):
        found = [cams[index] for index in part]
        labels = pathology_labels(np.stack([record["labels"] for record in found]))
        maps = np.stack([record["cams"] for record in found])
        chosen = np.flatnonzero(((labels == 1) & (maps.max((1, 2)) > 0)).any(-1))
        source = letterboxed(Subset(images, chosen + part.start), size)
        examples: list[dict[str, Any]] = []
        for batch, count in ordered_batches(source, config.batch_size):
            rows = chosen[len(examples) : len(examples) + count]
            filled = np.resize(rows, config.batch_size)
            seeds = make(maps[filled], batch["images"], labels[filled])
            numbers = rows + part.start
            pairs = zip(numbers, seeds, strict=False)
            examples += [dict(index=np.asarray(i), seeds=s) for i, s in pairs]
        write_records(path, examples)
    wait_for_all(f"seeds {folder.path.name}")  # all of them are counted
    folder.finish(images=len(images), seeded=len(Records(folder, "seeds")))
