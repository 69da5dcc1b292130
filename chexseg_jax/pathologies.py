"""The vocabulary: fourteen observations, ten pathologies with masks, and their order.

The orders are CheXseg's (model outputs and segmentation channels). CheXpert's CSV has `Lung Opacity`
before `Lung Lesion`, so columns must be selected by name, never by position.
"""

from typing import Final

import numpy as np
from jaxtyping import Int

OBSERVATIONS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The image-level labels, in the order of the classifier's outputs."""

PATHOLOGIES: Final = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)
"""The observations that experts drew, in the order of mask channels."""

OBSERVATION_OF_PATHOLOGY: Final = tuple(OBSERVATIONS.index(name) for name in PATHOLOGIES)
"""For each pathology, its index among the observations."""

COMMON_PATHOLOGIES: Final = (
    "Enlarged Cardiomediastinum",
    "Support Devices",
    "Cardiomegaly",
    "Atelectasis",
)
"""The pathologies frequent enough to choose a model by (paper §3.1)."""

COMPETITION_OBSERVATIONS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
)
"""The five observations of the CheXpert leader board."""

ALIASES: Final = {"Lung Opacity": "Airspace Opacity"}
"""Other spellings: CheXpert's CSV says `Lung Opacity` where the masks say `Airspace Opacity`."""

POSITIVE: Final = 1
NEGATIVE: Final = 0
UNCERTAIN: Final = -1
BLANK: Final = -2


def canonical(name: str) -> str:
    """Returns our name of an observation, whichever spelling a file uses."""
    return ALIASES.get(name, name)


def pathology_labels(labels: Int[np.ndarray, "*b 14"]) -> Int[np.ndarray, "*b 10"]:
    """Returns the labels of the ten pathologies among those of the fourteen observations.

    Cardiomegaly implies an enlarged cardiomediastinum, as in the experts' masks, whose outline of the
    mediastinum contains the heart's; CheXpert's labels leave it blank there. A blank counts as negative.
    """
    chosen = labels[..., list(OBSERVATION_OF_PATHOLOGY)]
    chosen = np.where(chosen == BLANK, NEGATIVE, chosen)
    enlarged, heart = (
        PATHOLOGIES.index("Enlarged Cardiomediastinum"),
        PATHOLOGIES.index("Cardiomegaly"),
    )
    chosen[..., enlarged] = np.where(
        chosen[..., heart] == POSITIVE, POSITIVE, chosen[..., enlarged]
    )
    return chosen
