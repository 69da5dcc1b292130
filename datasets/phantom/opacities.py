"""Findings within the lung: edema, consolidation, patches, atelectasis and lesions."""

import numpy as np

from datasets.phantom.anatomy import Chest, Lung
from datasets.phantom.curves import Points, blob, ribbon, smooth
from datasets.phantom.finding import Finding


def edema(rng: np.random.Generator, chest: Chest) -> Finding:
    """Returns a bat's wing about both hila, with Kerley lines."""
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


def consolidation(rng: np.random.Generator, lung: Lung) -> Finding:
    """Returns a dense lobe or part of one, with air in its bronchi."""
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


def patches(rng: np.random.Generator, chest: Chest) -> Finding:
    """Returns one to three soft, ragged opacities."""
    regions = []
    for _ in range(int(rng.integers(1, 4))):
        centre = (rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.85))
        radii = (rng.uniform(0.18, 0.34), rng.uniform(0.09, 0.17))
        regions.append(_patch(rng, chest.any_lung(rng), centre, radii, 0.6))
    return Finding("Airspace Opacity", tuple(regions), rng.uniform(0.28, 0.46), 0.035, 0.5)


def atelectasis(rng: np.random.Generator, lung: Lung) -> Finding:
    """Returns plates above the diaphragm, or a collapsed lower lobe."""
    if rng.random() < 0.35:  # a collapsed lower lobe: a wedge behind the heart
        reach, top = rng.uniform(0.55, 0.9), rng.uniform(0.52, 0.7)
        knots = [(0.03, top), (0.45 * reach, top + 0.12), (reach, 1.0), (reach / 2, 1.0)]
        chart = smooth([*knots, (0.03, 1.0)])
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


def lesions(rng: np.random.Generator, chest: Chest) -> Finding:
    """Returns one to three nodules."""
    regions = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        place = chest.any_lung(rng).at(rng.uniform(0.3, 0.75), rng.uniform(0.2, 0.85))[0]
        radius = rng.uniform(0.075, 0.13)
        regions.append(blob(rng, place, (radius, radius * rng.uniform(0.85, 1.15)), 0.12))
    return Finding("Lung Lesion", tuple(regions), rng.uniform(0.48, 0.66), 0.010, 0.05)


def _patch(
    rng: np.random.Generator,
    lung: Lung,
    centre: tuple[float, float],
    radii: tuple[float, float],
    roughness: float,
) -> Points:
    chart = np.clip(blob(rng, centre, radii, roughness), 0.03, 0.97)
    return lung.at(chart[:, 0], chart[:, 1])
