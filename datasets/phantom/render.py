"""Render a chest as a radiograph: sum densities along the beam, then apply a tone curve."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from datasets.phantom.anatomy import Chest, Lung
from datasets.phantom.drawing import Canvas, Plane, Points, blob, ribbon, ribbons, smooth
from datasets.phantom.findings import Finding


def render(
    rng: np.random.Generator, chest: Chest, findings: list[Finding], canvas: Canvas
) -> UInt8[np.ndarray, "h w"]:
    """Render one image."""
    fractured = any(finding.observation == "Fracture" for finding in findings)
    density, clear = _soft_tissue(rng, chest, canvas)
    blood = clear * vessels(rng, chest, canvas)
    for finding in findings:
        if finding.bloodless:
            blood = blood * (1 - canvas.fill(list(finding.regions)))
    density += 0.42 * blood
    density += (0.35 + 0.65 * clear) * bones(rng, chest, canvas, fractured)
    for finding in findings:
        density += _paint(rng, finding, density, canvas)
    return _expose(rng, density, chest, canvas)


def _soft_tissue(rng: np.random.Generator, chest: Chest, canvas: Canvas) -> tuple[Plane, Plane]:
    """Compute the density of soft tissue, and the visibility of vessels and bones through it."""
    floor = np.float32(np.mean([lung.dome for lung in chest.lungs]))
    body = canvas.fill([chest.body, *chest.arms], 0.02)
    deep = canvas.fill([chest.body], 0.25)
    lungs = [lung.outline() for lung in chest.lungs]
    strip = [(-0.13, -0.55), (0.13, -0.55), (0.13, floor + 0.04), (-0.13, floor + 0.04)]
    between = [] if chest.lateral else [np.array(strip)]
    levels = [150] * len(between) + [255] * len(lungs)
    air = canvas.fill([*between, *lungs], 0.010, levels)
    depth = canvas.fill([*between, *lungs], 0.10, levels)
    heart = canvas.fill([chest.heart], 0.012)
    solid = heart * (0.30 + 0.20 * canvas.fill([chest.heart], 0.09))
    solid = np.maximum(solid, 0.46 * canvas.fill([chest.mediastinum], 0.018))
    rows = canvas.rows()
    below = np.clip((rows - floor) * 3 + 0.4, 0, 1)
    solid *= np.clip(2.2 * (rows + 1.05), 0.15, 1) * (1 - 0.8 * below * (1 - air))
    density = body * (0.36 + 0.50 * deep + 0.22 * below * (1 - air))
    density += solid - air * (0.22 + 0.36 * depth)
    if chest.female:
        breasts = _breasts(rng, chest)
        density += canvas.fill(breasts, 0.015) * (0.02 + 0.15 * canvas.fill(breasts, 0.08))
    x, y = chest.stomach
    if rng.random() < 0.6:
        bubble = blob(rng, (x, y), (rng.uniform(0.08, 0.18), rng.uniform(0.04, 0.08)), 0.3)
        density -= 0.28 * canvas.fill([bubble], 0.016)
    density -= 0.17 * canvas.fill([ribbon(chest.trachea, 0.085)], 0.014)
    grain = 0.02 * canvas.texture(rng, 0.3) + (0.018 * air) * canvas.texture(rng, 0.035)
    return density + body * grain, body * (1 - 0.75 * np.minimum(2 * solid, 1))


def _breasts(rng: np.random.Generator, chest: Chest) -> list[Points]:
    angles = np.linspace(0, 2 * np.pi, 40)
    size, sag = rng.uniform(0.24, 0.34), rng.uniform(0.20, 0.42)
    if chest.lateral:
        return [np.stack([-0.75 + 0.2 * np.cos(angles), sag + 0.25 * np.sin(angles)], 1)]
    x = rng.uniform(0.42, 0.5)
    ring = np.stack([1.05 * size * np.cos(angles), size * np.sin(angles)], 1)
    ring[:, 1] = np.where(ring[:, 1] < 0, 1.2 * ring[:, 1], ring[:, 1])
    return [ring + np.array([[side * x, sag]]) for side in (-1, 1)]


def _paint(rng: np.random.Generator, finding: Finding, density: Plane, canvas: Canvas) -> Plane:
    """Compute the density that a finding adds; it replaces air, which hides borders of like density."""
    layer = np.zeros_like(density)
    if finding.density and finding.regions:
        shape = canvas.fill(list(finding.regions), finding.softness)
        if finding.grain:
            grain = canvas.texture(rng, 0.07) + canvas.texture(rng, 0.15)
            shape = shape * (1 + finding.grain * np.clip(0.6 * grain, -1.5, 1.5))
        air = np.clip(1.05 - density, 0, 0.7) if finding.density > 0 else np.float32(0.7)
        layer += np.float32(finding.density) * shape * (0.2 + 1.15 * air)
    for level in sorted({stroke[1] for stroke in finding.strokes}):
        outlines = [outline for outline, density in finding.strokes if density == level]
        layer += np.float32(level) * canvas.fill(outlines)
    return layer


def _expose(
    rng: np.random.Generator, density: Plane, chest: Chest, canvas: Canvas
) -> UInt8[np.ndarray, "h w"]:
    gain = np.float32(rng.uniform(2.9, 4.4))
    centre = np.float32(rng.uniform(0.56, 0.76))
    density -= 0.5 * np.maximum(density - 0.9, 0)  # the shoulder of the tone curve
    density = density + np.float32(rng.uniform(0.008, 0.02)) * rng.standard_normal(
        density.shape, np.float32
    )
    light = 1 / (1 + np.exp(gain * (centre - density)))
    dark = 1 / (1 + np.exp(gain * centre))
    light = np.clip((light - dark) / (0.93 - dark), 0, 1)
    image = Image.fromarray((255 * light).astype(np.uint8))
    _mark_side(rng, image, chest, canvas)
    return np.asarray(image)


def _mark_side(rng: np.random.Generator, image: Image.Image, chest: Chest, canvas: Canvas) -> None:
    if rng.random() < 0.15:
        return
    pen = ImageDraw.Draw(image)
    side = 1 if rng.random() < 0.75 else -1
    size = max(8, int(0.10 * canvas.unit))
    margin = canvas.width / 2 - rng.uniform(0.05, 0.12) * canvas.width
    x = canvas.width / 2 + side * margin
    y = rng.uniform(0.04, 0.14) * canvas.height
    pen.text((x, y), "L" if side > 0 else "R", fill=245, anchor="mt", font_size=size)
    if chest.frontal_ap and rng.random() < 0.5:
        pen.text((x, y + 1.3 * size), "AP", fill=225, anchor="mt", font_size=0.6 * size)


RIBS = 10


def bones(rng: np.random.Generator, chest: Chest, canvas: Canvas, fractured: bool) -> Plane:
    """Compute the density of the bones; a fracture displaces the outer part of a rib."""
    if chest.lateral:
        return _lateral_bones(rng, chest.lungs[0], canvas)
    back, front, edges = [], [], []
    broken_rib = (int(rng.integers(3, 8)), int(rng.integers(2)))
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
        if fractured and broken_rib[1] == index:
            back.append(ribbon(lines[broken_rib[0], :7], 0.055))
            lines[broken_rib[0], 7:, 1] += 0.055
            lines[broken_rib[0], :7] = lines[broken_rib[0], 7]
        back += list(ribbons(lines, 0.055))
        for off in (-0.026, 0.026):
            edges += list(ribbons(lines + np.array([[[0, off]]]), 0.010))
    density = 0.085 * canvas.fill(back, 0.006) + 0.06 * canvas.fill(front, 0.012)
    density += 0.06 * canvas.fill(edges, 0.004)
    density += 0.20 * canvas.fill(*_shoulder_girdle(rng, chest))
    return density + 0.13 * canvas.fill(*_spine(rng))


def _shoulder_girdle(
    rng: np.random.Generator, chest: Chest
) -> tuple[list[Points], float, list[int]]:
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


def _lateral_bones(rng: np.random.Generator, lung: Lung, canvas: Canvas) -> Plane:
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


TRUNKS = 8


def vessels(rng: np.random.Generator, chest: Chest, canvas: Canvas) -> Plane:
    """Compute the density of branching vessels that taper away from the hilum."""
    outlines, levels = [], []
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
    # Draw trunks last, over their branches.
    order = np.argsort(levels, kind="stable")
    return canvas.fill([outlines[k] for k in order], 0.009, [levels[k] for k in order])
