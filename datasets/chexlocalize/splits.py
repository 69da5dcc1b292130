"""Which of the annotated validation images train the segmenter, and which choose it.

The paper divides the 187 annotated images into 147 and 40 and keeps scarce pathologies out of the 40
(§3.1), but its lists were not released. Ours follow its rule and are reproducible:

1. Of n annotated images, round(n * 40 / 187) are wanted for validation.
2. A pathology is scarce if it is drawn on fewer than a tenth of the images.
3. A patient with a scarce pathology in any image trains.
4. The other patients, in the order of the SHA-256 of their ids, validate until enough images do. A
   patient with more images than are still wanted is passed over. All others train.

No patient does both. If too few qualify, fewer images validate.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from chexseg_jax.pathologies import PATHOLOGIES

VALIDATION_SHARE: Final = 40 / 187
SCARCE_SHARE: Final = 0.1


def wanted_for_validation(annotated: int) -> int:
    """Returns how many of so many annotated images are to validate."""
    return math.floor(VALIDATION_SHARE * annotated + 0.5)


def choose_validation(patients: Mapping[str, str], drawn: Mapping[str, int]) -> set[str]:
    """Returns the ids of the images that validate.

    Args:
        patients: the patient of each annotated image, by the image's id.
        drawn: the pathologies drawn on each, as the bits of a number, by the image's id.
    """
    images_of: dict[str, list[str]] = {}
    for image_id, patient in patients.items():
        images_of.setdefault(patient, []).append(image_id)
    bits = np.array([drawn[image_id] for image_id in patients], np.int64)
    counts = [int((bits >> k & 1).sum()) for k in range(len(PATHOLOGIES))]
    scarce = sum(1 << k for k, n in enumerate(counts) if n < SCARCE_SHARE * len(patients))
    wanted = wanted_for_validation(len(patients))
    chosen: set[str] = set()
    for patient in sorted(images_of, key=lambda name: hashlib.sha256(name.encode()).digest()):
        images = images_of[patient]
        if any(drawn[image_id] & scarce for image_id in images):
            continue
        if len(chosen) + len(images) <= wanted:
            chosen.update(images)
    return chosen
