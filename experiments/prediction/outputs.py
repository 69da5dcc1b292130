"""Write the results of all X-rays: CheXlocalize's JSON, the CSV of findings, and the page."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jax

from chexseg_jax.evaluation.chexlocalize import write_predictions
from chexseg_jax.inference.export import ExportedNetwork
from chexseg_jax.masks import decode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.radiograph import RadiographError
from chexseg_jax.radiographs.read import read_radiograph
from chexseg_jax.runtime.stage_folder import write_csv
from experiments.prediction.inputs import InputFile, printable
from experiments.prediction.progress import ProgressJournal
from experiments.prediction.rendering import mask_thumbnail, prediction_example
from experiments.report.overlays import Example
from experiments.report.page import write_prediction_page

HEADS = (
    *("image_id", "file", "finding", "probability", "mean_probability"),
    *("area_pixels", "area_share", "area_mm2", "spacing"),
)


def write_outputs(
    out: Path,
    segmenter: ExportedNetwork,
    inputs: Sequence[InputFile],
    journal: ProgressJournal,
    examples: int,
) -> tuple[int, int]:
    """Write the files of all X-rays, with one result in memory at a time.

    Args:
        out: the output folder.
        segmenter: the exported network.
        inputs: the files that were given.
        journal: of their results and failures.
        examples: how many X-rays the page shows.

    Returns:
        The numbers of files that could not be used, and of those whose results are incomplete.
    """
    done = [file for file in inputs if journal.has_result(file)]
    predictions = ((file.image_id, journal.result(file)["rles"]) for file in done)
    write_predictions(out / "pred_segmentations.json", predictions)
    findings = (row for file in done for row in _findings(file, journal.result(file)))
    write_csv(out / "findings.csv", chain([HEADS], findings))
    failures = [
        [printable(file.path), printable(reason)]
        for file in inputs
        if (reason := journal.failure(file))
    ]
    write_csv(out / "failed.csv", [["file", "reason"], *failures])
    left_out = len(inputs) - len(done)
    read = (_read_example(file, journal.result(file), segmenter) for file in done[:examples])
    cards = [example for example in read if example]
    report = _page_content(segmenter.config, len(done), left_out, len(cards))
    write_prediction_page(out / "report.html", report, cards)
    return left_out, len(failures) - left_out


def _findings(file: InputFile, result: dict[str, Any]) -> list[list[Any]]:
    """Return a row per pathology; mm² are those of the pixel spacing in the last column."""
    height, width = result["size"]
    spacing, rows = result["spacing"], []
    for k, name in enumerate(PATHOLOGIES):
        area = result["areas"][k]
        physical = ["", ""]
        if spacing:
            mm2 = area * spacing["rows"] * spacing["columns"]
            physical = [f"{mm2:.1f}", spacing["attribute"]]
        probabilities = [result["greatest"][k], result["means"][k]]
        share = f"{area / (height * width):.6f}"
        rows.append(
            [file.image_id, printable(file.path), name, *probabilities, area, share, *physical]
        )
    return rows


def _read_example(
    file: InputFile, result: dict[str, Any], segmenter: ExportedNetwork
) -> Example | None:
    try:
        radiograph = read_radiograph(file.path)
    except RadiographError:  # deleted since it was predicted
        return None
    thumbnails = [mask_thumbnail(decode_rle(result["rles"][name])) for name in PATHOLOGIES]
    pairs = zip(PATHOLOGIES, result["greatest"], result["areas"], strict=True)
    scores = {name: greatest for name, greatest, area in pairs if area}
    seen = segmenter.letterbox(radiograph.image)[..., 0]
    return prediction_example(file.image_id, radiograph, thumbnails, scores, seen)


def _page_content(
    model: Mapping[str, Any], done: int, failed: int, examples: int
) -> dict[str, Any]:
    names = ("trained", "backbone", "image_size", "photometry", "thresholds")
    settings = {name: model[name] for name in names if name in model}
    return {
        "title": "CheXseg predictions",
        "subtitle": f"Ten pathologies drawn on {done:,} X-rays; {failed:,} files were left out.",
        "group": (
            f"The first {examples:,} X-rays",
            "Each number is the finding's maximum probability over pixels, if its mask is not empty.",
        ),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": model["versions"],
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "settings": settings,
    }
