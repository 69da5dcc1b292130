"""Names and orders of the fourteen observations and of the ten pathologies with masks.

The orders are CheXseg's (model outputs and mask channels). CheXpert's CSV has `Lung Opacity` before
`Lung Lesion`, so columns must be selected by name, never by position.
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
"""The observations with expert masks, in the order of mask channels."""

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
"""The five observations of the CheXpert leaderboard."""

ALIASES: Final = {"Lung Opacity": "Airspace Opacity"}
"""Other spellings: CheXpert's CSV says `Lung Opacity` where the masks say `Airspace Opacity`."""

POSITIVE: Final = 1
NEGATIVE: Final = 0
UNCERTAIN: Final = -1
BLANK: Final = -2


def canonical(name: str) -> str:
    """Return our name of an observation, whichever spelling a file uses."""
    return ALIASES.get(name, name)


def pathology_labels(labels: Int[np.ndarray, "*b 14"]) -> Int[np.ndarray, "*b 10"]:
    """Select the labels of the ten pathologies from those of the fourteen observations.

    Cardiomegaly implies an enlarged cardiomediastinum, as in the experts' masks, where the mediastinum
    contains the heart; CheXpert's labels leave it blank there. A blank counts as negative.
    """
    selected = labels[..., list(OBSERVATION_OF_PATHOLOGY)]
    selected = np.where(selected == BLANK, NEGATIVE, selected)
    enlarged, heart = map(PATHOLOGIES.index, ("Enlarged Cardiomediastinum", "Cardiomegaly"))
    has_heart = selected[..., heart] == POSITIVE
    selected[..., enlarged] = np.where(has_heart, POSITIVE, selected[..., enlarged])
    return selected
