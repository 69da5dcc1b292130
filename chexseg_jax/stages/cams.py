"""A classifier and images to class activation maps.

Kept at the features' resolution; whoever needs them larger enlarges them. All ten pathologies of every
image are mapped, whatever its labels.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from chexseg_jax.images import Normalization
from chexseg_jax.inference.apply import Cams, jit_inference
from chexseg_jax.pseudolabels.gradcam import normalise_cams
from chexseg_jax.runtime.stage_folder import StageFolder, missing_shards, write_records
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 1


@dataclass(frozen=True)
class CamsConfig:
    """How many images at once."""

    batch_size: int = 32


def run(
    config: CamsConfig,
    *,
    classifier: Any,
    normalise: Normalization,
    images: Source,
    size: int,
    folder: StageFolder,
) -> None:
    """Writes `cams-*.arrayrecord`: for each image its maps (float16), log odds and labels."""
    mapped = jit_inference(Cams(normalise), classifier)
    for path, part in missing_shards(folder, "cams", len(images), "arrayrecord"):
        examples: list[dict[str, Any]] = []
        for batch, count in ordered_batches(
            letterboxed(Subset(images, part), size), config.batch_size
        ):
            cams, logits = mapped(batch["images"])
            # Scaled before float16, which cannot hold the gradients of a very sure network.
            scaled = np.asarray(normalise_cams(jnp.asarray(cams))).astype(np.float16)
            kept = {name: batch[name] for name in ("image_id", "sizes", "labels")}
            columns = {"cams": scaled, "logits": logits, **kept}
            examples += [{n: column[i] for n, column in columns.items()} for i in range(count)]
        write_records(path, examples)
    folder.finish(images=len(images))
