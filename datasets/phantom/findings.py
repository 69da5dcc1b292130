"""Findings drawn into a chest: where each lies, and what it does to the film."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from datasets.phantom.anatomy import Build, Chest, Lung, frontal_chest, lateral_chest
from datasets.phantom.curves import Points, blob, ribbon, smooth
from datasets.phantom.devices import sample_devices


@dataclass(frozen=True)
class Finding:
    """One finding: the region a reader outlines and how it looks."""

    observation: str
    regions: tuple[Points, ...] = ()
    density: float = 0.0
    """What the region adds to the film's density."""
    softness: float = 0.02
    """How wide the region's edge is."""
    grain: float = 0.0
    """How uneven the region is, relative to its density."""
    strokes: tuple[tuple[Points, float], ...] = ()
    """Fine outlines, and what each adds to the density."""
    airless: bool = field(default=True)
    """Whether vessels still show through; they end at a pneumothorax."""


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


def sample_regions(
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
        drawn.append(_edema(rng, chest))
    if "Consolidation" in findings:
        drawn.append(_consolidation(rng, _pick(rng, chest)))
    if findings & {"Airspace Opacity", "Pneumonia"}:
        drawn.append(_patches(rng, chest))
    if "Atelectasis" in findings:
        drawn.append(_atelectasis(rng, chest.lungs[severity.collapsed % len(chest.lungs)]))
    if "Pneumothorax" in findings:
        drawn.append(_pneumothorax(rng, chest.lungs[severity.aired % len(chest.lungs)]))
    if "Pleural Effusion" in findings:
        drawn.append(_effusion(rng, chest))
    if "Lung Lesion" in findings:
        drawn.append(_lesions(rng, chest))
    if "Pleural Other" in findings:
        drawn.append(_thickening(rng, _pick(rng, chest)))
    if "Fracture" in findings:
        drawn.append(Finding("Fracture"))  # the bones are broken where they are drawn
    if "Support Devices" in findings:
        drained = findings & {"Pneumothorax"} and rng.random() < 0.7
        side = severity.aired % len(chest.lungs) if drained else None
        regions, strokes = sample_devices(rng, chest, drained=side)
        drawn.append(Finding("Support Devices", tuple(regions), strokes=tuple(strokes)))
    return drawn


def _pick(rng: np.random.Generator, chest: Chest) -> Lung:
    return chest.lungs[int(rng.integers(len(chest.lungs)))]


def _patch(
    rng: np.random.Generator,
    lung: Lung,
    centre: tuple[float, float],
    radii: tuple[float, float],
    roughness: float,
) -> Points:
    chart = np.clip(blob(rng, centre, radii, roughness), 0.03, 0.97)
    return lung.at(chart[:, 0], chart[:, 1])


def _edema(rng: np.random.Generator, chest: Chest) -> Finding:
    extent = rng.uniform(0.6, 1.3)
    height = rng.uniform(0.42, 0.68)
    regions, strokes = [], []
    for lung in chest.lungs:
        uneven = rng.uniform(0.7, 1.15)
        radii = (0.50 * extent * uneven, 0.27 * extent * uneven)
        regions.append(_patch(rng, lung, (0.25, height), radii, 0.25))
        for _ in range(int(rng.integers(5, 10))):
            v, u = rng.uniform(0.62, 0.95), rng.uniform(0.80, 0.9)
            line = lung.at(np.linspace(u, min(u + rng.uniform(0.08, 0.14), 0.98), 3), v)
            strokes.append((ribbon(line, 0.011), 0.11))
        for _ in range(16):
            u, v = rng.uniform(0.05, 0.6), height + rng.uniform(-0.22, 0.22) * extent
            turn = rng.uniform(-0.4, 1.0)
            reach = np.linspace(0, rng.uniform(0.1, 0.22), 4)
            line = lung.at(u + reach * np.cos(turn), v + 0.6 * reach * np.sin(turn))
            strokes.append((ribbon(line, 0.02), 0.10))
    density = rng.uniform(0.26, 0.42)
    return Finding("Edema", tuple(regions), density, 0.06, 0.30, tuple(strokes))


def _consolidation(rng: np.random.Generator, lung: Lung) -> Finding:
    centre = (rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.82))
    radii = (rng.uniform(0.24, 0.42), rng.uniform(0.11, 0.2))
    chart = np.clip(blob(rng, centre, radii, 0.35), 0.03, 0.97)
    if rng.random() < 0.4:  # bounded by a fissure
        chart[:, 1] = np.minimum(chart[:, 1], centre[1] + 0.3 * radii[1])
    bronchi = []
    for fork in rng.uniform(-0.3, 1.1, 3):
        reach = np.linspace(-0.7, 0.7, 7)
        u = centre[0] + reach * radii[0] * np.cos(fork)
        v = centre[1] + (reach + 0.3 * np.sin(3 * reach + fork)) * radii[1] * np.sin(fork)
        pen = np.linspace(0.03, 0.01, 7)
        bronchi.append((ribbon(lung.at(u, np.clip(v, 0.05, 0.97)), pen), -0.13))
    density = rng.uniform(0.5, 0.72)
    region = lung.at(chart[:, 0], chart[:, 1])
    return Finding("Consolidation", (region,), density, 0.025, 0.12, tuple(bronchi))


def _patches(rng: np.random.Generator, chest: Chest) -> Finding:
    regions = []
    for _ in range(int(rng.integers(1, 4))):
        centre = (rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.85))
        radii = (rng.uniform(0.18, 0.34), rng.uniform(0.09, 0.17))
        regions.append(_patch(rng, _pick(rng, chest), centre, radii, 0.6))
    return Finding("Airspace Opacity", tuple(regions), rng.uniform(0.28, 0.46), 0.035, 0.5)


def _atelectasis(rng: np.random.Generator, lung: Lung) -> Finding:
    if rng.random() < 0.35:  # a collapsed lower lobe: a wedge behind the heart
        u, v = rng.uniform(0.55, 0.9), rng.uniform(0.52, 0.7)
        chart = smooth([(0.03, v), (u * 0.45, v + 0.12), (u, 1.0), (u / 2, 1.0), (0.03, 1.0)])
        return Finding("Atelectasis", (lung.at(*chart.T),), rng.uniform(0.55, 0.75), 0.02, 0.1)
    regions = []
    height = rng.uniform(0.84, 0.93)
    for _ in range(int(rng.integers(1, 4))):
        u = np.linspace(rng.uniform(0.1, 0.3), rng.uniform(0.75, 0.95), 10)
        v = height + rng.uniform(-0.07, 0.07) * (u - 0.5) * 2 + 0.02 * np.sin(4 * u)
        pen = rng.uniform(0.055, 0.09) * np.sin(np.linspace(0.35, np.pi - 0.35, 10))
        regions.append(ribbon(lung.at(u, v), pen))
        height -= rng.uniform(0.1, 0.16)
    return Finding("Atelectasis", tuple(regions), rng.uniform(0.42, 0.62), 0.012, 0.1)


def _pneumothorax(rng: np.random.Generator, lung: Lung) -> Finding:
    rim, depth = rng.uniform(0.16, 0.42), rng.uniform(0.55, 1.0)
    cap = rng.uniform(0.10, 0.22) + 0.2 * (rim - 0.16)
    pleura = smooth(
        [(1.0, depth), (1 - 0.55 * rim, 0.8 * depth), (1 - rim, 0.5 * depth)]
        + [
            (1 - 1.1 * rim, max(0.3 * depth + 0.06, cap + 0.08)),
            (0.75 - rim, cap + 0.02),
            (0.0, cap * 0.8),
        ]
    )
    edge = lung.at(*pleura.T)
    inner = lung.at(0.0, np.linspace(cap * 0.8, 0, 6))
    outer = lung.at(1.0, np.linspace(0, depth, 20))
    line = (ribbon(edge, 0.016), 0.28)
    region = np.concatenate([edge, inner, outer])
    density = -rng.uniform(0.16, 0.24)
    return Finding("Pneumothorax", (region,), density, 0.008, 0.0, (line,), airless=False)


def _effusion(rng: np.random.Generator, chest: Chest) -> Finding:
    both = len(chest.lungs) == 2 and rng.random() < 0.45
    first = int(rng.integers(len(chest.lungs)))
    regions = []
    for lung in chest.lungs if both else (chest.lungs[first],):
        level = rng.beta(2.2, 2.0) * 0.48 + 0.4
        drop = rng.uniform(0.1, 0.2)
        start = float(np.clip(1.35 * level - 0.62, 0.0, 0.55))
        u = np.linspace(start, 1, 16)
        fall = np.minimum(level + drop * (1 - ((u - start) / (1 - start)) ** 2.2), 1.0)
        low = 1.0 + 0.05 * np.sin(np.pi * (u - start) / (1 - start))
        regions.append(np.concatenate([lung.at(u, fall), lung.at(u[::-1], low)]))
    return Finding("Pleural Effusion", tuple(regions), rng.uniform(0.62, 0.8), 0.022, 0.04)


def _lesions(rng: np.random.Generator, chest: Chest) -> Finding:
    regions = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        place = _pick(rng, chest).at(rng.uniform(0.3, 0.75), rng.uniform(0.2, 0.85))[0]
        radius = rng.uniform(0.075, 0.13)
        regions.append(blob(rng, place, (radius, radius * rng.uniform(0.85, 1.15)), 0.12))
    return Finding("Lung Lesion", tuple(regions), rng.uniform(0.48, 0.66), 0.010, 0.05)


def _thickening(rng: np.random.Generator, lung: Lung) -> Finding:
    v = np.linspace(rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.95), 16)
    pen = rng.uniform(0.05, 0.09) * np.sin(np.linspace(0, np.pi, 16))
    band = ribbon(lung.at(0.99, v), pen)
    return Finding("Pleural Other", (band,), 0.4, 0.008)


def regions_of(drawn: list[Finding]) -> Iterator[tuple[str, Points]]:
    """Yields each region with the name of its observation."""
    for finding in drawn:
        for region in finding.regions:
            yield finding.observation, region
