"""Findings: their severity, their shape and appearance, and their placement in one chest."""

from dataclasses import dataclass

import numpy as np

from datasets.phantom.anatomy import Chest, Lung, Severity
from datasets.phantom.drawing import Points, blob, ribbon, smooth


@dataclass(frozen=True)
class Finding:
    """The regions that annotators outline, and their appearance."""

    observation: str
    regions: tuple[Points, ...] = ()
    density: float = 0.0
    """Density added within the regions."""
    softness: float = 0.02
    """Width of the regions' edges."""
    grain: float = 0.0
    """Amplitude of the texture relative to the density."""
    strokes: tuple[tuple[Points, float], ...] = ()
    """Fine outlines, each with the density it adds."""
    bloodless: bool = False
    """Whether the regions have no vessels."""


def sample_severity(rng: np.random.Generator, findings: frozenset[str]) -> Severity:
    """Sample the severity and side of a study's findings."""
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


def edema(rng: np.random.Generator, chest: Chest) -> Finding:
    """Sample bat-wing opacities around the hila, with Kerley lines."""
    extent = rng.uniform(0.6, 1.3)
    height = rng.uniform(0.42, 0.68)
    regions, strokes = [], []
    for lung in chest.lungs:
        uneven = rng.uniform(0.7, 1.15)
        radii = (0.50 * extent * uneven, 0.27 * extent * uneven)
        regions.append(_patch(lung, blob(rng, (0.25, height), radii, 0.25)))
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


def consolidation(rng: np.random.Generator, lung: Lung) -> Finding:
    """Sample a dense lobe, or part of one, with air bronchograms."""
    centre = (rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.82))
    radii = (rng.uniform(0.24, 0.42), rng.uniform(0.11, 0.2))
    uv = np.clip(blob(rng, centre, radii, 0.35), 0.03, 0.97)
    if rng.random() < 0.4:  # bounded by a fissure
        uv[:, 1] = np.minimum(uv[:, 1], centre[1] + 0.3 * radii[1])
    bronchi = []
    for fork in rng.uniform(-0.3, 1.1, 3):
        reach = np.linspace(-0.7, 0.7, 7)
        u = centre[0] + reach * radii[0] * np.cos(fork)
        v = centre[1] + (reach + 0.3 * np.sin(3 * reach + fork)) * radii[1] * np.sin(fork)
        pen = np.linspace(0.03, 0.01, 7)
        bronchi.append((ribbon(lung.at(u, np.clip(v, 0.05, 0.97)), pen), -0.13))
    density = rng.uniform(0.5, 0.72)
    region = lung.at(uv[:, 0], uv[:, 1])
    return Finding("Consolidation", (region,), density, 0.025, 0.12, tuple(bronchi))


def patches(rng: np.random.Generator, chest: Chest) -> Finding:
    """Sample one to three soft, irregular opacities."""
    regions = []
    for _ in range(int(rng.integers(1, 4))):
        centre = (rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.85))
        radii = (rng.uniform(0.18, 0.34), rng.uniform(0.09, 0.17))
        regions.append(_patch(chest.any_lung(rng), blob(rng, centre, radii, 0.6)))
    return Finding("Airspace Opacity", tuple(regions), rng.uniform(0.28, 0.46), 0.035, 0.5)


def atelectasis(rng: np.random.Generator, lung: Lung) -> Finding:
    """Sample plate atelectases above the diaphragm, or a collapsed lower lobe."""
    if rng.random() < 0.35:  # a collapsed lower lobe: a wedge behind the heart
        reach, top = rng.uniform(0.55, 0.9), rng.uniform(0.52, 0.7)
        knots = [(0.03, top), (0.45 * reach, top + 0.12), (reach, 1.0), (reach / 2, 1.0)]
        uv = smooth([*knots, (0.03, 1.0)])
        return Finding("Atelectasis", (lung.at(*uv.T),), rng.uniform(0.55, 0.75), 0.02, 0.1)
    regions = []
    height = rng.uniform(0.84, 0.93)
    for _ in range(int(rng.integers(1, 4))):
        u = np.linspace(rng.uniform(0.1, 0.3), rng.uniform(0.75, 0.95), 10)
        v = height + rng.uniform(-0.07, 0.07) * (u - 0.5) * 2 + 0.02 * np.sin(4 * u)
        pen = rng.uniform(0.055, 0.09) * np.sin(np.linspace(0.35, np.pi - 0.35, 10))
        regions.append(ribbon(lung.at(u, v), pen))
        height -= rng.uniform(0.1, 0.16)
    return Finding("Atelectasis", tuple(regions), rng.uniform(0.42, 0.62), 0.012, 0.1)


def lesions(rng: np.random.Generator, chest: Chest) -> Finding:
    """Sample one to three nodules."""
    regions = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        centre = chest.any_lung(rng).at(rng.uniform(0.3, 0.75), rng.uniform(0.2, 0.85))[0]
        radius = rng.uniform(0.075, 0.13)
        regions.append(blob(rng, centre, (radius, radius * rng.uniform(0.85, 1.15)), 0.12))
    return Finding("Lung Lesion", tuple(regions), rng.uniform(0.48, 0.66), 0.010, 0.05)


def _patch(lung: Lung, uv: Points) -> Points:
    return lung.at(*np.clip(uv, 0.03, 0.97).T)


def pneumothorax(rng: np.random.Generator, lung: Lung) -> Finding:
    """Sample air around the apex and side of a lung, bounded by the pleural line."""
    rim, depth = rng.uniform(0.2, 0.5), rng.uniform(0.55, 1.0)
    cap = rng.uniform(0.10, 0.22) + 0.2 * (rim - 0.2)
    pleura = smooth(
        [
            (1.0, depth),
            (1 - 0.55 * rim, 0.8 * depth),
            (1 - rim, 0.5 * depth),
            (1 - 1.1 * rim, max(0.3 * depth + 0.06, cap + 0.08)),
            (0.75 - rim, cap + 0.02),
            (0.0, cap * 0.8),
        ]
    )
    edge = lung.at(*pleura.T)
    inner = lung.at(0.0, np.linspace(cap * 0.8, 0, 6))
    outer = lung.at(1.0, np.linspace(0, depth, 20))
    line = (ribbon(edge, 0.020), 0.32)
    region = np.concatenate([edge, inner, outer])
    density = -rng.uniform(0.22, 0.34)
    return Finding("Pneumothorax", (region,), density, 0.008, 0.0, (line,), bloodless=True)


def effusion(rng: np.random.Generator, chest: Chest) -> Finding:
    """Sample fluid at the base of one or both lungs, with a meniscus."""
    both = len(chest.lungs) == 2 and rng.random() < 0.45
    first = int(rng.integers(len(chest.lungs)))
    regions = []
    for lung in chest.lungs if both else (chest.lungs[first],):
        level = rng.beta(2.2, 2.0) * 0.48 + 0.4
        start = float(np.clip(1.5 * level - 0.95, 0.0, 0.5))
        u = np.linspace(start, 1, 16)
        medial = 1.0 if start > 0 else min(level + rng.uniform(0.1, 0.25), 1.0)
        fall = medial - (medial - level) * ((u - start) / (1 - start)) ** rng.uniform(1.2, 2.2)
        low = 1.0 + 0.05 * np.sin(np.pi * (u - start) / (1 - start))
        regions.append(np.concatenate([lung.at(u, fall), lung.at(u[::-1], low)]))
    return Finding("Pleural Effusion", tuple(regions), rng.uniform(0.62, 0.8), 0.022, 0.04)


def thickening(rng: np.random.Generator, lung: Lung) -> Finding:
    """Sample pleural thickening along the chest wall."""
    v = np.linspace(rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.95), 16)
    pen = rng.uniform(0.05, 0.09) * np.sin(np.linspace(0, np.pi, 16))
    band = ribbon(lung.at(0.99, v), pen)
    return Finding("Pleural Other", (band,), 0.4, 0.008)


PEN = 0.075
"""Width of annotators' outlines of thin devices."""


def support_devices(rng: np.random.Generator, chest: Chest, drained: int | None) -> Finding:
    """Sample support devices; `drained` is the index of the lung with a chest tube."""
    kinds = (_endotracheal_tube, _central_line, _feeding_tube, _pacemaker, _sternal_wires)
    chosen = rng.random(5) < [0.25, 0.35, 0.2, 0.25, 0.18]
    if drained is None and not chosen.any():
        chosen[int(rng.integers(5))] = True
    if chest.lateral:
        chosen[4] = False
        if drained is None and not chosen.any():
            chosen[1] = True
    devices = [kind(rng, chest) for kind, is_chosen in zip(kinds, chosen, strict=True) if is_chosen]
    if drained is not None:
        devices.append(_chest_tube(rng, chest.lungs[drained]))
    regions = [region for device in devices for region in device.regions]
    return _devices(regions, [stroke for device in devices for stroke in device.strokes])


def _devices(regions: list[Points], strokes: list[tuple[Points, float]]) -> Finding:
    return Finding("Support Devices", tuple(regions), strokes=tuple(strokes))


def _thin(line: Points, pen: float, density: float) -> Finding:
    return _devices([ribbon(line, PEN)], [(ribbon(line, pen), density)])


def _endotracheal_tube(rng: np.random.Generator, chest: Chest) -> Finding:
    end = int(len(chest.trachea) * rng.uniform(0.7, 0.95))
    line = chest.trachea[: max(end, 6)]
    walls = [line + np.array([[side, 0.0]]) for side in (-0.016, 0.016)]
    return _devices([ribbon(line, PEN)], [(ribbon(wall, 0.015), 0.42) for wall in walls])


def _central_line(rng: np.random.Generator, chest: Chest) -> Finding:
    side = -1.0 if rng.random() < 0.65 else 1.0
    vein = (-0.09 if not chest.lateral else 0.02) + rng.uniform(-0.015, 0.015)
    tip = rng.uniform(-0.25, 0.08)
    way = rng.integers(3)
    if chest.lateral or way == 0:  # from the neck
        knots = [(side * 0.2, -1.05), (side * 0.17, -0.8), (vein + 0.02 * side, -0.55)]
    elif way == 1:  # under the clavicle
        knots = [(side * 0.62, -0.52), (side * 0.42, -0.64), (side * 0.18, -0.62), (vein, -0.5)]
    else:  # from the arm
        knots = [(side * 1.0, -0.1), (side * 0.86, -0.42), (side * 0.55, -0.6)]
        knots += [(side * 0.2, -0.6), (vein, -0.48)]
    line = smooth([*knots, (vein, -0.35), (vein + 0.01, tip)])
    return _thin(line, 0.026, 0.46)


def _feeding_tube(rng: np.random.Generator, chest: Chest) -> Finding:
    x, y = chest.stomach
    start = 0.12 if chest.lateral else 0.0
    knots = [(start, -1.1), (start + rng.normal() * 0.02, -0.6), (start + 0.03, -0.1)]
    line = smooth([*knots, (start + 0.05, y - 0.2), (x * 0.6, y), (x, y + 0.05)])
    return _thin(line, 0.028, 0.44)


def _pacemaker(rng: np.random.Generator, chest: Chest) -> Finding:
    side = 1.0 if rng.random() < 0.75 else -1.0
    x, y = side * rng.uniform(0.5, 0.64), rng.uniform(-0.52, -0.38)
    if chest.lateral:
        x, y = -0.55, -0.5
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    turn = rng.uniform(-0.4, 0.4)
    x_wave, y_wave = np.cos(angles), np.sin(angles)
    sides = 0.125 * np.sign(x_wave) * np.abs(x_wave) ** 0.5
    box = np.stack([sides, 0.10 * np.sign(y_wave) * np.abs(y_wave) ** 0.5], 1)
    box = box @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    box += [[x, y]]
    tip = chest.heart[int(len(chest.heart) * 0.62)] * 0.85
    vein = 0.05 if chest.lateral else -0.09
    knots = [(x, y - 0.05), (x * 0.7, -0.64), (side * 0.1, -0.6), (vein, -0.4)]
    line = smooth([*knots, (vein, 0.0), (0.0, tip[1] - 0.05), tuple(tip)])
    return _devices([box, ribbon(line, PEN)], [(box, 0.75), (ribbon(line, 0.024), 0.55)])


def _sternal_wires(rng: np.random.Generator, chest: Chest) -> Finding:
    regions, strokes = [], []
    angles = np.linspace(0, 2 * np.pi, 17)
    for y in np.linspace(-0.5, 0.22, int(rng.integers(4, 7))):
        radii = np.array([[rng.uniform(0.03, 0.045), rng.uniform(0.022, 0.032)]])
        centre = np.array([[rng.normal() * 0.006, y]])
        ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radii
        strokes.append((ribbon(ring + centre, 0.018), 0.6))
        regions.append(ring * 1.4 + centre)
    return _devices(regions, strokes)


def _chest_tube(rng: np.random.Generator, lung: Lung) -> Finding:
    foot = lung.at(1.0, rng.uniform(0.65, 0.85))[0]
    top = lung.at(rng.uniform(0.4, 0.75), rng.uniform(0.1, 0.3))[0]
    outside = foot + np.array([0.3 * np.sign(lung.wall - lung.hilum), 0.12])
    bend = lung.at(0.8, 0.5)[0]
    return _thin(smooth([outside, foot, bend, top]), 0.034, 0.42)


def place_findings(
    rng: np.random.Generator, chest: Chest, severity: Severity, findings: frozenset[str]
) -> list[Finding]:
    """Place every finding of a study in one chest."""
    placed: list[Finding] = []
    if "Cardiomegaly" in findings:
        placed.append(Finding("Cardiomegaly", (chest.heart,)))
    if "Enlarged Cardiomediastinum" in findings:
        silhouette = np.maximum(chest.mediastinum, [[-np.inf, -0.62]])
        placed.append(Finding("Enlarged Cardiomediastinum", (silhouette, chest.heart)))
    if "Edema" in findings:
        placed.append(edema(rng, chest))
    if "Consolidation" in findings:
        placed.append(consolidation(rng, chest.any_lung(rng)))
    if findings & {"Airspace Opacity", "Pneumonia"}:
        placed.append(patches(rng, chest))
    if "Atelectasis" in findings:
        placed.append(atelectasis(rng, chest.lungs[severity.collapsed % len(chest.lungs)]))
    if "Pneumothorax" in findings:
        placed.append(pneumothorax(rng, chest.lungs[severity.aired % len(chest.lungs)]))
    if "Pleural Effusion" in findings:
        placed.append(effusion(rng, chest))
    if "Lung Lesion" in findings:
        placed.append(lesions(rng, chest))
    if "Pleural Other" in findings:
        placed.append(thickening(rng, chest.any_lung(rng)))
    if "Fracture" in findings:
        placed.append(Finding("Fracture"))  # `render` displaces the rib
    if "Support Devices" in findings:
        drained = findings & {"Pneumothorax"} and rng.random() < 0.7
        side = severity.aired % len(chest.lungs) if drained else None
        placed.append(support_devices(rng, chest, side))
    return placed
