"""Compute class activation maps of every image with a trained classifier.

Maps stay at the features' resolution; whoever needs them larger upsamples them. All ten pathologies of
every image are mapped, whatever its labels.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import Cams, jit_inference
from chexseg_jax.pseudolabels.gradcam import normalize_cams
from chexseg_jax.runtime.stage_folder import StageFolder, missing_shards, write_records
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 1


@dataclass(frozen=True)
class CamsConfig:
    """The batch size of the maps' computation."""

    batch_size: int = 32


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
    infer = jit_inference(Cams(normalization), classifier)
    for path, indices in missing_shards(folder, "cams", len(images), "arrayrecord"):
        examples: list[dict[str, Any]] = []
        source = letterboxed(Subset(images, indices), image_size)
        for batch, count in ordered_batches(source, config.batch_size):
            cams, logits = infer(batch["images"])
            # Normalised before float16, which cannot hold the gradients of a very confident network.
            scaled = np.asarray(normalize_cams(jnp.asarray(cams))).astype(np.float16)
            columns = {"cams": scaled, "logits": logits}
            columns |= {name: batch[name] for name in ("image_id", "sizes", "labels")}
            examples += [{n: column[i] for n, column in columns.items()} for i in range(count)]
        write_records(path, examples)
    folder.finish(images=len(images))
