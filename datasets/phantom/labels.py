"""Sample a study's findings and its image-level labels.

A Gaussian copula gives the findings their rates and correlations: they share latent factors (illness,
fluid, collapse, air), and a threshold sets each rate. Train labels imitate CheXpert's labeller, with
blanks, uncertainty and errors; valid and test labels are true.
"""

from statistics import NormalDist
from typing import Final

import numpy as np

from chexseg_jax.pathologies import OBSERVATIONS

CSV_OBSERVATIONS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
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
"""CheXpert's columns in its order and spelling."""

CAUSES: Final = {
    "Enlarged Cardiomediastinum": ("Cardiomegaly",),
    "Airspace Opacity": ("Edema", "Consolidation", "Atelectasis", "Pneumonia"),
}
"""Observations implied by any of several others."""

# Rates before implied observations are added, in train and in valid and test. Rare findings are more
# frequent than in CheXpert, so that they can be learned from two thousand images.
_RATES: Final = {
    "Enlarged Cardiomediastinum": (0.12, 0.28),
    "Cardiomegaly": (0.18, 0.27),
    "Lung Lesion": (0.10, 0.07),
    "Airspace Opacity": (0.16, 0.16),
    "Edema": (0.22, 0.19),
    "Consolidation": (0.13, 0.12),
    "Pneumonia": (0.05, 0.04),
    "Atelectasis": (0.22, 0.28),
    "Pneumothorax": (0.14, 0.09),
    "Pleural Effusion": (0.36, 0.29),
    "Pleural Other": (0.04, 0.03),
    "Fracture": (0.06, 0.04),
    "Support Devices": (0.48, 0.43),
}

# Loadings on the latent factors: illness, fluid, collapse, air.
_LOADINGS: Final = {
    "Enlarged Cardiomediastinum": (0.45, 0.3, 0.0, 0.0),
    "Cardiomegaly": (0.35, 0.6, 0.0, 0.0),
    "Lung Lesion": (0.15, 0.0, 0.0, 0.0),
    "Airspace Opacity": (0.5, 0.0, 0.2, 0.0),
    "Edema": (0.45, 0.65, 0.0, 0.0),
    "Consolidation": (0.5, 0.0, 0.2, 0.0),
    "Pneumonia": (0.4, 0.0, 0.0, 0.0),
    "Atelectasis": (0.45, 0.0, 0.6, 0.0),
    "Pneumothorax": (0.35, 0.0, 0.0, 0.75),
    "Pleural Effusion": (0.5, 0.4, 0.5, 0.0),
    "Pleural Other": (0.2, 0.0, 0.0, 0.0),
    "Fracture": (0.2, 0.0, 0.0, 0.4),
    "Support Devices": (0.7, 0.0, 0.0, 0.4),
}

# Fractions of positive and of negative train labels that are uncertain.
_UNCERTAIN: Final = {
    "Enlarged Cardiomediastinum": (0.12, 0.03),
    "Cardiomegaly": (0.10, 0.02),
    "Airspace Opacity": (0.03, 0.01),
    "Lung Lesion": (0.04, 0.01),
    "Edema": (0.12, 0.03),
    "Consolidation": (0.30, 0.08),
    "Pneumonia": (0.35, 0.06),
    "Atelectasis": (0.30, 0.08),
    "Pneumothorax": (0.03, 0.01),
    "Pleural Effusion": (0.07, 0.03),
}

# Fraction of negative train labels that are explicit; the others are blank.
_DENIED: Final = {
    "Enlarged Cardiomediastinum": 0.10,
    "Cardiomegaly": 0.06,
    "Edema": 0.12,
    "Consolidation": 0.15,
    "Pneumonia": 0.02,
    "Pneumothorax": 0.28,
    "Pleural Effusion": 0.25,
    "Support Devices": 0.04,
}

FALSE_NEGATIVES, FALSE_POSITIVES, UNMENTIONED_IMPLICATIONS = 0.03, 0.01, 0.15


def sample_findings(rng: np.random.Generator, *, train: bool) -> frozenset[str]:
    """Sample the findings of a study, without the observations that `CAUSES` implies."""
    factors = rng.standard_normal(4)
    findings = set()
    for name, rates in _RATES.items():
        loadings = np.asarray(_LOADINGS[name])
        own = np.sqrt(1 - loadings @ loadings)
        score = loadings @ factors + own * rng.standard_normal()
        if score < NormalDist().inv_cdf(rates[0 if train else 1]):
            findings.add(name)
    return frozenset(findings)


def true_labels(findings: frozenset[str]) -> dict[str, float | None]:
    """Label every observation without error: 1 or 0."""
    labels: dict[str, float | None] = dict.fromkeys(OBSERVATIONS, 0.0)
    for name in findings:
        labels[name] = 1.0
    for name, causes in CAUSES.items():
        if findings & set(causes):
            labels[name] = 1.0
    labels["No Finding"] = 0.0 if findings else 1.0
    return labels


def reported_labels(rng: np.random.Generator, findings: frozenset[str]) -> dict[str, float | None]:
    """Sample the labels of a report: 1, 0, uncertain (-1) or blank (None)."""
    labels: dict[str, float | None] = {}
    for name, truth in true_labels(findings).items():
        chance, error, omission = rng.random(3)
        if name == "No Finding":
            continue
        positive = truth == 1
        implied = name in CAUSES and name not in findings
        if positive and implied and omission < UNMENTIONED_IMPLICATIONS:
            positive = False
        if error < (FALSE_NEGATIVES if positive else FALSE_POSITIVES):
            positive = not positive
        uncertain = _UNCERTAIN.get(name, (0.01, 0.005))[0 if positive else 1]
        if chance < uncertain:
            labels[name] = -1.0
        elif positive:
            labels[name] = 1.0
        else:
            labels[name] = 0.0 if chance > 1 - _DENIED.get(name, 0.01) else None
    others = [value for name, value in labels.items() if name != "Support Devices"]
    normal = all(value != 1 and value != -1 for value in others)
    normal &= findings <= {"Support Devices"} and labels["Support Devices"] != 1
    labels["No Finding"] = 1.0 if normal else None
    return labels
