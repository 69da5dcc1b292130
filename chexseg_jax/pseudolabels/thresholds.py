"""Heat maps to masks, as CheXlocalize makes them from saliency maps.

A map is enlarged, stretched to [0, 1] and cut: at a threshold, or where none is given at Otsu's of its
256 grey levels, and then every outline is filled, holes and all. CheXlocalize leaves the stretch of a
constant map undefined; here such a map gives an empty mask.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from chexseg_jax.masks import fill_polygons

LEVELS = 256
NOTHING = float(np.finfo(np.float32).eps)
"""A share of pixels that counts as none."""


def stretched(heatmap: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Returns a map on [0, 1]; zero everywhere if it is constant."""
    risen = heatmap - heatmap.min()
    peak = risen.max()
    return risen / peak if peak > 0 else risen


def enlarge(
    heatmap: Float[np.ndarray, "fh fw"], height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """Returns a map resized bilinearly, with a filter where it shrinks."""
    image = Image.fromarray(np.ascontiguousarray(heatmap, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def grey_levels(heatmap: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Returns a map stretched over 256 levels, which truncate."""
    return (255 * stretched(heatmap)).astype(np.uint8)


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


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[list[tuple[int, int]]]:
    """Returns the corners (x, y) of every border of a mask, outer or of a hole, drawn pixels only.

    Neighbours touch by sides or corners. A border is followed clockwise from a pixel with nothing on
    its left, each such pixel once; its straight runs are left out, as in OpenCV's simple chains.
    """
    framed = np.pad(mask, 1)
    width = framed.shape[1]
    # Clockwise from the right-hand neighbour; number 4 is the left-hand one.
    steps = (1, width + 1, width, width - 1, -1, -width - 1, -width, -width + 1)
    open_left = np.flatnonzero(framed[:, 1:] & ~framed[:, :-1])
    rows, columns = np.divmod(open_left, width - 1)
    drawn, passed, found = framed.tobytes(), set[int](), []
    for start in (rows * width + columns + 1).tolist():
        if start in passed:
            continue
        here, look, arrived, corners = start, 4, -1, []
        while True:
            turned = [(look + turn) % 8 for turn in range(8)]
            leaving = next((n for n in turned if drawn[here + steps[n]]), None)
            seen = turned if leaving is None else turned[: turned.index(leaving)]
            if here == start and start in passed and 4 in seen:
                break
            if 4 in seen:
                passed.add(here)
            if leaving != arrived:
                corners.append((here % width - 1, here // width - 1))
            if leaving is None:
                break
            here, arrived = here + steps[leaving], leaving
            look = (leaving + (5 if leaving % 2 else 6)) % 8  # the last empty neighbour seen
        found.append(corners)
    return found


def filled(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns a mask with its holes filled and single pixels left out."""
    return fill_polygons([border for border in outlines(mask) if len(border) > 1], *mask.shape)


def heatmap_to_mask(
    heatmap: Float[np.ndarray, "fh fw"], height: int, width: int, threshold: float | None = None
) -> Bool[np.ndarray, "height width"]:
    """Returns a map of any range as a mask of (height, width).

    Above `threshold` on the stretched map if it is given, as it is; else above Otsu's level, filled.
    """
    large = enlarge(heatmap, height, width)
    if threshold is not None:
        return stretched(large) > threshold
    levels = grey_levels(large)
    return filled(levels > otsu(levels))
