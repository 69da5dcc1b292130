"""A classifier and images to class activation maps.

Kept at the features' resolution; whoever needs them larger enlarges them. All ten pathologies of every
image are mapped, whatever its labels.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from chexseg_jax.artefacts import Folder, missing_shards, write_records
from chexseg_jax.data import Source, Subset, framed, once
from chexseg_jax.gradcam import normalise_cams
from chexseg_jax.images import Normalisation
from chexseg_jax.inference import Cams, infer

VERSION = 1


@dataclass(frozen=True)
class LocalizeConfig:
    """How many images at once."""

    batch_size: int = 32


def run(
    config: LocalizeConfig,
    *,
    classifier: Any,
    normalise: Normalisation,
    images: Source,
    size: int,
    folder: Folder,
) -> None:
    """Writes `cams-*.arrayrecord`: for each image its maps (float16), log odds and labels."""
    mapped = infer(Cams(normalise), classifier)
    for path, part in missing_shards(folder, "cams", len(images), "arrayrecord"):
        examples: list[dict[str, Any]] = []
        for batch, count in once(framed(Subset(images, part), size), config.batch_size):
            cams, logits = mapped(batch["images"])
            # Scaled before float16, which cannot hold the gradients of a very sure network.
            scaled = np.asarray(normalise_cams(jnp.asarray(cams))).astype(np.float16)
            kept = {name: batch[name] for name in ("image_id", "sizes", "labels")}
            columns = {"cams": scaled, "logits": logits, **kept}
            examples += [{n: column[i] for n, column in columns.items()} for i in range(count)]
        write_records(path, examples)
    folder.finish(images=len(images))
