"""Sample a study's findings and its image-level labels.

A Gaussian copula gives the findings their rates and correlations: they share latent factors (illness,
fluid, collapse, air), and a threshold sets each rate. Train labels imitate CheXpert's labeller, with
blanks, uncertainty and errors; valid and test labels are true.
"""

from statistics import NormalDist
from typing import Final, NamedTuple

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


class Prior(NamedTuple):
    """The frequency of an observation, and how reports mention it."""

    train: float
    """Rate in train, before implied observations are added."""
    evaluation: float
    """Rate in valid and test."""
    loadings: tuple[float, float, float, float]
    """Loadings on the latent factors: illness, fluid, collapse, air."""
    uncertain: tuple[float, float] = (0.01, 0.005)
    """Fractions of positive and of negative train labels that are uncertain."""
    denied: float = 0.01
    """Fraction of negative train labels that are explicit; the others are blank."""


# Rare findings are more frequent than in CheXpert, so that they can be learned from 2,000 images.
_PRIORS: Final = {
    "Enlarged Cardiomediastinum": Prior(
        0.12, 0.28, (0.45, 0.3, 0.0, 0.0), uncertain=(0.12, 0.03), denied=0.10
    ),
    "Cardiomegaly": Prior(0.18, 0.27, (0.35, 0.6, 0.0, 0.0), uncertain=(0.1, 0.02), denied=0.06),
    "Lung Lesion": Prior(0.10, 0.07, (0.15, 0.0, 0.0, 0.0), uncertain=(0.04, 0.01)),
    "Airspace Opacity": Prior(0.16, 0.16, (0.5, 0.0, 0.2, 0.0), uncertain=(0.03, 0.01)),
    "Edema": Prior(0.22, 0.19, (0.45, 0.65, 0.0, 0.0), uncertain=(0.12, 0.03), denied=0.12),
    "Consolidation": Prior(0.13, 0.12, (0.5, 0.0, 0.2, 0.0), uncertain=(0.3, 0.08), denied=0.15),
    "Pneumonia": Prior(0.05, 0.04, (0.4, 0.0, 0.0, 0.0), uncertain=(0.35, 0.06), denied=0.02),
    "Atelectasis": Prior(0.22, 0.28, (0.45, 0.0, 0.6, 0.0), uncertain=(0.3, 0.08)),
    "Pneumothorax": Prior(0.14, 0.09, (0.35, 0.0, 0.0, 0.75), uncertain=(0.03, 0.01), denied=0.28),
    "Pleural Effusion": Prior(
        0.36, 0.29, (0.5, 0.4, 0.5, 0.0), uncertain=(0.07, 0.03), denied=0.25
    ),
    "Pleural Other": Prior(0.04, 0.03, (0.2, 0.0, 0.0, 0.0)),
    "Fracture": Prior(0.06, 0.04, (0.2, 0.0, 0.0, 0.4)),
    "Support Devices": Prior(0.48, 0.43, (0.7, 0.0, 0.0, 0.4), denied=0.04),
}

FALSE_NEGATIVES, FALSE_POSITIVES, UNMENTIONED_IMPLICATIONS = 0.03, 0.01, 0.15


def sample_findings(rng: np.random.Generator, *, train: bool) -> frozenset[str]:
    """Sample the findings of a study, without the observations that `CAUSES` implies."""
    factors = rng.standard_normal(4)
    findings = set()
    for name, prior in _PRIORS.items():
        loadings = np.asarray(prior.loadings)
        own = np.sqrt(1 - loadings @ loadings)
        score = loadings @ factors + own * rng.standard_normal()
        if score < NormalDist().inv_cdf(prior.train if train else prior.evaluation):
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
        prior = _PRIORS[name]
        if chance < prior.uncertain[0 if positive else 1]:
            labels[name] = -1.0
        elif positive:
            labels[name] = 1.0
        else:
            labels[name] = 0.0 if chance > 1 - prior.denied else None
    others = [value for name, value in labels.items() if name != "Support Devices"]
    normal = all(value != 1 and value != -1 for value in others)
    normal &= findings <= {"Support Devices"} and labels["Support Devices"] != 1
    labels["No Finding"] = 1.0 if normal else None
    return labels
