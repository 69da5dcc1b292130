"""A chest as a radiograph: densities are summed along the beam, then put through a tone curve."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from datasets.phantom.anatomy import Chest
from datasets.phantom.bones import bones
from datasets.phantom.canvas import Canvas, Plane
from datasets.phantom.curves import Points, blob, ribbon
from datasets.phantom.finding import Finding
from datasets.phantom.vessels import vessels


def render(
    rng: np.random.Generator, chest: Chest, drawn: list[Finding], canvas: Canvas
) -> UInt8[np.ndarray, "h w"]:
    """Returns the film."""
    fractured = any(finding.observation == "Fracture" for finding in drawn)
    density, clear = _flesh(rng, chest, canvas)
    blood = clear * vessels(rng, chest, canvas)
    for finding in drawn:
        if finding.bloodless:
            blood = blood * (1 - canvas.fill(list(finding.regions)))
    density += 0.42 * blood
    density += (0.35 + 0.65 * clear) * bones(rng, chest, canvas, fractured)
    for finding in drawn:
        density += _paint(rng, finding, density, canvas)
    return _expose(rng, density, chest, canvas)


def _flesh(rng: np.random.Generator, chest: Chest, canvas: Canvas) -> tuple[Plane, Plane]:
    """Returns the soft tissue, and how much of it a vessel or a bone must shine through."""
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
    """Returns what a finding adds; it replaces air, so that it swallows borders of like density."""
    layer = np.zeros_like(density)
    if finding.density and finding.regions:
        shape = canvas.fill(list(finding.regions), finding.softness)
        if finding.grain:
            grain = canvas.texture(rng, 0.07) + canvas.texture(rng, 0.15)
            shape = shape * (1 + finding.grain * np.clip(0.6 * grain, -1.5, 1.5))
        air = np.clip(1.05 - density, 0, 0.7) if finding.density > 0 else np.float32(0.7)
        layer += np.float32(finding.density) * shape * (0.2 + 1.15 * air)
    for added in sorted({stroke[1] for stroke in finding.strokes}):
        outlines = [outline for outline, own in finding.strokes if own == added]
        layer += np.float32(added) * canvas.fill(outlines)
    return layer


def _expose(
    rng: np.random.Generator, density: Plane, chest: Chest, canvas: Canvas
) -> UInt8[np.ndarray, "h w"]:
    gain = np.float32(rng.uniform(2.9, 4.4))
    centre = np.float32(rng.uniform(0.56, 0.76))
    density -= 0.5 * np.maximum(density - 0.9, 0)  # the film's shoulder
    density = density + np.float32(rng.uniform(0.008, 0.02)) * rng.standard_normal(
        density.shape, np.float32
    )
    light = 1 / (1 + np.exp(gain * (centre - density)))
    dark = 1 / (1 + np.exp(gain * centre))
    light = np.clip((light - dark) / (0.93 - dark), 0, 1)
    film = Image.fromarray((255 * light).astype(np.uint8))
    _mark(rng, film, chest, canvas)
    return np.asarray(film)


def _mark(rng: np.random.Generator, film: Image.Image, chest: Chest, canvas: Canvas) -> None:
    if rng.random() < 0.15:
        return
    pen = ImageDraw.Draw(film)
    side = 1 if rng.random() < 0.75 else -1
    size = max(8, int(0.10 * canvas.unit))
    margin = canvas.width / 2 - rng.uniform(0.05, 0.12) * canvas.width
    x = canvas.width / 2 + side * margin
    y = rng.uniform(0.04, 0.14) * canvas.height
    pen.text((x, y), "L" if side > 0 else "R", fill=245, anchor="mt", font_size=size)
    if chest.frontal_ap and rng.random() < 0.5:
        pen.text((x, y + 1.3 * size), "AP", fill=225, anchor="mt", font_size=0.6 * size)
