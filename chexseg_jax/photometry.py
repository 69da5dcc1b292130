"""Photometry: what is done to the grey levels of a radiograph before any network sees it.

Exposure, detector and window differ between hospitals, and CheXpert's JPEGs are only one rendering.
`equalize` is the histogram equalisation of MIMIC-CXR-JPG (Johnson et al., 2019): the result depends on
the order of grey levels alone, so a gamma or a window that clips nothing changes it little. `percentile`
stretches the levels between two percentiles linearly and keeps the histogram's shape. `median` stretches
and then chooses the gamma that makes the median middle grey: it undoes window and gamma together,
without equalisation's jumps between levels that are frequent. All are a table of 256 levels made from
the image's own histogram; padding is never in it.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal

import numpy as np
from jaxtyping import Int, UInt8

Photometry = Literal["as-is", "equalize", "percentile", "median"]
PERCENTILES: Final = (1, 50, 99)
"""What becomes black, middle grey (of `median`) and white."""
STEEPEST: Final = 4
"""The largest exponent of grey levels, and the inverse of the smallest: half an image may be black."""

Table = Int[np.ndarray, "256"]


def equalizing(counts: Table) -> Table:
    """Return the new level of each grey level that evens out a histogram.

    The lowest level that occurs becomes 0 and the highest 255. A constant image keeps its level.
    """
    first = counts[counts > 0][:1].sum()
    rest = counts.sum() - first
    if not rest:
        return np.arange(256)
    return (510 * np.maximum(counts.cumsum() - first, 0) + rest) // (2 * rest)  # rounded halves up


def percentiles(counts: Table) -> list[int]:
    """Return the levels of `PERCENTILES`, which occur in the image."""
    cumulative = 100 * counts.cumsum()
    return [int((cumulative >= q * counts.sum()).argmax()) for q in PERCENTILES]


def stretching(counts: Table) -> Table:
    """Return the new level of each grey level that stretches the percentiles to 0 and 255.

    An image whose percentiles are equal stays as it is.
    """
    low, _, high = percentiles(counts)
    if low == high:
        return np.arange(256)
    return np.clip((510 * (np.arange(256) - low) + high - low) // (2 * (high - low)), 0, 255)


def centring(counts: Table) -> Table:
    """Return the new level of each grey level that stretches and makes the median middle grey.

    An image whose percentiles are equal stays as it is.
    """
    low, median, high = percentiles(counts)
    levels = stretching(counts) / 255
    exponent = 1.0
    if low < high:
        middle = np.clip(levels[median], 2.0**-STEEPEST, 2 ** (-1 / STEEPEST))
        exponent = -1 / np.log2(middle)
    return np.rint(255 * levels**exponent).astype(np.int64)


TABLES: Final[Mapping[Photometry, Callable[[Table], Table]]] = {
    "as-is": lambda _: np.arange(256),
    "equalize": equalizing,
    "percentile": stretching,
    "median": centring,
}


def adjust(pixels: UInt8[np.ndarray, "h w"], photometry: Photometry) -> UInt8[np.ndarray, "h w"]:
    """Apply a photometry to an image without padding."""
    if photometry == "as-is":
        return pixels
    counts = np.bincount(pixels.ravel(), minlength=256)
    return TABLES[photometry](counts).astype(np.uint8)[pixels]
