"""The bones: ribs before and behind, clavicles, shoulder blades, arms and spine."""

import numpy as np

from datasets.phantom.anatomy import Chest, Lung
from datasets.phantom.canvas import Canvas, Plane
from datasets.phantom.curves import Points, ribbon, ribbons, smooth

RIBS = 10


def bones(rng: np.random.Generator, chest: Chest, canvas: Canvas, fractured: bool) -> Plane:
    """Returns what the bones add to the density; a fracture displaces the outer half of a rib."""
    if chest.lateral:
        return _lateral(rng, chest.lungs[0], canvas)
    back: list[Points] = []
    front: list[Points] = []
    edges: list[Points] = []
    broken = (int(rng.integers(3, 8)), int(rng.integers(2)))
    pitch, slope = rng.uniform(0.125, 0.145), rng.uniform(0.13, 0.22)
    t, s = np.linspace(0, 1, 12)[None], np.linspace(0, 1, 8)[None]
    y = -0.86 + pitch * np.arange(RIBS)[:, None]
    for index, lung in enumerate(chest.lungs):
        side = np.sign(lung.wall)
        level = np.clip((y[:, 0] + slope + 0.76) / 1.2, 0.06, 1)
        wall = np.abs(lung.at(1.0, level)[:, :1]) + 0.015
        x = side * (0.07 + (wall - 0.07) * np.sin(t * np.pi / 2))
        arch = y - 0.05 * np.sin(np.pi * np.minimum(1.4 * t, 1)) + slope * t**2.6
        lines = np.stack([x, arch], -1)
        x = side * (wall - (wall - 0.22) * s)
        front += list(ribbons(np.stack([x, arch[:, -1:] + 0.02 + 0.22 * s**0.8], -1)[:8], 0.052))
        if fractured and broken[1] == index:
            back.append(ribbon(lines[broken[0], :7], 0.055))
            lines[broken[0], 7:, 1] += 0.055
            lines[broken[0], :7] = lines[broken[0], 7]
        back += list(ribbons(lines, 0.055))
        for off in (-0.026, 0.026):
            edges += list(ribbons(lines + np.array([[[0, off]]]), 0.010))
    density = 0.085 * canvas.fill(back, 0.006) + 0.06 * canvas.fill(front, 0.012)
    density += 0.06 * canvas.fill(edges, 0.004)
    density += 0.20 * canvas.fill(*_girdle(rng, chest))
    return density + 0.13 * canvas.fill(*_spine(rng))


def _girdle(rng: np.random.Generator, chest: Chest) -> tuple[list[Points], float, list[int]]:
    outlines: list[Points] = []
    angles = np.linspace(0, 2 * np.pi, 20)
    head = np.stack([1.02 + 0.10 * np.cos(angles), -0.62 + 0.10 * np.sin(angles)], 1)
    shaft = ribbon(np.array([(1.04, -0.6), (1.12, -0.2), (1.16, 0.4)]), 0.10)
    blade = smooth(
        [(0.66, -0.66), (0.84, -0.62), (0.86, -0.3), (0.80, -0.05), (0.70, -0.35)], closed=True
    )
    for side in (-1, 1):
        lift = rng.uniform(-0.02, 0.02)
        clavicle = smooth([(0.06, -0.60), (0.25, -0.66), (0.5, -0.72), (0.82, -0.78)])
        around = [blade + np.array([[0.06 * chest.frontal_ap - 0.02, 0]]), head, shaft]
        around.append(ribbon(clavicle + np.array([[0, lift]]), 0.06))
        outlines += [outline * [[side, 1]] for outline in around]
    return outlines, 0.006, [90, 150, 150, 200] * 2


def _spine(rng: np.random.Generator) -> tuple[list[Points], float, list[int]]:
    outlines, levels = [], []
    angles = np.linspace(0, 2 * np.pi, 10)
    for y in np.arange(-1.1, 1.1, 0.115) + rng.uniform(0, 0.1):
        half = 0.068 + 0.015 * y
        block = [(-half, y), (half, y), (half * 0.9, y + 0.05), (half, y + 0.095)]
        block += [(-half, y + 0.095), (-half * 0.9, y + 0.05)]
        process = np.stack([0.012 * np.cos(angles), y + 0.06 + 0.03 * np.sin(angles)], 1)
        outlines += [np.array(block), process]
        levels += [150, 255]
    return outlines, 0.008, levels


def _lateral(rng: np.random.Generator, lung: Lung, canvas: Canvas) -> Plane:
    spine = []
    for y in np.arange(-1.0, 1.1, 0.15):
        x = lung.wall + 0.02 - 0.12 * (y + 0.1) ** 2
        block = [(x - 0.085, y), (x + 0.085, y + 0.01), (x + 0.08, y + 0.12), (x - 0.09, y + 0.115)]
        spine.append(np.array(block))
    t = np.linspace(0, 1, 10)[None]
    heights = (np.linspace(-0.75, 0.35, 9) + rng.uniform(-0.03, 0.03))[:, None]
    across = np.broadcast_to(lung.wall - 0.02 + (lung.hilum - lung.wall) * t, (9, 10))
    down = heights + 0.35 * np.sin(1.7 * t) - 0.08 * t
    ribs = list(ribbons(np.stack([across, down], -1), 0.045))
    sternum = smooth(
        [(lung.hilum + 0.1, -0.62), (lung.hilum - 0.03, -0.2), (lung.hilum - 0.02, 0.1)]
    )
    density = 0.13 * canvas.fill(spine, 0.008) + 0.07 * canvas.fill(ribs, 0.006)
    return density + 0.10 * canvas.fill([ribbon(sternum, 0.06)], 0.008)
