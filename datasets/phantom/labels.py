"""Who is ill with what, and what the report says of it.

A study's findings come from a Gaussian copula: latent factors (how sick, how much fluid, how much
collapse) tie them together, and thresholds give each its rate. Train reports are read as CheXpert reads
them, with blanks, uncertainty and mistakes; the others are true.
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
"""CheXpert's columns, in its own order and spelling."""

CAUSES: Final = {
    "Enlarged Cardiomediastinum": ("Cardiomegaly",),
    "Airspace Opacity": ("Edema", "Consolidation", "Atelectasis", "Pneumonia"),
}
"""Findings that are also present whenever one of these is."""

# Rates of the findings themselves, before their causes are added; the rare ones more frequent than in
# CheXpert, so that two thousand images teach them. Train, then valid and test.
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

# Loadings on the latent factors: sick, fluid, collapse, air.
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

# What share of the ill, and of the healthy, a train report leaves uncertain.
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

# What share of the healthy a train report calls healthy; the others it leaves blank.
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

MISSED, IMAGINED, CAUSE_UNSAID = 0.03, 0.01, 0.15


def sample_findings(rng: np.random.Generator, *, train: bool) -> frozenset[str]:
    """Returns the findings of a study: observations, without the consequences of `CAUSES`."""
    factors = rng.standard_normal(4)
    found = set()
    for name, rates in _RATES.items():
        loadings = np.asarray(_LOADINGS[name])
        own = np.sqrt(1 - loadings @ loadings)
        score = loadings @ factors + own * rng.standard_normal()
        if score < NormalDist().inv_cdf(rates[0 if train else 1]):
            found.add(name)
    return frozenset(found)


def true_labels(findings: frozenset[str]) -> dict[str, float | None]:
    """Returns what a perfect reader says of every observation: 1 or 0."""
    labels: dict[str, float | None] = dict.fromkeys(OBSERVATIONS, 0.0)
    for name in findings:
        labels[name] = 1.0
    for name, causes in CAUSES.items():
        if findings & set(causes):
            labels[name] = 1.0
    labels["No Finding"] = 0.0 if findings else 1.0
    return labels


def reported_labels(rng: np.random.Generator, findings: frozenset[str]) -> dict[str, float | None]:
    """Returns what a report says of every observation: 1, 0, uncertain (-1) or nothing."""
    labels: dict[str, float | None] = {}
    for name, truth in true_labels(findings).items():
        chance, mistake, silence = rng.random(3)
        if name == "No Finding":
            continue
        ill = truth == 1
        if ill and name in CAUSES and name not in findings and silence < CAUSE_UNSAID:
            ill = False
        if mistake < (MISSED if ill else IMAGINED):
            ill = not ill
        uncertain = _UNCERTAIN.get(name, (0.01, 0.005))[0 if ill else 1]
        if chance < uncertain:
            labels[name] = -1.0
        elif ill:
            labels[name] = 1.0
        else:
            labels[name] = 0.0 if chance > 1 - _DENIED.get(name, 0.01) else None
    others = [value for name, value in labels.items() if name != "Support Devices"]
    clean = all(value != 1 and value != -1 for value in others) and not findings - {
        "Support Devices"
    }
    labels["No Finding"] = 1.0 if clean and labels["Support Devices"] != 1 else None
    return labels
