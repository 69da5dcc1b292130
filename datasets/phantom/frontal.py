"""The frontal chest."""

import numpy as np

from datasets.phantom.anatomy import Build, Chest, Lung
from datasets.phantom.curves import Points, ribbon, smooth


def frontal_chest(
    rng: np.random.Generator,
    build: Build,
    *,
    ap: bool,
    enlarged: float,
    widened: float,
    raised: tuple[float, float],
) -> Chest:
    """Returns a frontal chest.

    Args:
        rng: the film's own variation, such as the depth of the breath.
        build: the patient.
        ap: taken from the front, which enlarges the heart.
        enlarged: what cardiomegaly adds to the cardiothoracic ratio.
        widened: what an enlarged mediastinum adds to its half width.
        raised: how far collapse lifts the left and the right diaphragm of the image.
    """
    wall = build.girth
    breath = build.length + rng.uniform(-0.05, 0.05) - 0.05 * ap
    lungs = []
    for side, lift in zip((-1, 1), raised, strict=True):
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
    heart = smooth(
        [
            (0.03, top - 0.02),
            (-0.10, y[0] + 0.03),
            (-right * 0.86, y[1]),
            (-right, y[2]),
            (-right * 0.86, y[3]),
            (-right * 0.45, y[4]),
            (0.05, y[5]),
            (left * 0.6, y[5] - 0.01),
            (left * 0.93, y[4] - 0.03),
            (left, y[3] - 0.02),
            (left * 0.88, y[2] - 0.03),
            (left * 0.60, y[1] - 0.03),
            (0.14, y[0] + 0.02),
        ],
        closed=True,
    )
    w = 0.115 + 0.012 * ap + widened
    lean = 0.3 * widened * rng.uniform(-1, 1)
    mediastinum = smooth(
        [
            (-0.07 - 0.3 * widened, -0.98),
            (-0.8 * w + lean, -0.70),
            (-0.98 * w + lean, -0.45),
            (-1.05 * w + lean, -0.20),
            (-1.15 * w, 0.02),
            (-0.9 * w, 0.25),
            (0.9 * w, 0.25),
            (1.25 * w, 0.02),
            (1.20 * w + lean, -0.13),
            (1.00 * w + lean, -0.24),
            (build.knob * w + lean, -0.35),
            (build.knob * w * 0.95 + lean, -0.42),
            (0.95 * w + lean, -0.52),
            (0.8 * w + lean, -0.70),
            (0.07 + 0.3 * widened, -0.98),
        ],
        closed=True,
    )
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
    half = [
        (0.21, -1.5),
        (0.22, -1.02),
        (0.45, shoulder - 0.12),
        (0.80, shoulder),
        (1.02 + 0.1 * ap, shoulder + 0.16),
        (1.10 + 0.2 * ap, shoulder + 0.45),
        (flesh + 0.02, shoulder + 0.62),
        (flesh, -0.02),
        (flesh - 0.01, 0.4),
        (flesh, 0.8),
        (flesh + 0.03, 1.6),
    ]
    return smooth(half + [(-x, y) for x, y in reversed(half)], closed=True)


def _arms(rng: np.random.Generator) -> tuple[Points, ...]:
    spread = rng.uniform(0.0, 0.25)
    line = np.array([(1.02, -0.62), (1.14 + 0.3 * spread, -0.1), (1.16 + spread, 0.8)])
    return tuple(ribbon(line * [[side, 1]], np.array([0.34, 0.26, 0.22])) for side in (-1, 1))
