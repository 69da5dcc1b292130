"""Plane curves: smooth lines, ribbons and blobs, as arrays of [x, y] points."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "n 2"]


def smooth(points: Sequence[Sequence[float]] | Points, *, closed: bool = False) -> Points:
    """Returns the Catmull-Rom curve through some points, six samples from one to the next."""
    knots = np.asarray(points, float)
    ends = (knots[-1:], knots[:2]) if closed else (knots[:1], knots[-1:])
    a, b, c, d = (np.concatenate([ends[0], knots, ends[1]])[k:][:, None] for k in range(4))
    count = len(knots) if closed else len(knots) - 1
    t = np.arange(6)[None, :, None] / 6
    a, b, c, d = a[:count], b[:count], c[:count], d[:count]
    curve = b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))) / 2
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, knots[-1:]])


def ribbon(line: Points, widths: float | Float[np.ndarray, " n"]) -> Points:
    """Returns the outline of a line drawn with a pen of some width, constant or by point."""
    return ribbons(line[None], widths)[0]


def ribbons(
    lines: Float[np.ndarray, "l n 2"], widths: float | Float[np.ndarray, "#l n"]
) -> Float[np.ndarray, "l m 2"]:
    """Returns the outlines of many lines with the same number of points."""
    along = np.empty_like(lines)
    along[:, 1:-1] = lines[:, 2:] - lines[:, :-2]
    along[:, 0], along[:, -1] = lines[:, 1] - lines[:, 0], lines[:, -1] - lines[:, -2]
    lengths = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-9)
    half = (np.broadcast_to(widths, lengths.shape) / lengths / 2)[..., None]
    across = np.stack([-along[..., 1], along[..., 0]], -1) * half
    return np.concatenate([lines + across, (lines - across)[:, ::-1]], 1)


def blob(
    rng: np.random.Generator, centre: Sequence[float], radii: Sequence[float], roughness: float
) -> Points:
    """Returns an irregular closed outline; `roughness` 0 is an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = np.arange(2, 7)
    amplitudes = rng.normal(size=5) * roughness / waves
    phases = rng.uniform(0, 2 * np.pi, 5)
    swell = 1 + (amplitudes * np.sin(waves * angles[:, None] + phases)).sum(1)
    swell = np.clip(swell, 0.6, 1.4)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.asarray(centre)[None] + circle * swell[:, None] * np.asarray(radii)[None]


def clip(outline: Points, width: int, height: int) -> Points:
    """Returns the part of an outline on a film whose pixel centres span [0, w - 1] x [0, h - 1].

    Sutherland and Hodgman's method: one border after another; where an outline leaves and returns it
    follows the border.
    """
    for axis, sign, bound in ((0, 1, 0), (0, -1, 1 - width), (1, 1, 0), (1, -1, 1 - height)):
        inside = sign * outline[:, axis] - bound
        if (inside >= 0).all():
            continue
        kept = []
        for k, (point, depth) in enumerate(zip(outline, inside, strict=True)):
            if (depth >= 0) != (inside[k - 1] >= 0):
                share = depth / (depth - inside[k - 1])
                kept.append(point + share * (outline[k - 1] - point))
            if depth >= 0:
                kept.append(point)
        outline = np.array(kept).reshape(-1, 2)
    return outline
