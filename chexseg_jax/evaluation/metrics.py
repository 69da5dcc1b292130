"""Metrics: pixel counts, IoU, hit rate, AUROC, and bootstrap intervals over seeds and images.

Three definitions that must not be mixed. *Pooled* IoU (the paper's): intersections and unions are summed
over all images in the letterbox, then divided. *Per-image* IoU and *hit rate* (CheXlocalize's): one
number an image at native size, then the mean. Counts are 64-bit integers on the host: float32 sums
lose pixels beyond 2^24.

Images of one patient are alike, so that intervals resample patients, each with all of its images. Only
CheXlocalize's own tables resample images one by one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped, UInt8

THRESHOLDS: Final = np.arange(20) * 0.05
"""The paper's twenty thresholds, 0 to 0.95; a mask holds the pixels of strictly greater probability."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval and the number of images that have a value."""

    mean: float
    lower: float
    upper: float
    n: int


def threshold_bins(probabilities: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s"]:
    """Return how many of `THRESHOLDS` each probability exceeds."""
    return np.searchsorted(THRESHOLDS, probabilities, side="left").astype(np.uint8)


@dataclass(frozen=True)
class Counts:
    """Pixels of one image, or of many along a first axis, at `t` thresholds."""

    intersection: Int[np.ndarray, "*n t k"]
    predicted_area: Int[np.ndarray, "*n t k"]
    target_area: Int[np.ndarray, "*n k"]

    def pooled(self) -> "Counts":
        """Sum over images."""
        return Counts(*(pixels.sum(0) for pixels in vars(self).values()))

    def __getitem__(self, images: Int[np.ndarray, "m"]) -> "Counts":
        """Select images."""
        return Counts(*(pixels[images] for pixels in vars(self).values()))

    def iou(self) -> Float[np.ndarray, "*n t k"]:
        """Return intersection over union; NaN where the union is empty."""
        return iou_of_areas(self.intersection, self.predicted_area, self.target_area[..., None, :])


def stack(counts: Sequence[Counts]) -> Counts:
    """Stack the counts of single images along a first axis."""
    return Counts(*map(np.stack, zip(*(vars(c).values() for c in counts), strict=True)))


def count(bins: UInt8[np.ndarray, "h w k"], masks: Shaped[np.ndarray, "h w k"]) -> Counts:
    """Count one image's pixels at every threshold, in one histogram of its `threshold_bins`."""
    width, kinds = len(THRESHOLDS) + 1, masks.shape[-1]
    codes = (masks != 0) * width + bins.astype(np.int64) + 2 * width * np.arange(kinds)
    table = np.bincount(codes.ravel(), minlength=2 * width * kinds).reshape(kinds, 2, width)
    # A mask at threshold t holds the pixels in the bins above t.
    above = table[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
    return Counts(above[:, 1].T, above.sum(1).T, table[:, 1].sum(-1))


def overlap(masks: Bool[np.ndarray, "h w k"], targets: Shaped[np.ndarray, "h w k"]) -> Counts:
    """Count the pixels of one image's masks, on a threshold axis of length one."""
    targets = targets != 0
    return Counts((masks & targets).sum((0, 1))[None], masks.sum((0, 1))[None], targets.sum((0, 1)))


def ratio(parts: Num[np.ndarray, "*s"], wholes: Int[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Divide; NaN where the denominator is zero."""
    return np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)


def iou_of_areas(
    intersection: Int[np.ndarray, "*s"],
    predicted_area: Int[np.ndarray, "*s"],
    target_area: Int[np.ndarray, "*#s"],
    *,
    true_pos_only: bool = False,
) -> Float[np.ndarray, "*s"]:
    """Compute intersection over union; NaN where the union is empty.

    With `true_pos_only`, as CheXlocalize has it, NaN also where prediction or target is empty.
    """
    values = ratio(intersection, predicted_area + target_area - intersection)
    if true_pos_only:
        values[(predicted_area == 0) | (target_area == 0)] = np.nan
    return values


def iou(
    masks: Bool[np.ndarray, "b h w k"], targets: Bool[np.ndarray, "b h w k"]
) -> Float[np.ndarray, "k"]:
    """Compute the IoU of each pathology, pooled over images as in the paper's tables.

    NaN where masks and targets are empty in every image.
    """
    areas = (x.sum((0, 1, 2)) for x in (masks & targets, masks, targets))
    return iou_of_areas(*areas)


def iou_per_image(
    targets: Bool[np.ndarray, "h w k"], masks: Bool[np.ndarray, "h w k"], *, true_pos_only: bool
) -> Float[np.ndarray, "k"]:
    """Compute one image's IoUs as CheXlocalize does; see `iou_of_areas`."""
    areas = (x.sum((0, 1)) for x in (targets & masks, masks, targets))
    return iou_of_areas(*areas, true_pos_only=true_pos_only)


def hits(
    maps: Float[np.ndarray, "h w k"], targets: Bool[np.ndarray, "h w k"]
) -> Float[np.ndarray, "k"]:
    """Return 1 where the maximum of a map lies in its target, else 0; NaN where the target is empty."""
    flat = maps.reshape(-1, maps.shape[-1])
    inside = np.take_along_axis(targets.reshape(flat.shape), flat.argmax(0)[None], 0)[0]
    return np.where(targets.any((0, 1)), inside.astype(np.float64), np.nan)


def auroc(scores: Float[np.ndarray, "n"], positives: Bool[np.ndarray, "n"]) -> float:
    """Compute the area under the ROC curve, ties counting half; NaN if a class has no example."""
    _ordered, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = int(positives.sum()), int((~positives).sum())
    if n == 0 or m == 0:
        return float("nan")
    return float((ranks[positives].sum() - n * (n + 1) / 2) / (n * m))


def nan_mean(values: Float[np.ndarray, "*s n k"]) -> Float[np.ndarray, "*s k"]:
    """Average over images, skipping NaN; NaN, without a warning, where every value is."""
    valid = ~np.isnan(values)
    totals, counts = np.where(valid, values, 0).sum(-2), valid.sum(-2)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def bootstrap_indices(n: int, *, replicates: int = 1000, seed: int = 0) -> Int[np.ndarray, "r n"]:
    """Sample the n images of each replicate with replacement, as CheXlocalize does."""
    generator = np.random.RandomState(seed)
    return np.stack([generator.choice(n, n) for _ in range(replicates)])


def bootstrap_means(
    values: Float[np.ndarray, "n k"], *, replicates: int = 1000, seed: int = 0
) -> Float[np.ndarray, "r k"]:
    """Average over each replicate's images, skipping NaN; NaN where every value is.

    Each sum runs over the last axis, where NumPy adds pairwise as it does for pandas; a product with
    the multiplicities would differ from CheXlocalize's result in the last digits.
    """
    rows = bootstrap_indices(len(values), replicates=replicates, seed=seed)
    valid = ~np.isnan(values)
    filled = np.where(valid, values, 0)
    totals = np.stack([column[rows].sum(-1) for column in filled.T], -1)
    counts = np.stack([column[rows].sum(-1) for column in valid.T], -1)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def patient_of(image_id: str) -> str:
    """Return the patient of CheXpert's image id; of another form, the image is its own patient."""
    match = re.match(r"patient[0-9]+(?=_study)", image_id)
    return match[0] if match else image_id


def patients_of(image_ids: Iterable[str]) -> list[str]:
    """Return the patient of each image."""
    return [patient_of(image_id) for image_id in image_ids]


def resample(
    patients: Sequence[str], *, replicates: int = 1000, seed: int = 0
) -> Int[np.ndarray, "r n"]:
    """Sample patients with replacement, and return how often each replicate holds each image.

    Args:
        patients: the patient of each image; all images of a patient are drawn together.
        replicates: how often.
        seed: of the draws; with a patient an image, they are those of `bootstrap_indices`.
    """
    order = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
    rows = bootstrap_indices(len(order), replicates=replicates, seed=seed)
    times = np.stack([np.bincount(row, minlength=len(order)) for row in rows])
    return times[:, [order[patient] for patient in patients]]


def bootstrap_pooled(counts: Counts, times: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r k"]:
    """Compute the pooled IoU of each replicate; NaN for a pathology present in no image.

    A matrix product of counts with the multiplicities from `resample`: exact, as float64 holds pixels to
    2^53.
    """
    areas = (
        (times.astype(np.float64) @ area).astype(np.int64)
        for area in (counts.intersection[:, 0], counts.predicted_area[:, 0], counts.target_area)
    )
    is_present = (counts.target_area > 0).any(axis=0, keepdims=True)
    return np.where(is_present, iou_of_areas(*areas), np.nan)


def interval(replicates: Float[np.ndarray, "r"], n: int) -> Interval:
    """Return the mean of bootstrap replicates with their 2.5 and 97.5 percentiles.

    As in CheXlocalize: the sorted values at int(0.025 r) - 1 and int(0.975 r) - 1, and the mean of the
    replicates rather than of the images. Sorting puts NaN last.
    """
    ordered = np.sort(replicates)
    if np.isnan(ordered).all():
        return Interval(float("nan"), float("nan"), float("nan"), n)
    low, high = (max(int(q * len(ordered)) - 1, 0) for q in (0.025, 0.975))
    mean = float(np.nanmean(ordered))
    return Interval(mean, float(ordered[low]), float(ordered[high]), n)


def per_image_intervals(
    values: Float[np.ndarray, "n k"], patients: Sequence[str] | None = None, *, seed: int = 0
) -> list[Interval]:
    """Compute the interval of each column of per-image values.

    Patients are resampled; if they are not given images are, with CheXlocalize's result to the last
    digit.
    """
    if patients is None:
        return intervals_of(values, bootstrap_means(values, seed=seed))
    if not len(values):
        return intervals_of(values, np.full((1, values.shape[1]), np.nan))
    times = resample(patients, seed=seed)
    valid = ~np.isnan(values)
    return intervals_of(values, ratio(times @ np.where(valid, values, 0), times @ valid))


def intervals_of(
    values: Float[np.ndarray, "n k"], replicates: Float[np.ndarray, "r k"]
) -> list[Interval]:
    """Compute the interval of each column of per-image values from their bootstrap."""
    counts = (~np.isnan(values)).sum(0)
    return [interval(replicates[:, k], int(n)) for k, n in enumerate(counts)]


def pooled_intervals(
    counts: Counts, patients: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[list[Interval], Interval]:
    """Compute the pooled IoU of each pathology, and their mean, with intervals over images by patient.

    Counts are those of many images, each from `overlap`. Here `mean` is the pooled value itself, not the
    replicates' mean, and `n` the number of images where the pathology is present. One that is present
    nowhere has no value and no part in the mean. Without `patients` each image is its own.
    """
    return hierarchical_intervals([counts], patients=patients, seed=seed)


def hierarchical_intervals(
    runs: Sequence[Counts],
    others: Sequence[Counts] = (),
    *,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[list[Interval], Interval]:
    """Average the pooled IoU over runs, minus that of others, with intervals over runs and images.

    The runs are those of several seeds. A replicate draws runs with replacement, then patients, and
    scores every drawn run on the drawn patients' images. Both sides of a difference see the same
    patients, and if they have as many runs the same draw of runs, whose order must be that of the seeds:
    the interval of a difference is paired. A bootstrap of few runs is narrow: of three, a third of the
    variance between them is missing.

    A pathology without a value on either side has none, nor a part in the mean; the rest is as in
    `pooled_intervals`.
    """
    targets = runs[0].target_area
    if any((counts.target_area != targets).any() for counts in (*runs, *others)):
        raise ValueError("counts of different images, or of different targets, cannot be compared")
    n_present = (targets > 0).sum(0)
    times = resample(patients or [str(i) for i in range(len(targets))], seed=seed)

    def average(group: Sequence[Counts]) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "k"]]:
        points = [np.where(n_present > 0, counts.pooled().iou()[0], np.nan) for counts in group]
        replicates = np.stack([bootstrap_pooled(counts, times) for counts in group])
        drawn = bootstrap_indices(len(group), replicates=len(times), seed=seed + 1)
        chosen = replicates[drawn, np.arange(len(times))[:, None]]
        return nan_mean(chosen), nan_mean(np.stack(points))

    replicates, values = average(runs)
    if others:
        other_replicates, other_values = average(others)
        replicates, values = replicates - other_replicates, values - other_values
    rows = [
        replace(interval(replicates[:, k], int(n)), mean=float(values[k]))
        for k, n in enumerate(n_present)
    ]
    means = nan_mean(replicates.T)
    return rows, replace(interval(means, len(targets)), mean=mean_of(values))


def mean_of(values: Sequence[float] | Float[np.ndarray, "k"]) -> float:
    """Average the values that are not NaN; NaN if all are."""
    return float(nan_mean(np.asarray(values, np.float64)[:, None])[0])
