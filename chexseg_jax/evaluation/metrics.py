"""Counts and what follows from them: IoU, hit rate, AUROC, and bootstrap intervals.

Three definitions that must not be mixed. *Pooled* IoU (the paper's): intersections and unions are added
up over all images at the letterbox, then divided. *Per-image* IoU and *hit rate* (CheXlocalize's): one
number an image at native size, then the mean. Counts are 64-bit integers on the host: float32 sums
would lose pixels after 2^24.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

THRESHOLDS: Final = np.arange(20) * 0.05
"""The paper's twenty thresholds, 0 to 0.95; a pixel counts if its probability is strictly greater."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval and the number of images that have a value."""

    mean: float
    lower: float
    upper: float
    n: int


def threshold_bins(probabilities: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s"]:
    """Returns how many of `THRESHOLDS` each probability exceeds: all that pooled IoU needs of it."""
    return np.searchsorted(THRESHOLDS, probabilities, side="left").astype(np.uint8)


@dataclass(frozen=True)
class Counts:
    """Pixels of one image, or of many along a first axis: all that pooled IoU is made of."""

    intersections: Int[np.ndarray, "*n t k"]
    predictions: Int[np.ndarray, "*n t k"]
    truths: Int[np.ndarray, "*n k"]

    def pooled(self) -> "Counts":
        """Returns the sum over images."""
        return Counts(self.intersections.sum(0), self.predictions.sum(0), self.truths.sum(0))

    def __getitem__(self, images: Int[np.ndarray, "m"]) -> "Counts":
        """Returns the counts of some images."""
        return Counts(self.intersections[images], self.predictions[images], self.truths[images])

    def iou(self) -> Float[np.ndarray, "*n t k"]:
        """Returns intersection over union; NaN where the union is empty."""
        unions = self.predictions + self.truths[..., None, :] - self.intersections
        return ratio(self.intersections, unions)


def stack(counts: Sequence[Counts]) -> Counts:
    """Returns the counts of single images along a first axis."""
    fields = ("intersections", "predictions", "truths")
    return Counts(*(np.stack([getattr(c, field) for c in counts]) for field in fields))


def count(bins: UInt8[np.ndarray, "h w k"], masks: Shaped[np.ndarray, "h w k"]) -> Counts:
    """Returns one image's counts at every threshold, in one histogram of its `threshold_bins`."""
    width, kinds = len(THRESHOLDS) + 1, masks.shape[-1]
    codes = (masks != 0) * width + bins.astype(np.int64) + 2 * width * np.arange(kinds)
    table = np.bincount(codes.ravel(), minlength=2 * width * kinds).reshape(kinds, 2, width)
    # At threshold t, the pixels in the bins above t are on.
    above = table[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
    return Counts(above[:, 1].T, above.sum(1).T, table[:, 1].sum(-1))


def overlap(masks: Bool[np.ndarray, "h w k"], truths: Shaped[np.ndarray, "h w k"]) -> Counts:
    """Returns one image's counts of masks that need no threshold, on an axis of length one."""
    drawn = truths != 0
    return Counts((masks & drawn).sum((0, 1))[None], masks.sum((0, 1))[None], drawn.sum((0, 1)))


def iou(
    masks: Bool[np.ndarray, "b h w k"], truths: Bool[np.ndarray, "b h w k"]
) -> Float[np.ndarray, "k"]:
    """Returns the IoU of each pathology, pooled over images as in the paper's tables.

    NaN where neither is drawn in any image.
    """
    return ratio((masks & truths).sum((0, 1, 2)), (masks | truths).sum((0, 1, 2)))


def ratio(parts: Int[np.ndarray, "*s"], wholes: Int[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Returns parts / wholes; NaN where there is no whole."""
    return np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)


def best_thresholds(counts: Counts) -> Float[np.ndarray, "k"]:
    """Returns the threshold of greatest pooled IoU for each pathology; NaN where none was drawn.

    The release lets 0/0 through, and its argmax then picks a NaN.
    """
    values = counts.iou()
    rows = np.nan_to_num(values, nan=-1).argmax(0)
    return np.where(counts.truths > 0, THRESHOLDS[rows], np.nan)


def iou_per_image(
    truths: Bool[np.ndarray, "h w k"], masks: Bool[np.ndarray, "h w k"], *, true_pos_only: bool
) -> Float[np.ndarray, "k"]:
    """Returns one image's IoUs as CheXlocalize counts them.

    With `true_pos_only`, NaN unless truth and prediction are both drawn; else NaN only if neither is.
    """
    shared, either = (truths & masks).sum((0, 1)), (truths | masks).sum((0, 1))
    values = ratio(shared, either)
    if true_pos_only:
        values[~(truths.any((0, 1)) & masks.any((0, 1)))] = np.nan
    return values


def hits(
    maps: Float[np.ndarray, "h w k"], truths: Bool[np.ndarray, "h w k"]
) -> Float[np.ndarray, "k"]:
    """Returns 1 where the greatest value of a map lies in its truth, else 0; NaN without a truth."""
    flat = maps.reshape(-1, maps.shape[-1])
    inside = np.take_along_axis(truths.reshape(flat.shape), flat.argmax(0)[None], 0)[0]
    return np.where(truths.any((0, 1)), inside.astype(np.float64), np.nan)


def auroc(scores: Float[np.ndarray, "n"], positives: Bool[np.ndarray, "n"]) -> float:
    """Returns the area under the ROC curve, ties counting half; NaN without both classes."""
    _ordered, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = int(positives.sum()), int((~positives).sum())
    if n == 0 or m == 0:
        return float("nan")
    return float((ranks[positives].sum() - n * (n + 1) / 2) / (n * m))


def nan_mean(values: Float[np.ndarray, "*s n k"]) -> Float[np.ndarray, "*s k"]:
    """Returns the mean over images, skipping NaN; NaN, without a warning, where nothing is left."""
    known = ~np.isnan(values)
    totals, counts = np.where(known, values, 0).sum(-2), known.sum(-2)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def bootstrap_indices(n: int, *, replicates: int = 1000, seed: int = 0) -> Int[np.ndarray, "r n"]:
    """Returns which of n images each replicate draws, with replacement, as CheXlocalize draws them."""
    generator = np.random.RandomState(seed)
    return np.stack([generator.choice(n, n) for _ in range(replicates)])


def bootstrap_means(
    values: Float[np.ndarray, "n k"], *, replicates: int = 1000, seed: int = 0
) -> Float[np.ndarray, "r k"]:
    """Returns the mean over each replicate's images, skipping NaN; NaN where nothing is left.

    Each sum runs over the last axis, where NumPy adds pairwise as it does for pandas: a product with
    the numbers of draws would be as fast, and differ from CheXlocalize's in the last digits.
    """
    rows = bootstrap_indices(len(values), replicates=replicates, seed=seed)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    totals = np.stack([column[rows].sum(-1) for column in filled.T], -1)
    counts = np.stack([column[rows].sum(-1) for column in known.T], -1)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def bootstrap_pooled(
    counts: Counts, *, replicates: int = 1000, seed: int = 0
) -> Float[np.ndarray, "r k"]:
    """Returns the pooled IoU of each replicate's images; NaN for what is drawn in none of all images.

    A matrix product of the numbers of draws with the counts: exact, as float64 holds pixels to 2^53.
    """
    rows = bootstrap_indices(len(counts.truths), replicates=replicates, seed=seed)
    times = np.stack([np.bincount(row, minlength=rows.shape[1]) for row in rows]).astype(np.float64)
    shared, drawn, truths = (
        (times @ some).astype(np.int64)
        for some in (counts.intersections[:, 0], counts.predictions[:, 0], counts.truths)
    )
    drawn_at_all = (counts.truths > 0).any(axis=0, keepdims=True)
    return np.where(drawn_at_all, ratio(shared, drawn + truths - shared), np.nan)


def interval(replicates: Float[np.ndarray, "r"], n: int) -> Interval:
    """Returns the mean of bootstrap replicates with their 2.5 and 97.5 percentiles.

    As in CheXlocalize: the sorted values at int(0.025 r) - 1 and int(0.975 r) - 1, and the mean of the
    replicates rather than of the images. NaN if any replicate has no value, as sorting puts it last.
    """
    ordered = np.sort(replicates)
    if np.isnan(ordered).all():
        return Interval(float("nan"), float("nan"), float("nan"), n)
    low, high = (max(int(q * len(ordered)) - 1, 0) for q in (0.025, 0.975))
    mean = float(np.nanmean(ordered))
    return Interval(mean, float(ordered[low]), float(ordered[high]), n)


def per_image_intervals(values: Float[np.ndarray, "n k"], *, seed: int = 0) -> list[Interval]:
    """Returns the interval of each column of per-image values."""
    return intervals_of(values, bootstrap_means(values, seed=seed))


def intervals_of(
    values: Float[np.ndarray, "n k"], replicates: Float[np.ndarray, "r k"]
) -> list[Interval]:
    """Returns the interval of each column of per-image values, whose bootstrap is known."""
    counts = (~np.isnan(values)).sum(0)
    return [interval(replicates[:, k], int(n)) for k, n in enumerate(counts)]


def pooled_intervals(counts: Counts, *, seed: int = 0) -> tuple[list[Interval], Interval]:
    """Returns the pooled IoU of each pathology, and their mean, with intervals over images.

    Counts are those of many images, as `overlap` gives them. Here `mean` is the pooled value itself, not
    the replicates' mean, and `n` the number of images where the pathology is drawn. One that is drawn
    nowhere has no value and no part in the mean.
    """
    return averaged_intervals([counts], seed=seed)


def averaged_intervals(
    runs: Sequence[Counts], others: Sequence[Counts] = (), *, seed: int = 0
) -> tuple[list[Interval], Interval]:
    """Returns the pooled IoU averaged over runs, less that of others, as `pooled_intervals` does.

    All must be counts of the same images: each replicate draws the same ones for every run, so that the
    interval of a difference is of the difference, not of two independent numbers. A pathology without a
    value on either side has none, nor a part in the mean.
    """
    truths = runs[0].truths
    if any((some.truths != truths).any() for some in (*runs, *others)):
        raise ValueError("counts of different images, or of different truths, cannot be compared")
    drawn = (truths > 0).sum(0)

    def averaged(some: Sequence[Counts]) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "k"]]:
        points = [np.where(drawn > 0, counts.pooled().iou()[0], np.nan) for counts in some]
        replicates = [bootstrap_pooled(counts, seed=seed) for counts in some]
        return nan_mean(np.stack(replicates, 1)), nan_mean(np.stack(points))

    replicates, values = averaged(runs)
    if others:
        less, lesser = averaged(others)
        replicates, values = replicates - less, values - lesser
    rows = [
        replace(interval(replicates[:, k], int(n)), mean=float(values[k]))
        for k, n in enumerate(drawn)
    ]
    means = nan_mean(replicates.T)
    return rows, replace(interval(means, len(truths)), mean=mean_of(values))


def mean_of(values: Sequence[float] | Float[np.ndarray, "k"]) -> float:
    """Returns the mean of the values that are numbers; NaN if none is."""
    return float(nan_mean(np.asarray(values, np.float64)[:, None])[0])
