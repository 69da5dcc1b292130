"""The lateral chest, facing the viewer's left; its lungs lie upon each other, as one."""

import numpy as np

from datasets.phantom.anatomy import Build, Chest, Lung
from datasets.phantom.curves import smooth


def lateral_chest(
    rng: np.random.Generator,
    build: Build,
    *,
    enlarged: float,
    widened: float,
    raised: tuple[float, float],
) -> Chest:
    """Returns a lateral chest.

    Args:
        rng: the film's own variation.
        build: the patient.
        enlarged: what cardiomegaly adds to the cardiothoracic ratio.
        widened: what an enlarged mediastinum adds to its half width.
        raised: how far collapse lifts each diaphragm.
    """
    front, back = -0.60 - 0.3 * (build.girth - 0.78), 0.55 + 0.3 * (build.girth - 0.78)
    lung = Lung(
        apex=(0.10, -0.80),
        hilum=front,
        wall=back,
        dome=0.28 + build.length - 0.5 * max(raised),
        angle=rng.uniform(0.30, 0.36),
    )
    size = 0.27 + 0.5 * (build.ratio - 0.44) + 0.75 * enlarged
    x, y = front + 0.10 + size * 0.9, 0.26 + build.length - size * 0.75
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    egg = size * (1 + 0.12 * np.cos(angles - 0.8))
    heart = np.stack([x + egg * np.cos(angles), y + 0.95 * egg * np.sin(angles)], 1)
    w = 0.11 + widened
    mediastinum = smooth(
        [
            (0.02 - w, -0.95),
            (-0.04 - w, -0.6),
            (-0.10 - w, -0.3),
            (-0.10 - w, 0.0),
            (0.10, 0.05),
            (0.07 + w, -0.25),
            (0.08 + w, -0.5),
            (0.05 + w, -0.95),
        ],
        closed=True,
    )
    f, b = front - 0.16, back + 0.30
    body = smooth(
        [
            (-0.18, -1.5),
            (-0.20, -1.0),
            (f - 0.02, -0.72),
            (f - 0.1 * build.female, -0.2),
            (f - 0.02 - 0.08 * build.female, 0.2),
            (f, 0.8),
            (f, 1.6),
            (b, 1.6),
            (b - 0.05, 0.7),
            (b + 0.02, 0.1),
            (b + 0.05, -0.5),
            (0.42, -0.95),
            (0.3, -1.5),
        ],
        closed=True,
    )
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
