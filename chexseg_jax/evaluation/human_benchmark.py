"""A model beside a reader: percentage decrease, pixel rates, pooled IoU, and the gap that is closed.

The percentage decrease is CheXlocalize's, in the columns of `calculate_percentage_decrease.py`: also
where the reader scores zero in a replicate, which makes it minus infinity. The row `Average` has its
interval, which a misspelt column drops there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from chexseg_jax.evaluation.chexlocalize import ORDER
from chexseg_jax.evaluation.metrics import (
    Counts,
    bootstrap_pooled,
    interval,
    mean_of,
    nan_mean,
    pooled_intervals,
)
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.stage_folder import write_csv

Replicates = Float[np.ndarray, "r k"]


def decrease(
    human: Float[np.ndarray, "*s"], pred: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Returns (human - pred) / human; where human is zero, minus infinity, or NaN if both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (human - pred) / human


def write_decrease(path: Path, human: Replicates, pred: Replicates) -> None:
    """Writes `percentage_decrease.csv`, the greatest decrease first, then the average."""
    heads = ["name", "hb", "pred", "pct_diff", "pct_diff_lower", "pct_diff_upper"]
    replicates, rows = decrease(human, pred), []
    means = np.array([[mean_of(column) for column in side.T] for side in (human, pred)])
    changes = np.round(100 * decrease(means[0], means[1]), 3)
    for k, name in enumerate(PATHOLOGIES):
        found = interval(replicates[:, k], 0)
        low, high = np.round(np.round([found.lower, found.upper], 3) * 100, 3)
        rows.append([name, *means[:, k], changes[k], low, high])
    # A stable sort with what has no value last.
    rows.sort(key=lambda row: (row[3] != row[3], 0.0 if row[3] != row[3] else -row[3]))
    totals = np.round([mean_of(side) for side in means], 3)
    change = np.round(100 * decrease(totals[:1], totals[1:])[0], 3)
    found = interval(100 * decrease(nan_mean(human.T), nan_mean(pred.T)), 0)
    low, high = np.round([found.lower, found.upper], 3)
    _write(path, heads, [*rows, ["Average", *totals, change, low, high]])


def write_rates(path: Path, rates: Mapping[str, Float[np.ndarray, "k"]]) -> None:
    """Writes `precision_recall_specificity.csv`, pixels of all images of the ground truth together."""
    rows = [[PATHOLOGIES[k], *(values[k] for values in rates.values())] for k in ORDER]
    _write(path, ["pathology", *rates], rows)


def write_pooled(path: Path, counts: Mapping[str, Counts], *, seed: int) -> None:
    """Writes `pooled_iou.csv`: a row a pathology and one for their mean, for each source.

    `iou` is the pooled value itself and the interval is over images. What the truth has nowhere has no
    value; `n` is the number of images that have it.
    """
    rows = []
    for source, some in counts.items():
        intervals, mean = pooled_intervals(some, seed=seed)
        named = [(PATHOLOGIES[k], intervals[k]) for k in ORDER] + [("Mean", mean)]
        rows += [[source, name, row.lower, row.mean, row.upper, row.n] for name, row in named]
    _write(path, ["source", "name", "lower", "iou", "upper", "n"], rows)


@dataclass(frozen=True)
class Gap:
    """Mean pooled IoUs, and the share of the way from the baseline to the reader that a model goes."""

    pred: float
    baseline: float
    human: float
    share: float
    lower: float
    upper: float


def gap(pred: Counts, baseline: Counts, human: Counts, *, seed: int) -> Gap:
    """Returns (pred - baseline) / (human - baseline), the paper's 57.2 %, with an interval over images.

    Each replicate draws the same images for all three. There is no share where the reader is not ahead
    of the baseline.
    """
    sources = (pred, baseline, human)
    means = np.array([pooled_intervals(some, seed=seed)[1].mean for some in sources])
    replicates = np.stack([nan_mean(bootstrap_pooled(some, seed=seed).T) for some in sources])
    found = interval(_share(replicates), 0)
    share = float(_share(means[:, None])[0])
    first, second, third = means.tolist()
    return Gap(first, second, third, share, found.lower, found.upper)


def _share(means: Float[np.ndarray, "3 r"]) -> Float[np.ndarray, "r"]:
    pred, baseline, human = means
    ahead = human > baseline
    return np.divide(
        pred - baseline, human - baseline, out=np.full(pred.shape, np.nan), where=ahead
    )


def write_gap(path: Path, found: Gap) -> None:
    """Writes `gap.csv`, one row."""
    _write(path, list(vars(found)), [list(vars(found).values())])


def _write(path: Path, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    write_csv(path, [heads, *([_plain(cell) for cell in row] for row in rows)])


def _plain(cell: object) -> object:
    """Returns a cell as Python's own number, or blank if it is none."""
    value = cell.item() if isinstance(cell, np.generic) else cell
    return "" if isinstance(value, float) and value != value else value
