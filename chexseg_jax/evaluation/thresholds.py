"""Gates: the least probability of a finding, by the classifier, at which its mask is kept.

CheXlocalize tunes them after the thresholds, on the mean IoU of all images of its validation set, false
alarms included, over a grid of nine cut-offs. Here every probability seen is a candidate, in one pass
over the images sorted by it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from chexseg_jax.evaluation.metrics import Counts


@dataclass(frozen=True)
class Gates:
    """A cut-off for each pathology, and the mean IoU it was chosen for."""

    cutoffs: Float[np.ndarray, "k"]
    ious: Float[np.ndarray, "k"]

    def open(self, probabilities: Float[np.ndarray, "b k"]) -> Bool[np.ndarray, "b k"]:
        """Returns which masks are kept."""
        return probabilities >= self.cutoffs


def best_gates(counts: Counts, probabilities: Float[np.ndarray, "n k"]) -> Gates:
    """Returns the gates of greatest mean IoU over images, the lowest of equals.

    A gated mask is empty: it scores 0 where the finding is there, and leaves the mean where it is not.
    A pathology that is drawn in no image has no gate: a cut-off of 0 and no mean IoU.

    Args:
        counts: of n images, at one threshold each pathology.
        probabilities: of each finding in each image, by the classifier.
    """
    ious, drawn = counts.iou()[:, 0], counts.truths > 0
    best = [_best(*columns) for columns in zip(ious.T, drawn.T, probabilities.T, strict=True)]
    return Gates(*(np.array(some) for some in zip(*best, strict=True)))


def _best(
    ious: Float[np.ndarray, "n"],
    drawn: Bool[np.ndarray, "n"],
    probabilities: Float[np.ndarray, "n"],
) -> tuple[float, float]:
    if not drawn.any():
        return 0.0, float("nan")
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    # Kept are the images down to each place; those of equal probability go together.
    totals = np.nan_to_num(ious[order]).cumsum()
    alarms = (~np.isnan(ious[order]) & ~drawn[order]).cumsum()
    means = totals / (drawn.sum() + alarms)
    means[:-1][falling[:-1] == falling[1:]] = -1
    place = len(means) - 1 - int(np.argmax(means[::-1]))
    # Where every mask is kept, so is that of an image less sure than any seen here.
    cutoff = 0.0 if place == len(means) - 1 else float(falling[place])
    return cutoff, float(means[place])
