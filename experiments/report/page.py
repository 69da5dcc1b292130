"""The HTML page of a report: one file that makes no request.

Images are embedded as data URIs, and the page's content security policy forbids everything else. The
numbers are those of `report.json`. Jinja2 escapes every value.
"""

import json
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chexseg_jax.runtime.atomic_write import atomic_write
from experiments.report.overlays import GROUPS, Example, data_uri, gallery
from experiments.report.tables import (
    DASH,
    SOURCES,
    bar_cell,
    classifier_table,
    experts_table,
    image_tables,
    iou_table,
    lookup,
    provenance_tables,
    pseudo_table,
    rho_table,
    sources_of,
)


def training_masks(report: Mapping[str, Any]) -> str:
    """Return a sentence about the masks that the run was trained on."""
    pseudo = {
        "irnet": "pseudo-masks that IRNet made of CAMs",
        "cam": "CAMs as pseudo-masks",
        "teacher": "pseudo-masks of a teacher, which learned from the expert masks",
    }
    weak = pseudo.get(report.get("pseudo") or "", "pseudo-masks")
    rho = report.get("rho")
    if rho == 0:
        masks = f"{weak} alone (ρ = 0)"
    elif rho == 1:
        masks = "expert masks alone (ρ = 1)"
    else:
        masks = f"expert masks (a share of ρ = {DASH if rho is None else rho}) and {weak}"
    return f"Ten pathologies drawn on chest X-rays by a network that learned from {masks}."


def write_report(
    path: Path,
    report: Mapping[str, Any],
    examples: Sequence[Example],
    figures: Mapping[str, Path],
) -> None:
    """Write the page of an evaluated run, atomically.

    Args:
        path: the page, such as `report.html`.
        report: the content of `report.json`.
        examples: images to show with their masks.
        figures: image files to show, by caption.
    """
    images = [
        (caption, data_uri(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "image/png"))
        for caption, file in figures.items()
    ]
    means = {source: lookup(report, "mean", source) for source in sources_of(report, "mean")}
    scores = {
        "means": [(s, SOURCES[s], bar_cell(mean.get("iou"), mean)) for s, mean in means.items()],
        "iou": iou_table(report),
        "comparisons": [t for t in (rho_table(report), experts_table(report)) if t],
        "figures": images,
        "images": image_tables(report),
        "classifier": classifier_table(report),
        "pseudo": pseudo_table(report),
    }
    _write(path, report, training_masks(report), gallery(examples, GROUPS), scores)


def write_prediction_page(
    path: Path, report: Mapping[str, Any], examples: Sequence[Example]
) -> None:
    """Write a page of predictions without expert masks: images and provenance, no scores.

    Args:
        path: the page.
        report: `title`, `subtitle`, the `group` of images (a title and a note), and its provenance.
        examples: images to show with their masks.
    """
    _write(path, report, report["subtitle"], gallery(examples, {False: report["group"]}), None)


def _write(
    path: Path,
    report: Mapping[str, Any],
    subtitle: str,
    images: Mapping[str, Any] | None,
    scores: Mapping[str, Any] | None,
) -> None:
    facts = {"preset": "preset", "ρ": "rho", "seed": "seed", "views": "views", "": "created"}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        title=report.get("title") or "CheXseg",
        subtitle=subtitle,
        facts=[
            f"{name} {report[key]}".strip()
            for name, key in facts.items()
            if report.get(key) is not None
        ],
        phantom=report.get("phantom"),
        warning=report.get("warning"),
        scores=scores,
        gallery=images,
        provenance=provenance_tables(report),
        settings=json.dumps(
            report.get("settings") or {}, indent=2, ensure_ascii=False, default=str
        ),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8")
