"""Thresholds on class activation maps: the pipeline's, and CheXlocalize's for saliency maps.

CheXlocalize upsamples a map, scales it to [0, 1] and applies a threshold. Without one it takes Otsu's
of 256 grey levels, and fills the holes of every region. It leaves the scale of a constant map undefined;
here such a map gives an empty mask.
"""

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from scipy import ndimage

from chexseg_jax.images import content_cells, content_mask, resize
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.pseudolabels.random_walk import random_walk
from chexseg_jax.pseudolabels.storage import CERTAIN, HALF

LEVELS = 256
EPSILON = float(np.finfo(np.float32).eps)
"""A fraction of pixels that counts as zero."""


def walked_cams(
    cams: Float[Array, "b fh fw k"],
    boundaries: Float[Array, "b h w"],
    images: UInt8[Array, "b s s 1"],
    *,
    radius: int,
    beta: float,
    steps: int,
) -> Float[Array, "b s s k"]:
    """Spread maps by a random walk; return them at the images' size, divided by their maximum."""
    height, width = boundaries.shape[1:]
    maps = upsample_cams(cams, content_cells(images, height, width))
    maps = random_walk(maps, boundaries, radius=radius, beta=beta, steps=steps)
    return upsample_cams(maps, content_mask(images))


def hard_masks(
    maps: Float[np.ndarray, "b h w k"], thresholds: Float[np.ndarray, "k"]
) -> UInt8[np.ndarray, "b h w k"]:
    """Threshold maps: 255 above, 0 elsewhere."""
    return (maps > thresholds) * np.uint8(CERTAIN)


def soft_masks(
    maps: Float[np.ndarray, "b h w k"], thresholds: Float[np.ndarray, "k"]
) -> UInt8[np.ndarray, "b h w k"]:
    """Turn maps on [0, 1] into 8-bit probabilities of a mask.

    Linear from 0 to 1/2 at the threshold, and from there to 1: at least 128 where `hard_masks` are 255.
    """
    # At a threshold of 0 or 1, one of the two lines would have no length.
    inner = np.clip(thresholds, EPSILON, 1 - EPSILON)
    below = np.minimum(CERTAIN * maps / (2 * inner), HALF - 1)
    above = np.maximum(CERTAIN * (1 - (1 - maps) / (2 * (1 - inner))), HALF)
    return np.rint(np.where(maps > thresholds, above, below)).astype(np.uint8)


def otsu_masks(maps: Float[np.ndarray, "s s k"]) -> UInt8[np.ndarray, "s s k"]:
    """Threshold each map at Otsu's level of its own: 255 above, 0 elsewhere."""
    levels = [grey_levels(maps[..., k]) for k in range(maps.shape[-1])]
    return np.stack([level > otsu(level) for level in levels], -1) * np.uint8(CERTAIN)


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
