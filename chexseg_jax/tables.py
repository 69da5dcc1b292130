"""CheXlocalize's files: predictions as run lengths, IoU by image, and the summary with intervals."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from chexseg_jax.artefacts import write_csv
from chexseg_jax.disk import whole
from chexseg_jax.gates import Gates
from chexseg_jax.metrics import Interval
from chexseg_jax.pathologies import PATHOLOGIES, canonical

ORDER = sorted(range(len(PATHOLOGIES)), key=PATHOLOGIES.__getitem__)
"""CheXlocalize sorts its columns and rows by name."""


DAMAGED = (csv.Error, OverflowError, RecursionError)
"""What reading raises beside the usual of a file that is damaged."""


class TableError(ValueError):
    """A file that is not the table it should be."""


def write_predictions(path: Path, images: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes {image id: {pathology: run lengths}} at native size, an image at a time."""
    with whole(path) as aside, aside.open("w") as file:
        file.write("{")
        for number, (image_id, rles) in enumerate(images):
            file.write(",\n" if number else "")
            file.write(f"{json.dumps(image_id)}: {json.dumps(rles)}")
        file.write("}\n")


def write_per_image(
    path: Path,
    image_ids: Sequence[str],
    values: Float[np.ndarray, "n k"],
    *,
    whole_numbers: bool = False,
) -> None:
    """Writes `iou_results_per_cxr.csv`; a value that does not count is left blank.

    With `whole_numbers`, as hits are, a column without blanks has no decimals, as pandas has it.
    """
    bare = whole_numbers & ~np.isnan(values).any(0)
    rows = [[PATHOLOGIES[k] for k in ORDER] + ["img_id"]]
    for image_id, row in zip(image_ids, values, strict=True):
        cells = [str(int(row[k])) if bare[k] else _cell(row[k]) for k in ORDER]
        rows.append([*cells, image_id])
    write_csv(path, rows)


def write_bootstrap(path: Path, replicates: Float[np.ndarray, "r k"]) -> None:
    """Writes `iou_bootstrap_results_per_cxr.csv`: a row a replicate, columns in the order of masks."""
    write_csv(path, [PATHOLOGIES, *([_cell(value) for value in row] for row in replicates)])


def write_summary(path: Path, intervals: Sequence[Interval]) -> None:
    """Writes `iou_summary_results.csv`: name, lower, mean, upper, to three decimals."""
    rows: list[list[Any]] = [["name", "lower", "mean", "upper"]]
    for k in ORDER:
        row = intervals[k]
        # NumPy's rounding, as CheXlocalize's: Python's differs where the fourth digit is a 5.
        numbers = np.round([row.lower, row.mean, row.upper], 3)
        rows.append([PATHOLOGIES[k], *map(_cell, numbers)])
    write_csv(path, rows)


def write_thresholds(path: Path, thresholds: Float[np.ndarray, "k"]) -> None:
    """Writes thresholds as CheXlocalize's `tuning_results.csv` has them: threshold, task."""
    rows = [[_cell(thresholds[k]), PATHOLOGIES[k]] for k in ORDER]
    write_csv(path, [["threshold", "task"], *rows])


def write_gates(path: Path, gates: Gates) -> None:
    """Writes `gates.csv` as CheXlocalize does: `prob_threshold,mIoU,task`, by name."""
    rows = [[_cell(gates.cutoffs[k]), _cell(gates.ious[k]), PATHOLOGIES[k]] for k in ORDER]
    write_csv(path, [["prob_threshold", "mIoU", "task"], *rows])


def read_thresholds(path: Path) -> Float[np.ndarray, "k"]:
    """Returns thresholds in the order of mask channels, from our CSV or the release's JSON list.

    Raises:
        TableError: there is not one number on [0, 1] for each pathology; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            found = dict(zip(PATHOLOGIES, json.loads(text), strict=True))
        else:
            rows = csv.DictReader(text.splitlines())
            found = {canonical(row["task"]): float(row["threshold"]) for row in rows}
        values = np.array([found[name] for name in PATHOLOGIES], np.float64)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except (LookupError, TypeError, ValueError, AttributeError, *DAMAGED) as error:
        raise TableError(f"{path}: not a threshold for each of the ten ({error!r:.80})") from None
    if values.shape != (len(PATHOLOGIES),):
        raise TableError(f"{path}: a threshold is no number")
    if not ((values >= 0) & (values <= 1)).all():
        raise TableError(f"{path}: a threshold lies outside [0, 1]")
    return values


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))
