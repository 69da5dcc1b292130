"""Compute class activation maps of every image with a trained classifier.

Maps stay at the features' resolution; whoever needs them larger upsamples them. All ten pathologies of
every image are mapped, whatever its labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import CamKind, Cams, jit_inference
from chexseg_jax.runtime.stage_folder import StageFolder, missing_shards, write_records
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 2


@dataclass(frozen=True)
class CamsConfig:
    """Which maps are computed; the defaults are the paper's."""

    kind: CamKind = "grad-cam"
    """grad-cam: the paper's; cell-probability: what the head says of each cell by itself."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is classified, as factors of its own; the maps are averaged."""
    batch_size: int = 32

    def maps(self, normalization: Normalization) -> Cams:
        """Return the maps as an inference function."""
        return Cams(normalization, self.kind, self.scales)


def run(
    config: CamsConfig,
    *,
    classifier: Any,
    normalization: Normalization,
    images: Source,
    image_size: int,
    folder: StageFolder,
) -> None:
    """Write `cams-*.arrayrecord`: maps (float16), logits and labels of each image."""
    infer = jit_inference(config.maps(normalization), classifier)
    for path, indices in missing_shards(folder, "cams", len(images), "arrayrecord"):
        examples: list[dict[str, Any]] = []
        source = letterboxed(Subset(images, indices), image_size)
        for batch, count in ordered_batches(source, config.batch_size):
            cams, logits = infer(batch["images"])
            columns = {"cams": cams.astype(np.float16), "logits": logits}
            columns |= {name: batch[name] for name in ("image_id", "sizes", "labels")}
            examples += [{n: column[i] for n, column in columns.items()} for i in range(count)]
        write_records(path, examples)
    folder.finish(images=len(images))
