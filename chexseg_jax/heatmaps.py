"""Heat maps to masks, as CheXlocalize makes them from saliency maps.

A map is enlarged, stretched to [0, 1] and cut: at a threshold, or where none is given at Otsu's of its
256 grey levels, and then every outline is filled, holes and all. CheXlocalize leaves the stretch of a
constant map undefined; here such a map gives an empty mask.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

LEVELS = 256
NOTHING = float(np.finfo(np.float32).eps)
"""A share of pixels that counts as none."""


def stretched(heatmap: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Returns a map on [0, 1]; zero everywhere if it is constant."""
    risen = heatmap - heatmap.min()
    peak = risen.max()
    return risen / peak if peak > 0 else risen


def otsu(levels: UInt8[np.ndarray, "h w"]) -> int:
    """Returns the grey level that best parts those above it from the others (Otsu 1979, eq. 18).

    The first of equals, found in OpenCV's order of arithmetic, in which empty levels can differ by a
    rounding error.
    """
    shares = np.bincount(levels.ravel(), minlength=LEVELS) / levels.size
    mean = float((np.arange(LEVELS) * shares).sum())
    below, mean_below, best, found = 0.0, 0.0, 0.0, 0
    for level, share in enumerate(shares.tolist()):
        mean_below *= below
        below += share
        above = 1.0 - below
        if min(below, above) < NOTHING or max(below, above) > 1.0 - NOTHING:
            continue
        mean_below = (mean_below + level * share) / below
        mean_above = (mean - below * mean_below) / above
        parted = below * above * (mean_below - mean_above) ** 2
        if parted > best:
            best, found = parted, level
    return found
