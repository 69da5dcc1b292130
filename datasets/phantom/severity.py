"""How bad it is, and what that does to the shape of the chest."""

from dataclasses import dataclass

import numpy as np

from datasets.phantom.anatomy import Build, Chest
from datasets.phantom.frontal import frontal_chest
from datasets.phantom.lateral import lateral_chest


@dataclass(frozen=True)
class Severity:
    """What an illness does to the shape of the chest, the same on every view of a study."""

    enlarged: float
    widened: float
    collapsed: int
    """The side of the atelectasis, as an index of `Chest.lungs`."""
    raised: tuple[float, float]
    aired: int
    """The side of the pneumothorax."""


def sample_severity(rng: np.random.Generator, findings: frozenset[str]) -> Severity:
    """Returns how bad it is and on which side."""
    enlarged = rng.uniform(0.10, 0.25)
    widened = rng.uniform(0.07, 0.15)
    collapsed, aired = int(rng.integers(2)), int(rng.integers(2))
    lift = rng.uniform(0.07, 0.2)
    raised = (lift, 0.0) if collapsed == 0 else (0.0, lift)
    return Severity(
        enlarged=enlarged if "Cardiomegaly" in findings else 0.0,
        widened=widened if "Enlarged Cardiomediastinum" in findings else 0.0,
        collapsed=collapsed,
        raised=raised if "Atelectasis" in findings else (0.0, 0.0),
        aired=aired,
    )


def sample_chest(
    rng: np.random.Generator, build: Build, severity: Severity, *, lateral: bool, ap: bool
) -> Chest:
    """Returns the patient's chest, shaped by the illness."""
    enlarged, widened, raised = severity.enlarged, severity.widened, severity.raised
    if lateral:
        return lateral_chest(rng, build, enlarged=enlarged, widened=widened, raised=raised)
    return frontal_chest(rng, build, ap=ap, enlarged=enlarged, widened=widened, raised=raised)
