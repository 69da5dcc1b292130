"""Thresholds on class activation maps: the pipeline's, and CheXlocalize's for saliency maps.

CheXlocalize upsamples a map, scales it to [0, 1] and applies a threshold. Without one it takes Otsu's
of 256 grey levels, and fills the holes of every region. It leaves the scale of a constant map undefined;
here such a map gives an empty mask.
"""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from scipy import ndimage

from chexseg_jax.images import resize
from chexseg_jax.pseudolabels.gradcam import normalize_cams, upsample_cams
from chexseg_jax.pseudolabels.random_walk import random_walk

LEVELS = 256
EPSILON = float(np.finfo(np.float32).eps)
"""A fraction of pixels that counts as zero."""


def walk_to_masks(
    cams: Float[Array, "b fh fw k"],
    boundaries: Float[Array, "b h w"],
    size: int,
    *,
    radius: int,
    beta: float,
    steps: int,
    threshold: float,
) -> Bool[Array, "b size size k"]:
    """Spread maps by a random walk and threshold them, divided by their maximum, at `size` pixels."""
    maps = random_walk(
        upsample_cams(cams, boundaries.shape[1]), boundaries, radius=radius, beta=beta, steps=steps
    )
    shape = (maps.shape[0], size, size, maps.shape[-1])
    return normalize_cams(jax.image.resize(maps, shape, "linear")) > threshold


def cams_to_masks(
    cams: Float[Array, "b fh fw k"], size: int, threshold: float
) -> Bool[Array, "b size size k"]:
    """Threshold maps, upsampled to `size` pixels and divided by their maximum."""
    return normalize_cams(upsample_cams(cams, size)) > threshold


def min_max(heatmap: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Scale a map to [0, 1]; a constant map becomes zero."""
    shifted = heatmap - heatmap.min()
    peak = shifted.max()
    return shifted / peak if peak > 0 else shifted


def grey_levels(heatmap: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Quantize a map to 256 levels by truncation."""
    return (255 * min_max(heatmap)).astype(np.uint8)


def otsu(levels: UInt8[np.ndarray, "h w"]) -> int:
    """Return the grey level of greatest between-class variance (Otsu 1979, eq. 18).

    The first of equals, in OpenCV's order of arithmetic: with empty levels a rounding error decides.
    """
    fractions = np.bincount(levels.ravel(), minlength=LEVELS) / levels.size
    mean = float((np.arange(LEVELS) * fractions).sum())
    below, mean_below, best_variance, best_level = 0.0, 0.0, 0.0, 0
    for level, fraction in enumerate(fractions.tolist()):
        mean_below *= below
        below += fraction
        above = 1.0 - below
        if min(below, above) < EPSILON or max(below, above) > 1.0 - EPSILON:
            continue
        mean_below = (mean_below + level * fraction) / below
        mean_above = (mean - below * mean_below) / above
        variance = below * above * (mean_below - mean_above) ** 2
        if variance > best_variance:
            best_variance, best_level = variance, level
    return best_level


def fill_holes(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Fill the holes of a mask and remove its isolated pixels.

    Regions are 8-connected and the background is 4-connected, as in OpenCV's contours, which
    CheXlocalize fills.
    """
    filled = ndimage.binary_fill_holes(mask)
    regions, _ = ndimage.label(filled, np.ones((3, 3)))
    return filled & (np.bincount(regions.ravel()) > 1)[regions]


def heatmap_to_mask(
    heatmap: Float[np.ndarray, "fh fw"], height: int, width: int, threshold: float | None = None
) -> Bool[np.ndarray, "height width"]:
    """Make a mask of (height, width) from a map of any range.

    With `threshold`, the pixels above it; else those above Otsu's level, with holes filled.
    """
    upsampled = resize(np.ascontiguousarray(heatmap, np.float32), height, width)
    if threshold is not None:
        return min_max(upsampled) > threshold
    levels = grey_levels(upsampled)
    return fill_holes(levels > otsu(levels))
