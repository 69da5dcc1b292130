"""Annotators: polygons around findings, with variation between annotators."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chexseg_jax.pathologies import PATHOLOGIES
from datasets.phantom.drawing import Canvas, Points, clip
from datasets.phantom.findings import Finding
from datasets.phantom.labels import CAUSES

Contours = dict[str, list[list[list[float]]]]


@dataclass(frozen=True)
class Annotator:
    """An annotator's precision and sensitivity."""

    tremor: float
    """Displacement of outlines relative to the square root of the area."""
    misses: float
    """Fraction of findings not annotated."""


TRUTH = Annotator(tremor=0.0, misses=0.0)
EXPERT = Annotator(tremor=0.03, misses=0.0)
SECOND = Annotator(tremor=0.055, misses=0.05)


def annotate(
    rng: np.random.Generator, annotator: Annotator, findings: Sequence[Finding], canvas: Canvas
) -> Contours:
    """Outline findings as an annotator would: contours of [x, y] pixels by pathology."""
    own: dict[str, list[list[list[float]]]] = {}
    for finding in findings:
        if finding.observation not in PATHOLOGIES or not finding.regions:
            continue
        missed = rng.random() < annotator.misses
        outlines = [_outline(rng, annotator.tremor, region) for region in finding.regions]
        if not missed:
            pixels = [clip(canvas.pixels(o), canvas.width, canvas.height) for o in outlines]
            own[finding.observation] = [np.round(p, 2).tolist() for p in pixels if len(p)]
    annotations: Contours = {}
    for name in PATHOLOGIES:
        # As in CheXlocalize, a pathology includes the contours of those that imply it.
        contours = [c for part in (name, *CAUSES.get(name, ())) for c in own.get(part, [])]
        if contours:
            annotations[name] = contours
    return annotations


def _outline(rng: np.random.Generator, tremor: float, region: Points) -> Points:
    """Simplify an outline and displace it by random low-frequency waves."""
    steps = np.hypot(*np.diff(region, axis=0, append=region[:1]).T)
    _, vertices = np.unique(np.floor(np.cumsum(steps) / 0.035), return_index=True)
    outline = region[vertices] if len(vertices) > 7 else region
    x, y = outline.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    size = tremor * np.sqrt(area)
    directions = rng.normal(size=(4, 2))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * rng.uniform(4, 14, (4, 1))
    amplitudes = rng.normal(size=(4, 2)) * size * 0.6
    phases = rng.uniform(0, 2 * np.pi, 4)
    wobble = np.sin(outline @ waves.T + phases[None]) @ amplitudes
    shift = rng.normal(size=2) * size * 0.6
    swell = 1 + rng.normal() * tremor
    centre = outline.mean(0, keepdims=True)
    return centre + (outline - centre) * swell + wobble + shift[None]
