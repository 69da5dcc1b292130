"""Random masks of many kinds."""

import numpy as np


def random_mask(rng, index):
    """Return a mask of any shape, also a row or a column: empty, full, noise, or blobs."""
    height, width = (int(n) for n in rng.integers(1, 80, 2))
    height, width = (1 if index % 11 == 0 else height), (1 if index % 13 == 0 else width)
    match index % 5:
        case 0:
            return np.zeros((height, width), bool)
        case 1:
            return np.ones((height, width), bool)
        case 2:
            return rng.random((height, width)) < rng.random()
    y, x = np.ogrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(index % 4 + 1):
        centre = rng.random(2) * (height, width)
        mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.integers(1, 900)
    return mask
