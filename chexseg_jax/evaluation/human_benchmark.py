"""Human benchmark: percentage decrease, pixel rates, pooled IoU, and the share of the gap closed.

The percentage decrease is CheXlocalize's, in the columns of `calculate_percentage_decrease.py`. It is
minus infinity where the reader scores zero in a replicate, as there. The row `Average` has its interval,
which a misspelt column drops there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from chexseg_jax.evaluation.chexlocalize import ORDER, write_table
from chexseg_jax.evaluation.metrics import (
    Counts,
    bootstrap_pooled,
    interval,
    mean_of,
    nan_mean,
    pooled_intervals,
    resample,
)
from chexseg_jax.pathologies import PATHOLOGIES

Replicates = Float[np.ndarray, "r k"]


def decrease(
    human: Float[np.ndarray, "*s"], pred: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Compute (human - pred) / human; where human is zero, minus infinity, or NaN if both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (human - pred) / human


def write_decrease(path: Path, human: Replicates, pred: Replicates) -> None:
    """Write `percentage_decrease.csv`, the greatest decrease first, then the average."""
    heads = ["name", "hb", "pred", "pct_diff", "pct_diff_lower", "pct_diff_upper"]
    replicates, rows = decrease(human, pred), []
    means = np.array([[mean_of(column) for column in side.T] for side in (human, pred)])
    changes = np.round(100 * decrease(means[0], means[1]), 3)
    for k, name in enumerate(PATHOLOGIES):
        bounds = interval(replicates[:, k], 0)
        low, high = np.round(np.round([bounds.lower, bounds.upper], 3) * 100, 3)
        rows.append([name, *means[:, k], changes[k], low, high])
    # A stable sort with NaN last.
    rows.sort(key=lambda row: (row[3] != row[3], 0.0 if row[3] != row[3] else -row[3]))
    totals = np.round([mean_of(side) for side in means], 3)
    change = np.round(100 * decrease(totals[:1], totals[1:])[0], 3)
    bounds = interval(100 * decrease(nan_mean(human.T), nan_mean(pred.T)), 0)
    low, high = np.round([bounds.lower, bounds.upper], 3)
    write_table(path, heads, [*rows, ["Average", *totals, change, low, high]])


def write_rates(path: Path, rates: Mapping[str, Float[np.ndarray, "k"]]) -> None:
    """Write `precision_recall_specificity.csv` over the pixels of all images of the ground truth."""
    rows = [[PATHOLOGIES[k], *(values[k] for values in rates.values())] for k in ORDER]
    write_table(path, ["pathology", *rates], rows)


def write_pooled(
    path: Path, counts: Mapping[str, Counts], patients: Sequence[str], *, seed: int
) -> None:
    """Write `pooled_iou.csv`: for each source a row for each pathology and one for their mean.

    `iou` is the pooled value itself and the interval is over images, by patient. A pathology present
    nowhere has no value; `n` is the number of images where it is present.
    """
    rows = []
    for source, source_counts in counts.items():
        intervals, mean = pooled_intervals(source_counts, patients, seed=seed)
        named = [(PATHOLOGIES[k], intervals[k]) for k in ORDER] + [("Mean", mean)]
        rows += [[source, name, row.lower, row.mean, row.upper, row.n] for name, row in named]
    write_table(path, ["source", "name", "lower", "iou", "upper", "n"], rows)


@dataclass(frozen=True)
class Gap:
    """Mean pooled IoUs, and the share of the gap between baseline and reader that a model closes."""

    pred: float
    baseline: float
    human: float
    share: float
    lower: float
    upper: float


def gap(
    pred: Counts, baseline: Counts, human: Counts, patients: Sequence[str], *, seed: int
) -> Gap:
    """Compute (pred - baseline) / (human - baseline), the paper's 57.2 %, with an interval over images.

    Each replicate samples the same patients for all three. NaN where the reader is not ahead of the
    baseline.
    """
    sources = (pred, baseline, human)
    means = np.array([pooled_intervals(counts, seed=seed)[1].mean for counts in sources])
    times = resample(patients, seed=seed)
    replicates = np.stack([nan_mean(bootstrap_pooled(counts, times).T) for counts in sources])
    bounds = interval(_share(replicates), 0)
    share = float(_share(means[:, None])[0])
    named = dict(zip(("pred", "baseline", "human"), means.tolist(), strict=True))
    return Gap(**named, share=share, lower=bounds.lower, upper=bounds.upper)


def _share(means: Float[np.ndarray, "3 r"]) -> Float[np.ndarray, "r"]:
    pred, baseline, human = means
    ahead = human > baseline
    return np.divide(
        pred - baseline, human - baseline, out=np.full(pred.shape, np.nan), where=ahead
    )


def write_gap(path: Path, gap: Gap) -> None:
    """Write `gap.csv`, one row."""
    write_table(path, list(vars(gap)), [list(vars(gap).values())])
