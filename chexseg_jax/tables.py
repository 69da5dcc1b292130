"""CheXlocalize's files: predictions as run lengths, IoU by image, and the summary with intervals."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt16

from chexseg_jax.artefacts import whole
from chexseg_jax.masks import rles_of
from chexseg_jax.metrics import Interval
from chexseg_jax.pathologies import PATHOLOGIES

ORDER = sorted(range(len(PATHOLOGIES)), key=PATHOLOGIES.__getitem__)
"""CheXlocalize sorts its columns and rows by name."""


def write_predictions(path: Path, images: Iterable[tuple[str, UInt16[np.ndarray, "h w"]]]) -> None:
    """Writes {image id: {pathology: run lengths}} at native size, an image at a time."""
    with whole(path) as aside, aside.open("w") as file:
        for number, (image_id, bits) in enumerate(images):
            file.write(",\n" if number else "{")
            file.write(f"{json.dumps(image_id)}: {json.dumps(rles_of(bits))}")
        file.write("}\n")


def write_per_image(path: Path, image_ids: Sequence[str], values: Float[np.ndarray, "n k"]) -> None:
    """Writes `iou_results_per_cxr.csv`; a value that does not count is left blank."""
    with whole(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([PATHOLOGIES[k] for k in ORDER] + ["img_id"])
        for image_id, row in zip(image_ids, values, strict=True):
            cells = ["" if np.isnan(row[k]) else repr(float(row[k])) for k in ORDER]
            writer.writerow([*cells, image_id])


def write_summary(path: Path, intervals: Sequence[Interval]) -> None:
    """Writes `iou_summary_results.csv`: name, lower, mean, upper, to three decimals."""
    with whole(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "lower", "mean", "upper"])
        for k in ORDER:
            row = intervals[k]
            numbers = (round(value, 3) for value in (row.lower, row.mean, row.upper))
            writer.writerow([PATHOLOGIES[k], *("" if n != n else n for n in numbers)])
