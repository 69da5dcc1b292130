"""Split the annotated validation images into training and validation of the segmenter.

The paper divides the 187 annotated images into 147 and 40 and keeps rare pathologies out of the 40
(§3.1), but its lists were not released. Ours follow its rule and are reproducible:

1. Of n annotated images, round(n * 40 / 187) are the target for validation.
2. A pathology is rare if it is annotated on fewer than a tenth of the images.
3. A patient with a rare pathology on any image is for training.
4. The other patients, in the order of the SHA-256 of their ids, are for validation until the target is
   reached; a patient who would exceed it is skipped. All others are for training.

No patient is in both. If too few patients qualify, validation has fewer images.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from chexseg_jax.pathologies import PATHOLOGIES

VALIDATION_SHARE: Final = 40 / 187
RARE_SHARE: Final = 0.1


def validation_target(annotated: int) -> int:
    """Compute the number of validation images for a number of annotated images."""
    return math.floor(VALIDATION_SHARE * annotated + 0.5)


def choose_validation(patients: Mapping[str, str], presence: Mapping[str, int]) -> set[str]:
    """Choose the ids of the validation images.

    Args:
        patients: the patient of each annotated image by image id.
        presence: the annotated pathologies of each as bits, by image id.
    """
    images_of: dict[str, list[str]] = {}
    for image_id, patient in patients.items():
        images_of.setdefault(patient, []).append(image_id)
    bits = np.array([presence[image_id] for image_id in patients], np.int64)
    counts = [int((bits >> k & 1).sum()) for k in range(len(PATHOLOGIES))]
    rare = sum(1 << k for k, n in enumerate(counts) if n < RARE_SHARE * len(patients))
    target = validation_target(len(patients))
    chosen: set[str] = set()
    for patient in sorted(images_of, key=lambda name: hashlib.sha256(name.encode()).digest()):
        images = images_of[patient]
        if any(presence[image_id] & rare for image_id in images):
            continue
        if len(chosen) + len(images) <= target:
            chosen.update(images)
    return chosen
