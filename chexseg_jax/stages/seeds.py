"""Turn class activation maps into seeds, the training labels of IRNet.

Only findings with a positive label are seeded, and only images that have one are stored. The release
seeds all ten in every image, so that the largest noise of a map becomes foreground.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from chexseg_jax.images import content_cells
from chexseg_jax.inference.apply import jit_sharded
from chexseg_jax.pathologies import pathology_labels
from chexseg_jax.pseudolabels.crf import CrfConfig, seeds_from_cams
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.stage_folder import (
    RecordReader,
    StageFolder,
    missing_shards,
    write_records,
)
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 2
STRIDE = 4
"""Pixels between seeds: IRNet's output stride."""


@dataclass(frozen=True)
class SeedsConfig:
    """Thresholds on maps divided by their maximum, and the CRF; defaults as in the paper (App. B)."""

    foreground: float = 0.3
    background: float = 0.05
    crf: CrfConfig = field(default_factory=CrfConfig)
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.background < self.foreground < 1:
            raise ValueError(
                f"--seeds.background must be above 0 and below --seeds.foreground, which must be "
                f"below 1; got {self.background} and {self.foreground}"
            )


def crf_seeds(
    cams: Float[Array, "b fh fw k"],
    images: UInt8[Array, "b s s 1"],
    labels: Int[Array, "b k"],
    config: SeedsConfig,
) -> Int[Array, "b h w k"]:
    """Return seeds on the grid of stride 4: 1 foreground, 0 background, -1 ignored."""
    side = images.shape[1] // STRIDE
    content = content_cells(images, side, side)
    small = jax.image.resize(images.astype(jnp.float32), (images.shape[0], side, side, 1), "linear")
    seeds = seeds_from_cams(
        upsample_cams(cams, content),
        small,
        labels,
        config.crf,
        foreground=config.foreground,
        background=config.background,
        stride=STRIDE,
    )
    return jnp.where(content[..., None], seeds, -1).astype(jnp.int8)  # nothing is known of padding


def run(
    config: SeedsConfig, *, cams: RecordReader, images: Source, image_size: int, folder: StageFolder
) -> None:
    """Write `seeds-*.arrayrecord`: index and seeds of each image with a positive finding."""
    seeds_of = jit_sharded(partial(crf_seeds, config=config))
    for path, indices in missing_shards(folder, "seeds", len(images), "arrayrecord"):
        records = [cams[index] for index in indices]
        labels = pathology_labels(np.stack([record["labels"] for record in records]))
        maps = np.stack([record["cams"] for record in records])
        seeded = np.flatnonzero(((labels == 1) & (maps.max((1, 2)) > 0)).any(-1))
        source = letterboxed(Subset(images, seeded + indices.start), image_size)
        examples: list[dict[str, Any]] = []
        for batch, count in ordered_batches(source, config.batch_size):
            rows = seeded[len(examples) : len(examples) + count]
            padded = np.resize(rows, config.batch_size)
            seeds = seeds_of(maps[padded], batch["images"], labels[padded])
            pairs = zip(rows + indices.start, seeds, strict=False)
            examples += [dict(index=np.asarray(i), seeds=s) for i, s in pairs]
        write_records(path, examples)
    wait_for_all(f"seeds {folder.path.name}")  # the count below reads every process's shards
    folder.finish(images=len(images), seeded=len(RecordReader(folder, "seeds")))
