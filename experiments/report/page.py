"""The report: one page of HTML that needs nothing beside itself, and a table for the terminal.

Numbers are those of `report.json`; what is missing or not a number is shown as a dash. The page makes
no request: images lie in it as data, and its security policy forbids the rest.
"""

import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.atomic_write import atomic_write
from experiments.report.overlays import Example as Example
from experiments.report.overlays import data_uri, gallery
from experiments.report.tables import (
    DASH,
    SOURCES,
    cell,
    classifier_table,
    heading,
    html_table,
    image_tables,
    interval,
    iou_table,
    number,
    part,
    pseudo_table,
    rho_table,
    sources_of,
    whole_number,
)


def table(report: Mapping[str, Any]) -> str:
    """Returns the pooled IoUs as a table for the terminal, at most 100 columns wide."""
    others = [source for source in sources_of(report, "pooled") if source != "run"]

    def line(name: str, n: str, run: str, rest: Sequence[str]) -> str:
        return f" {name:<26}  {n:>8}  {run:<20}" + "".join(f"  {cell:>7}" for cell in rest)

    def entries(name: str, n: str, keys: tuple[str, ...], last: tuple[str, ...] = ()) -> str:
        run = part(report, *keys, "run", *last)
        rest = [number(part(report, *keys, source, *last).get("iou")) for source in others]
        return line(name, n, f"{number(run.get('iou'))} {interval(run)}", rest)

    counts = part(report, "n")
    head = line("Pooled IoU", "n", "This run [95 %]", [SOURCES[source] for source in others])
    rule = "─" * (len(head) + 1)
    rows = [
        entries(name, whole_number(counts.get(name)), ("pooled",), (name,)) for name in PATHOLOGIES
    ]
    return "\n".join([rule, head, rule, *rows, rule, entries("Mean", "", ("mean",)), rule])


def tiles(report: Mapping[str, Any]) -> str:
    """Returns the headline: the mean IoU of this run and, smaller, of what it is held to."""
    return "".join(
        f'<div class="tile {source}"><dt>{SOURCES[source]}</dt><dd>'
        f"{number(part(report, 'mean', source).get('iou'))}"
        f"<small>{interval(part(report, 'mean', source))}</small></dd></div>"
        for source in sources_of(report, "mean")
    )


def provenance(report: Mapping[str, Any]) -> str:
    """Returns what made the numbers: stages, data, versions and settings, folded away."""
    stages = [
        [
            escape(str(stage.get("name"))),
            cell("reused" if stage.get("reused") else f"{stage.get('seconds') or 0:,.1f} s"),
            f"<td><code>{escape(str(stage.get('folder')))}</code></td>",
        ]
        for stage in report.get("stages") or []
    ]
    data = [
        [
            escape(str(name)),
            cell(whole_number(entry.get("images"))),
            f"<td><code>{escape(str(entry.get('fingerprint')))}</code></td>",
        ]
        for name, entry in part(report, "data").items()
    ]
    versions = [[escape(str(k)), cell(str(v))] for k, v in part(report, "versions").items()]
    versions.append(["Device", cell(str(report.get("device") or DASH))])
    settings = json.dumps(report.get("settings") or {}, indent=2, ensure_ascii=False, default=str)
    folds = {
        "Stages": html_table(
            "Stages in order", [heading("Stage"), heading("Time"), heading("Folder")], stages
        ),
        "Data": html_table(
            "What was read", [heading("Data"), heading("Images"), heading("Fingerprint")], data
        ),
        "Versions": html_table(
            "Software and device", [heading("Name"), heading("Version")], versions
        ),
        "Settings": f"<pre>{escape(settings)}</pre>",
    }
    return "".join(
        f"<details><summary>{name}</summary>{content}</details>" for name, content in folds.items()
    )


def figure(caption: str, path: Path) -> str:
    """Returns an image file as HTML that holds it."""
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return (
        f'<figure class="plot"><img alt="{escape(caption)}" '
        f'src="{data_uri(path.read_bytes(), kind)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def subtitle(report: Mapping[str, Any]) -> str:
    """Returns in a sentence what the run learned from."""
    pseudo = {"irnet": "pseudo-masks that IRNet made of CAMs", "cam": "CAMs as pseudo-masks"}
    weak = pseudo.get(report.get("pseudo") or "", "pseudo-masks")
    rho = report.get("rho")
    if rho == 0:
        share = f"{weak} alone (ρ = 0)"
    elif rho == 1:
        share = "expert masks alone (ρ = 1)"
    else:
        share = f"expert masks (a share of ρ = {DASH if rho is None else rho}) and {weak}"
    return f"Ten pathologies drawn on chest X-rays by a network that learned from {share}."


def write_report(
    path: Path,
    report: Mapping[str, Any],
    examples: Sequence[Example],
    figures: Mapping[str, Path],
) -> None:
    """Writes the page, whole.

    Args:
        path: the page, such as `report.html`.
        report: what the evaluation found, as in `report.json`.
        examples: images to show with their masks.
        figures: image files to show, by caption.
    """
    _write(
        path,
        report,
        _template(),
        subtitle=escape(subtitle(report)),
        tiles=tiles(report),
        iou=iou_table(report),
        rhos=rho_table(report),
        figures="".join(figure(caption, file) for caption, file in figures.items()),
        gallery=gallery(examples),
        images=image_tables(report),
        classifier=classifier_table(report),
        pseudo=pseudo_table(report),
    )


def write_page(path: Path, report: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Writes a page of predictions that nothing is known to compare with: no scores, only images.

    Args:
        path: the page.
        report: `title`, `subtitle`, the `set` of images (a title and a note), and what made them.
        examples: images to show with their masks.
    """
    page = re.sub("<!--scores-->.*?<!--/scores-->", "", _template(), flags=re.DOTALL)
    shown = gallery(examples, {False: report["set"]})
    _write(path, report, page, subtitle=escape(report["subtitle"]), gallery=shown)


def _template() -> str:
    return Path(__file__).with_name("report.html.template").read_text("utf-8")


def _write(path: Path, report: Mapping[str, Any], template: str, **parts: str) -> None:
    facts = {
        name: report.get(key)
        for name, key in (("preset", "preset"), ("ρ", "rho"), ("seed", "seed"), ("", "created"))
    }
    page = Template(template).substitute(
        title=escape(str(report.get("title") or "CheXseg")),
        facts=" · ".join(escape(f"{k} {v}".strip()) for k, v in facts.items() if v is not None),
        banner="Synthetic chests: numbers say nothing about patients. "
        if report.get("phantom")
        else "",
        provenance=provenance(report),
        **parts,
    )
    with atomic_write(path) as aside:
        aside.write_text(page, "utf-8")
