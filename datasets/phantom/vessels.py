"""The vessels of the lungs: trees that leave the hilum, fork and taper."""

import numpy as np

from datasets.phantom.anatomy import Chest
from datasets.phantom.canvas import Canvas, Plane
from datasets.phantom.curves import Points, ribbons

TRUNKS = 8


def vessels(rng: np.random.Generator, chest: Chest, canvas: Canvas) -> Plane:
    """Returns how much vessel the beam meets."""
    outlines: list[Points] = []
    levels: list[int] = []
    t = np.linspace(0, 1, 5)[None]
    for lung in chest.lungs:
        aims = np.linspace(-1.35, 1.45, TRUNKS) + rng.normal(size=TRUNKS) * 0.12
        u0, v0 = np.full(TRUNKS, 0.06), 0.45 + 0.06 * aims
        pen, reach = 0.042, 0.42
        for _ in range(3):
            count = len(aims)
            length = reach * rng.uniform(0.75, 1.1, (count, 1)) * t
            bend = aims[:, None] + 0.35 * rng.normal(size=(count, 1)) * t
            u = np.clip(u0[:, None] + length * np.cos(bend), 0, 0.97)
            v = np.clip(v0[:, None] + 0.62 * length * np.sin(bend), 0.05, 0.98)
            lines = lung.at(u.ravel(), v.ravel()).reshape(count, 5, 2)
            outlines += list(ribbons(lines, pen * (1 - 0.55 * t)))
            levels += [int(45 + 95 * min(pen / 0.04, 1))] * count
            rows, forks = np.arange(count), rng.integers(2, 5, (2, count))
            u0 = np.concatenate([u[rows, fork] for fork in forks])
            v0 = np.concatenate([v[rows, fork] for fork in forks])
            turns = rng.uniform(0.2, 0.55, (2, count)) * [[1], [-1]]
            aims = (aims[None] + turns).ravel()
            pen, reach = 0.55 * pen, 0.75 * reach
        angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        oval = np.stack([0.055 * np.cos(angles), 0.10 * np.sin(angles)], 1)
        outlines.append(lung.at(0.08, 0.46) + oval)
        levels.append(110)
    # Trunks are drawn last, over their twigs.
    order = np.argsort(levels, kind="stable")
    return canvas.fill([outlines[k] for k in order], 0.009, [levels[k] for k in order])
