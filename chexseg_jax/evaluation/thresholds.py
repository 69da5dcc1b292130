"""Choice of thresholds and gates on validation images.

A threshold turns probabilities into a mask. A gate is the minimum probability, by the classifier, of a
finding whose mask is kept; the others are emptied. CheXlocalize tunes gates after the thresholds, on the
mean IoU of all images of its validation set, false positives included, over a grid of nine values. Here
every probability of an image is a candidate, in one pass over the images sorted by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from chexseg_jax.evaluation.metrics import THRESHOLDS, Counts

LOWEST: Final = 1
"""The index of the first threshold tried, 0.05: above 0 every pixel of an X-ray is drawn."""


def best_ious(counts: Counts) -> Float[np.ndarray, "k"]:
    """Return the maximum pooled IoU over thresholds; NaN where the pathology is not present."""
    return np.where(counts.target_area > 0, np.nan_to_num(counts.iou()[LOWEST:]).max(0), np.nan)


def best_thresholds(counts: Counts) -> Float[np.ndarray, "k"]:
    """Return the threshold of maximum pooled IoU for each pathology; NaN where it is not found.

    It is not found if it is not present, or if no mask above any threshold meets it. A mask above NaN is
    empty. The release takes the argmax of IoUs with 0/0 among them, which picks a NaN, and of thresholds
    with 0 among them, which draws the whole image.
    """
    rows = np.nan_to_num(counts.iou()[LOWEST:]).argmax(0)
    return np.where(best_ious(counts) > 0, THRESHOLDS[LOWEST:][rows], np.nan)


def choose_thresholds(sources: Sequence[Counts]) -> Float[np.ndarray, "k"]:
    """Choose each threshold on the first source in which the pathology is found; NaN if in none."""
    thresholds = best_thresholds(sources[0])
    for counts in sources[1:]:
        thresholds = np.where(np.isnan(thresholds), best_thresholds(counts), thresholds)
    return thresholds


def pseudo_mask_thresholds(counts: Counts, fewest: int) -> Float[np.ndarray, "k"]:
    """Choose each pathology's threshold on maps of n images with expert masks, by pooled IoU.

    A pathology with fewer than `fewest` masks, or that no threshold finds, takes the choice for all
    pathologies together, and 0.5 if there is none: a positive finding always gets a mask.
    """
    pooled = counts.pooled()
    together = Counts(
        pooled.intersection.sum(-1, keepdims=True),
        pooled.predicted_area.sum(-1, keepdims=True),
        pooled.target_area.sum(-1, keepdims=True),
    )
    own = best_thresholds(pooled)
    scarce = ((counts.target_area > 0).sum(0) < fewest) | np.isnan(own)
    return np.where(scarce, np.nan_to_num(best_thresholds(together), nan=0.5), own)


@dataclass(frozen=True)
class Gates:
    """The minimum probability of each pathology, and the mean IoU it was chosen for."""

    cutoffs: Float[np.ndarray, "k"]
    ious: Float[np.ndarray, "k"]

    def passes(self, probabilities: Float[np.ndarray, "b k"]) -> Bool[np.ndarray, "b k"]:
        """Return which masks are kept."""
        return probabilities >= self.cutoffs


def best_gates(counts: Counts, probabilities: Float[np.ndarray, "n k"]) -> Gates:
    """Choose the gates of maximum mean IoU over images, the lowest of equals.

    An emptied mask scores 0 where the finding is present, and leaves the mean where it is not. A
    pathology present in no image has a cutoff of 0 and no mean IoU.

    Args:
        counts: of n images, at one threshold each pathology.
        probabilities: of each finding in each image, by the classifier.
    """
    ious, is_present = counts.iou()[:, 0], counts.target_area > 0
    columns = zip(ious.T, is_present.T, probabilities.T, strict=True)
    cutoffs, means = zip(*(_best_gate(*column) for column in columns), strict=True)
    return Gates(np.array(cutoffs), np.array(means))


def _best_gate(
    ious: Float[np.ndarray, "n"],
    is_present: Bool[np.ndarray, "n"],
    probabilities: Float[np.ndarray, "n"],
) -> tuple[float, float]:
    if not is_present.any():
        return 0.0, float("nan")
    order = np.argsort(-probabilities, kind="stable")
    descending = probabilities[order]
    # Candidate i keeps the masks of the first i + 1 images; equal probabilities go together.
    totals = np.nan_to_num(ious[order]).cumsum()
    false_positives = (~np.isnan(ious[order]) & ~is_present[order]).cumsum()
    means = totals / (is_present.sum() + false_positives)
    means[:-1][descending[:-1] == descending[1:]] = -1
    best = len(means) - 1 - int(np.argmax(means[::-1]))
    # If every mask is kept, so is one of a lower probability than any of these.
    cutoff = 0.0 if best == len(means) - 1 else float(descending[best])
    return cutoff, float(means[best])
