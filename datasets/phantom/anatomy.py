"""Outlines of lungs, heart, mediastinum and body, on frontal and lateral views.

Chest coordinates: x to the viewer's right, y down, origin in the middle of the thorax, unit half the
image's short side. The patient's right is on the viewer's left.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from datasets.phantom.drawing import Points, ribbon, smooth


@dataclass(frozen=True)
class Lung:
    """One lung with coordinates u, from mediastinum to chest wall, and v, from apex to diaphragm."""

    apex: tuple[float, float]
    hilum: float
    wall: float
    dome: float
    angle: float
    """Depth of the costophrenic angle below the dome."""

    def at(self, u: float | Float[np.ndarray, " n"], v: float | Float[np.ndarray, " n"]) -> Points:
        """Map lung coordinates to chest coordinates."""
        u, v = np.broadcast_arrays(np.asarray(u, float), np.asarray(v, float))
        u, v = np.atleast_1d(u), np.atleast_1d(v)
        outer_profile = np.sqrt(np.clip(1 - (1 - np.clip(v, 0, 1)) ** 2.3, 0, 1))
        inner_profile = np.sqrt(np.clip(1 - (1 - np.clip(2.2 * v, 0, 1)) ** 2.3, 0, 1))
        outer = self.apex[0] + (self.wall - self.apex[0]) * outer_profile
        inner = self.apex[0] + (self.hilum - self.apex[0]) * inner_profile
        sag = np.where(u > 0.4, (np.abs(u - 0.4) / 0.6) ** 2.2, 0.25 * ((0.4 - u) / 0.4) ** 2)
        floor = self.dome + self.angle * sag
        return np.stack([inner + (outer - inner) * u, self.apex[1] + v * (floor - self.apex[1])], 1)

    def outline(self) -> Points:
        """Compute the closed outline of the lung."""
        v, u = np.linspace(0, 1, 30) ** 1.5, np.linspace(1, 0, 24)
        return np.concatenate([self.at(1.0, v), self.at(u, 1.0), self.at(0.0, v[::-1])])


@dataclass(frozen=True)
class Chest:
    """Outlines of one chest on one view."""

    lateral: bool
    frontal_ap: bool
    female: bool
    lungs: tuple[Lung, ...]
    heart: Points
    mediastinum: Points
    body: Points
    arms: tuple[Points, ...]
    trachea: Points
    """Centre line from the neck to the carina."""
    stomach: tuple[float, float]

    def any_lung(self, rng: np.random.Generator) -> Lung:
        """Choose a lung at random."""
        return self.lungs[int(rng.integers(len(self.lungs)))]


@dataclass(frozen=True)
class Severity:
    """Changes of the chest's shape by findings, the same on every view of a study."""

    enlarged: float
    """Increase of the cardiothoracic ratio."""
    widened: float
    """Increase of the mediastinum's half width."""
    collapsed: int
    """Side of the atelectasis, an index of `Chest.lungs`."""
    raised: tuple[float, float]
    """Elevation of the image's left and right diaphragm."""
    aired: int
    """Side of the pneumothorax."""


@dataclass(frozen=True)
class Build:
    """Proportions of a patient, the same on every image."""

    female: bool
    girth: float
    length: float
    ratio: float
    """Cardiothoracic ratio without cardiomegaly."""
    tilt: float
    knob: float


def sample_build(rng: np.random.Generator, female: bool) -> Build:
    """Sample a patient's proportions."""
    return Build(
        female=female,
        girth=rng.uniform(0.70, 0.82),
        length=rng.uniform(-0.05, 0.06),
        ratio=rng.uniform(0.39, 0.48),
        tilt=rng.normal() * 0.04,
        knob=rng.uniform(1.25, 1.6),
    )


def frontal_chest(rng: np.random.Generator, build: Build, severity: Severity, *, ap: bool) -> Chest:
    """Sample a frontal chest; anteroposterior projection magnifies the heart."""
    enlarged, widened = severity.enlarged, severity.widened
    wall = build.girth
    breath = build.length + rng.uniform(-0.05, 0.05) - 0.05 * ap
    lungs = []
    for side, lift in zip((-1, 1), severity.raised, strict=True):
        lungs.append(
            Lung(
                apex=(side * rng.uniform(0.32, 0.38), -0.76 + rng.uniform(-0.03, 0.03)),
                hilum=side * 0.09,
                wall=side * (wall + rng.uniform(-0.02, 0.02)),
                dome=0.38 + breath + (0.05 if side > 0 else 0.0) - lift,
                angle=rng.uniform(0.13, 0.22),
            )
        )
    ratio = build.ratio + enlarged + 0.03 * ap
    span = 2 * wall * ratio
    right = span * rng.uniform(0.32, 0.38)
    left = span - right
    top, foot = -0.17 - 0.15 * enlarged, 0.47 + breath + build.tilt
    deep = np.array([0.0, 0.3, 0.55, 0.78, 0.95, 1.0])
    y = top + (foot - top) * deep
    base = [(0.14, y[0] + 0.02), (0.03, top - 0.02), (-0.10, y[0] + 0.03)]
    atrium = [(-right * 0.86, y[1]), (-right, y[2]), (-right * 0.86, y[3]), (-right * 0.45, y[4])]
    apex = [(0.05, y[5]), (left * 0.6, y[5] - 0.01), (left * 0.93, y[4] - 0.03)]
    ventricle = [(left, y[3] - 0.02), (left * 0.88, y[2] - 0.03), (left * 0.60, y[1] - 0.03)]
    heart = smooth([*base[1:], *atrium, *apex, *ventricle, base[0]], closed=True)
    w = 0.115 + 0.012 * ap + widened
    lean = 0.3 * widened * rng.uniform(-1, 1)
    neck, knob = 0.07 + 0.3 * widened, build.knob * w
    right_border = [(-neck, -0.98), (-0.8 * w + lean, -0.70), (-0.98 * w + lean, -0.45)]
    right_border += [(-1.05 * w + lean, -0.20), (-1.15 * w, 0.02), (-0.9 * w, 0.25)]
    left_border = [(0.9 * w, 0.25), (1.25 * w, 0.02), (1.20 * w + lean, -0.13)]
    left_border += [(1.00 * w + lean, -0.24), (knob + lean, -0.35), (knob * 0.95 + lean, -0.42)]
    left_border += [(0.95 * w + lean, -0.52), (0.8 * w + lean, -0.70), (neck, -0.98)]
    mediastinum = smooth(right_border + left_border, closed=True)
    shift = rng.normal() * 0.012
    trachea = smooth([(0, -1.1), (shift, -0.75), (0.012 + shift, -0.45), (-0.012, -0.27)])
    return Chest(
        lateral=False,
        frontal_ap=ap,
        female=build.female,
        lungs=tuple(lungs),
        heart=heart,
        mediastinum=mediastinum,
        body=_torso(rng, wall, ap),
        arms=_arms(rng) if ap or rng.random() < 0.3 else (),
        trachea=trachea,
        stomach=(0.36 + rng.uniform(-0.05, 0.08), lungs[1].dome + 0.13),
    )


def _torso(rng: np.random.Generator, wall: float, ap: bool) -> Points:
    flesh = wall + rng.uniform(0.07, 0.22)
    shoulder = -0.72 + rng.uniform(-0.06, 0.06) - 0.08 * ap
    half = [(0.21, -1.5), (0.22, -1.02), (0.45, shoulder - 0.12), (0.80, shoulder)]
    half += [(1.02 + 0.1 * ap, shoulder + 0.16), (1.10 + 0.2 * ap, shoulder + 0.45)]
    half += [(flesh + 0.02, shoulder + 0.62), (flesh, -0.02), (flesh - 0.01, 0.4)]
    half += [(flesh, 0.8), (flesh + 0.03, 1.6)]
    return smooth(half + [(-x, y) for x, y in reversed(half)], closed=True)


def _arms(rng: np.random.Generator) -> tuple[Points, ...]:
    spread = rng.uniform(0.0, 0.25)
    line = np.array([(1.02, -0.62), (1.14 + 0.3 * spread, -0.1), (1.16 + spread, 0.8)])
    return tuple(ribbon(line * [[side, 1]], np.array([0.34, 0.26, 0.22])) for side in (-1, 1))


def lateral_chest(rng: np.random.Generator, build: Build, severity: Severity) -> Chest:
    """Sample a lateral chest facing the viewer's left, its two lungs superimposed as one."""
    front, back = -0.60 - 0.3 * (build.girth - 0.78), 0.55 + 0.3 * (build.girth - 0.78)
    lung = Lung(
        apex=(0.10, -0.80),
        hilum=front,
        wall=back,
        dome=0.28 + build.length - 0.5 * max(severity.raised),
        angle=rng.uniform(0.30, 0.36),
    )
    size = 0.27 + 0.5 * (build.ratio - 0.44) + 0.75 * severity.enlarged
    x, y = front + 0.10 + size * 0.9, 0.26 + build.length - size * 0.75
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    egg = size * (1 + 0.12 * np.cos(angles - 0.8))
    heart = np.stack([x + egg * np.cos(angles), y + 0.95 * egg * np.sin(angles)], 1)
    w = 0.11 + severity.widened
    anterior = [(0.02 - w, -0.95), (-0.04 - w, -0.6), (-0.10 - w, -0.3), (-0.10 - w, 0.0)]
    posterior = [(0.10, 0.05), (0.07 + w, -0.25), (0.08 + w, -0.5), (0.05 + w, -0.95)]
    mediastinum = smooth(anterior + posterior, closed=True)
    f, b, breast = front - 0.16, back + 0.30, build.female
    chest_wall = [(-0.18, -1.5), (-0.20, -1.0), (f - 0.02, -0.72), (f - 0.1 * breast, -0.2)]
    chest_wall += [(f - 0.02 - 0.08 * breast, 0.2), (f, 0.8), (f, 1.6)]
    spine = [(b, 1.6), (b - 0.05, 0.7), (b + 0.02, 0.1), (b + 0.05, -0.5), (0.42, -0.95)]
    body = smooth([*chest_wall, *spine, (0.3, -1.5)], closed=True)
    trachea = smooth([(-0.02, -1.1), (0.03, -0.7), (0.08, -0.3)])
    return Chest(
        lateral=True,
        frontal_ap=False,
        female=build.female,
        lungs=(lung,),
        heart=heart,
        mediastinum=mediastinum,
        body=body,
        arms=(),
        trachea=trachea,
        stomach=(-0.15, lung.dome + 0.2),
    )
