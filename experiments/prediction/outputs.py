"""What a prediction leaves behind: CheXlocalize's JSON, the table of findings, and the page."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chexseg_jax.evaluation.chexlocalize import write_predictions
from chexseg_jax.masks import decode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.radiograph import RadiographError
from chexseg_jax.radiographs.read import read_radiograph
from chexseg_jax.runtime.stage_folder import write_csv
from experiments.prediction.inputs import InputFile
from experiments.prediction.progress import ProgressJournal
from experiments.prediction.rendering import example
from experiments.report.overlays import Example
from experiments.report.page import write_page

HEADS = (
    *("image_id", "file", "finding", "probability", "mean_probability"),
    *("area_pixels", "area_share", "area_mm2", "spacing"),
)


def write_outputs(
    out: Path,
    model: Mapping[str, Any],
    tasks: Sequence[InputFile],
    journal: ProgressJournal,
    shown: int,
) -> int:
    """Writes the files over all images, one image in memory at a time; returns how many failed."""
    done = [task for task in tasks if journal.failure(task) is None]
    predictions = ((task.image_id, journal.row(task)["rles"]) for task in done)
    write_predictions(out / "pred_segmentations.json", predictions)
    findings = (row for task in done for row in _findings(task, journal.row(task)))
    write_csv(out / "findings.csv", chain([HEADS], findings))
    failures = [[task.path, why] for task in tasks if (why := journal.failure(task))]
    write_csv(out / "failed.csv", [["file", "reason"], *failures])
    examples = [found for task in done[:shown] if (found := _example(task, journal.row(task)))]
    failed = len(tasks) - len(done)
    write_page(out / "report.html", _report(model, len(done), failed, len(examples)), examples)
    return failed


def _findings(task: InputFile, row: dict[str, Any]) -> list[list[Any]]:
    """Returns a row a finding; mm² as the named attribute states the size of pixels."""
    height, width = row["size"]
    spacing, rows = row["spacing"], []
    for k, name in enumerate(PATHOLOGIES):
        area = row["areas"][k]
        size = ["", ""]
        if spacing:
            square = area * spacing["rows"] * spacing["columns"]
            size = [f"{square:.1f}", spacing["attribute"]]
        head = [task.image_id, task.path, name, row["greatest"][k], row["means"][k], area]
        rows.append([*head, f"{area / (height * width):.6f}", *size])
    return rows


def _example(task: InputFile, row: dict[str, Any]) -> Example | None:
    try:
        radiograph = read_radiograph(task.path)
    except RadiographError:  # gone since it was predicted
        return None
    masks = np.stack([decode_rle(row["rles"][name]) for name in PATHOLOGIES], -1)
    scores = {name: row["greatest"][k] for k, name in enumerate(PATHOLOGIES) if row["areas"][k]}
    return example(task.image_id, radiograph, masks, scores)


def _report(model: Mapping[str, Any], done: int, failed: int, shown: int) -> dict[str, Any]:
    settings = {name: model[name] for name in ("trained", "network", "image_size", "thresholds")}
    return {
        "title": "CheXseg predictions",
        "subtitle": f"Ten pathologies drawn on {done:,} X-rays; {failed:,} files were left out.",
        "set": (
            f"The first {shown:,} X-rays",
            "Each number is the finding's greatest probability over pixels, where something is drawn.",
        ),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": model["versions"],
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "settings": settings,
    }
