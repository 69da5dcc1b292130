"""Every finding of a study, placed in one chest."""

import numpy as np

from datasets.phantom.anatomy import Chest
from datasets.phantom.devices import sample_devices
from datasets.phantom.finding import Finding
from datasets.phantom.opacities import atelectasis, consolidation, edema, lesions, patches
from datasets.phantom.pleura import effusion, pneumothorax, thickening
from datasets.phantom.severity import Severity


def place_findings(
    rng: np.random.Generator, chest: Chest, severity: Severity, findings: frozenset[str]
) -> list[Finding]:
    """Returns every finding of a study as it lies in one chest."""
    drawn: list[Finding] = []
    if "Cardiomegaly" in findings:
        drawn.append(Finding("Cardiomegaly", (chest.heart,)))
    if "Enlarged Cardiomediastinum" in findings:
        silhouette = np.maximum(chest.mediastinum, [[-np.inf, -0.62]])
        drawn.append(Finding("Enlarged Cardiomediastinum", (silhouette, chest.heart)))
    if "Edema" in findings:
        drawn.append(edema(rng, chest))
    if "Consolidation" in findings:
        drawn.append(consolidation(rng, chest.any_lung(rng)))
    if findings & {"Airspace Opacity", "Pneumonia"}:
        drawn.append(patches(rng, chest))
    if "Atelectasis" in findings:
        drawn.append(atelectasis(rng, chest.lungs[severity.collapsed % len(chest.lungs)]))
    if "Pneumothorax" in findings:
        drawn.append(pneumothorax(rng, chest.lungs[severity.aired % len(chest.lungs)]))
    if "Pleural Effusion" in findings:
        drawn.append(effusion(rng, chest))
    if "Lung Lesion" in findings:
        drawn.append(lesions(rng, chest))
    if "Pleural Other" in findings:
        drawn.append(thickening(rng, chest.any_lung(rng)))
    if "Fracture" in findings:
        drawn.append(Finding("Fracture"))  # the bones are broken where they are drawn
    if "Support Devices" in findings:
        drained = findings & {"Pneumothorax"} and rng.random() < 0.7
        side = severity.aired % len(chest.lungs) if drained else None
        regions, strokes = sample_devices(rng, chest, drained=side)
        drawn.append(Finding("Support Devices", tuple(regions), strokes=tuple(strokes)))
    return drawn
