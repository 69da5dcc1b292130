"""Findings between the lung and the chest wall: air, fluid and scars."""

import numpy as np

from datasets.phantom.anatomy import Chest, Lung
from datasets.phantom.curves import ribbon, smooth
from datasets.phantom.finding import Finding


def pneumothorax(rng: np.random.Generator, lung: Lung) -> Finding:
    """Returns air about the top and side of a lung, and the pleura's fine line."""
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
    """Returns fluid at the base of one lung or of both, its surface a meniscus."""
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
    """Returns a band along the chest wall."""
    v = np.linspace(rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.95), 16)
    pen = rng.uniform(0.05, 0.09) * np.sin(np.linspace(0, np.pi, 16))
    band = ribbon(lung.at(0.99, v), pen)
    return Finding("Pleural Other", (band,), 0.4, 0.008)
