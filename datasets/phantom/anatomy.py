"""The healthy chest: outlines of lungs, heart and mediastinum, frontal and lateral.

Coordinates are those of the viewer: x to the right, y down, the unit half the film's short side, the
origin in the middle of the thorax. The patient's right is on the viewer's left.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from datasets.phantom.curves import Points


@dataclass(frozen=True)
class Lung:
    """One lung as a chart: u runs from the mediastinum to the chest wall, v from apex to diaphragm."""

    apex: tuple[float, float]
    hilum: float
    wall: float
    dome: float
    angle: float
    """How far the costophrenic angle lies below the dome."""

    def at(self, u: float | Float[np.ndarray, " n"], v: float | Float[np.ndarray, " n"]) -> Points:
        """Returns the points of the film at chart coordinates."""
        u, v = np.broadcast_arrays(np.asarray(u, float), np.asarray(v, float))
        u, v = np.atleast_1d(u), np.atleast_1d(v)
        rounded = np.sqrt(np.clip(1 - (1 - np.clip(v, 0, 1)) ** 2.3, 0, 1))
        quick = np.sqrt(np.clip(1 - (1 - np.clip(2.2 * v, 0, 1)) ** 2.3, 0, 1))
        outer = self.apex[0] + (self.wall - self.apex[0]) * rounded
        inner = self.apex[0] + (self.hilum - self.apex[0]) * quick
        sag = np.where(u > 0.4, (np.abs(u - 0.4) / 0.6) ** 2.2, 0.25 * ((0.4 - u) / 0.4) ** 2)
        floor = self.dome + self.angle * sag
        return np.stack([inner + (outer - inner) * u, self.apex[1] + v * (floor - self.apex[1])], 1)

    def outline(self) -> Points:
        """Returns the whole lung."""
        v, u = np.linspace(0, 1, 30) ** 1.5, np.linspace(1, 0, 24)
        return np.concatenate([self.at(1.0, v), self.at(u, 1.0), self.at(0.0, v[::-1])])


@dataclass(frozen=True)
class Chest:
    """The outlines that findings are placed in."""

    lateral: bool
    frontal_ap: bool
    female: bool
    lungs: tuple[Lung, ...]
    heart: Points
    mediastinum: Points
    body: Points
    arms: tuple[Points, ...]
    trachea: Points
    """The centre line, from the neck to the carina."""
    stomach: tuple[float, float]

    def any_lung(self, rng: np.random.Generator) -> Lung:
        """Returns one of the lungs."""
        return self.lungs[int(rng.integers(len(self.lungs)))]


@dataclass(frozen=True)
class Build:
    """What a patient brings to every film."""

    female: bool
    girth: float
    length: float
    ratio: float
    """Cardiothoracic ratio of the healthy heart."""
    tilt: float
    knob: float


def sample_build(rng: np.random.Generator, female: bool) -> Build:
    """Returns a patient's constitution."""
    return Build(
        female=female,
        girth=rng.uniform(0.70, 0.82),
        length=rng.uniform(-0.05, 0.06),
        ratio=rng.uniform(0.39, 0.48),
        tilt=rng.normal() * 0.04,
        knob=rng.uniform(1.25, 1.6),
    )
