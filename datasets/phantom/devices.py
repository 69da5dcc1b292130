"""Support devices: tubes, lines, drains, wires and pacemakers, drawn as thin bright curves."""

import numpy as np

from datasets.phantom.anatomy import Chest
from datasets.phantom.curves import Points, ribbon, smooth

Strokes = list[tuple[Points, float]]

PEN = 0.075
"""How wide readers outline a thin device."""


def sample_devices(
    rng: np.random.Generator, chest: Chest, *, drained: int | None
) -> tuple[list[Points], Strokes]:
    """Returns the outlines readers would draw, and the devices themselves.

    Args:
        rng: chooses one to four devices.
        chest: what they lie in.
        drained: the index of the lung that needs a drain.
    """
    regions: list[Points] = []
    strokes: Strokes = []
    kinds = [_tube, _line, _feeding, _pacemaker, _wires]
    chances = np.array([0.25, 0.35, 0.2, 0.25, 0.18])
    chosen = rng.random(5) < chances
    if drained is None and not chosen.any():
        chosen[int(rng.integers(5))] = True
    if chest.lateral:
        chosen &= [True, True, True, True, False]
        if drained is None and not chosen.any():
            chosen[1] = True
    for kind, wanted in zip(kinds, chosen, strict=True):
        if wanted:
            kind(rng, chest, regions, strokes)
    if drained is not None:
        _drain(rng, chest, drained, regions, strokes)
    return regions, strokes


def _thread(
    line: Points, pen: float, density: float, regions: list[Points], strokes: Strokes
) -> None:
    regions.append(ribbon(line, PEN))
    strokes.append((ribbon(line, pen), density))


def _tube(rng: np.random.Generator, chest: Chest, regions: list[Points], strokes: Strokes) -> None:
    end = int(len(chest.trachea) * rng.uniform(0.7, 0.95))
    line = chest.trachea[: max(end, 6)]
    regions.append(ribbon(line, PEN))
    for side in (-0.016, 0.016):
        strokes.append((ribbon(line + np.array([[side, 0.0]]), 0.015), 0.42))


def _line(rng: np.random.Generator, chest: Chest, regions: list[Points], strokes: Strokes) -> None:
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
    _thread(line, 0.026, 0.46, regions, strokes)


def _feeding(
    rng: np.random.Generator, chest: Chest, regions: list[Points], strokes: Strokes
) -> None:
    x, y = chest.stomach
    start = 0.12 if chest.lateral else 0.0
    knots = [(start, -1.1), (start + rng.normal() * 0.02, -0.6), (start + 0.03, -0.1)]
    line = smooth([*knots, (start + 0.05, y - 0.2), (x * 0.6, y), (x, y + 0.05)])
    _thread(line, 0.028, 0.44, regions, strokes)


def _pacemaker(
    rng: np.random.Generator, chest: Chest, regions: list[Points], strokes: Strokes
) -> None:
    side = 1.0 if rng.random() < 0.75 else -1.0
    x, y = side * rng.uniform(0.5, 0.64), rng.uniform(-0.52, -0.38)
    if chest.lateral:
        x, y = -0.55, -0.5
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    round_, turn = 0.5, rng.uniform(-0.4, 0.4)
    box = np.stack(
        [
            0.125 * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** round_,
            0.10 * np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** round_,
        ],
        1,
    )
    box = box @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    box += [[x, y]]
    regions.append(box)
    strokes.append((box, 0.75))
    tip = chest.heart[int(len(chest.heart) * 0.62)] * 0.85
    vein = 0.05 if chest.lateral else -0.09
    knots = [(x, y - 0.05), (x * 0.7, -0.64), (side * 0.1, -0.6), (vein, -0.4)]
    line = smooth([*knots, (vein, 0.0), (0.0, tip[1] - 0.05), tuple(tip)])
    _thread(line, 0.024, 0.55, regions, strokes)


def _wires(rng: np.random.Generator, chest: Chest, regions: list[Points], strokes: Strokes) -> None:
    angles = np.linspace(0, 2 * np.pi, 17)
    for y in np.linspace(-0.5, 0.22, int(rng.integers(4, 7))):
        radii = np.array([[rng.uniform(0.03, 0.045), rng.uniform(0.022, 0.032)]])
        centre = np.array([[rng.normal() * 0.006, y]])
        ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radii
        strokes.append((ribbon(ring + centre, 0.018), 0.6))
        regions.append(ring * 1.4 + centre)


def _drain(
    rng: np.random.Generator, chest: Chest, drained: int, regions: list[Points], strokes: Strokes
) -> None:
    lung = chest.lungs[drained]
    foot = lung.at(1.0, rng.uniform(0.65, 0.85))[0]
    top = lung.at(rng.uniform(0.4, 0.75), rng.uniform(0.1, 0.3))[0]
    outside = foot + np.array([0.3 * np.sign(lung.wall - lung.hilum), 0.12])
    bend = lung.at(0.8, 0.5)[0]
    _thread(smooth([outside, foot, bend, top]), 0.034, 0.42, regions, strokes)
