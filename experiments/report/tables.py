"""Tables of the report, as HTML, and how their numbers are written.

What is missing or not a number is shown as a dash.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final, TypeGuard

from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS, OBSERVATIONS, PATHOLOGIES

SOURCES: Final = {"run": "This run", "cam": "CAM", "prior": "Prior", "human": "Human"}
"""What IoU is reported of, in the order of columns; human is the second reader."""

MODES: Final = {
    "true_pos_only_True": (
        "true_pos_only: images where truth and mask are both drawn",
        "A finding that was missed altogether does not count, which makes this number kind.",
    ),
    "true_pos_only_False": (
        "All: images where truth or mask is drawn",
        "A missed finding counts as zero, and so does a false alarm.",
    ),
}
"""CheXlocalize's two ways to average over images."""

DASH: Final = "–"

Rows = Sequence[Sequence[str]]


def known(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a number one can show."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any) -> str:
    """Returns a value with three decimals, or a dash."""
    return f"{value:.3f}" if known(value) else DASH


def whole_number(value: Any) -> str:
    """Returns a count with its thousands apart, or a dash."""
    return f"{value:,}" if known(value) else DASH


def interval(entry: Mapping[str, Any]) -> str:
    """Returns the interval of an entry, or nothing where it has none."""
    low, high = entry.get("lower"), entry.get("upper")
    return f"[{number(low)}, {number(high)}]" if known(low) and known(high) else ""


def part(report: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Returns what lies under some keys; an empty mapping where something on the way is missing."""
    found: Any = report
    for key in keys:
        found = (found or {}).get(key)
    return found or {}


def sources_of(report: Mapping[str, Any], *keys: str) -> list[str]:
    """Returns the sources of masks for which there are numbers under some keys."""
    return [source for source in SOURCES if part(report, *keys, source)]


def heading(text: str, *, bar: bool = False) -> str:
    """Returns a column's heading."""
    kind = ' class="bar"' if bar else ""
    return f'<th scope="col"{kind}>{escape(text)}</th>'


def html_table(caption: str, head: Sequence[str], rows: Rows, foot: Sequence[str] = ()) -> str:
    """Returns a table of headings and cells in HTML; the first cell of a row names the row."""

    def line(cells: Sequence[str]) -> str:
        return f'<tr><th scope="row">{cells[0]}</th>{"".join(cells[1:])}</tr>'

    last = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(map(line, rows))}</tbody>"
        f"{last}</table></div>"
    )


def cell(text: str, *, best: bool = False) -> str:
    """Returns a cell of text."""
    return f'<td class="best">{escape(text)}</td>' if best else f"<td>{escape(text)}</td>"


def bar(value: Any, entry: Mapping[str, Any], *, start: float = 0.0, best: bool = False) -> str:
    """Returns a cell with a number, its interval, and both as a bar from `start` to 1."""

    def place(at: Any) -> str:
        share = (at - start) / (1 - start) if known(at) else 0.0
        return f"{100 * min(max(share, 0), 1):.1f}%"

    limits = interval(entry)
    whisker = (
        f'<s style="left:{place(entry["lower"])};right:calc(100% - {place(entry["upper"])})"></s>'
        if limits
        else ""
    )
    return (
        f'<td class="{"bar best" if best else "bar"}"><span>{number(value)} <small>{limits}</small>'
        f'</span><i><b style="width:{place(value)}"></b>{whisker}</i></td>'
    )


def greatest(values: Iterable[Any]) -> float | None:
    """Returns the greatest number above zero, which a row marks; None without one."""
    return max((value for value in values if known(value) and value > 0), default=None)


def iou_cells(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a row's cells: this run with a bar, the others as numbers, the greatest marked."""
    top = greatest(entry.get("iou") for entry in entries.values())
    cells = []
    for source, entry in entries.items():
        value = entry.get("iou")
        best = top is not None and value == top
        run = source == "run"
        cells.append(bar(value, entry, best=best) if run else cell(number(value), best=best))
    return cells


def iou_table(report: Mapping[str, Any]) -> str:
    """Returns the main table: pooled IoU by pathology."""
    sources = sources_of(report, "pooled")
    counts, thresholds = part(report, "n"), part(report, "thresholds")
    rows = []
    for name in PATHOLOGIES:
        entries = {source: part(report, "pooled", source, name) for source in sources}
        threshold = thresholds.get(name)
        chosen = f"{threshold:.2f}" if known(threshold) else DASH
        cells = [cell(whole_number(counts.get(name))), *iou_cells(entries), cell(chosen)]
        rows.append([escape(name), *cells])
    means = {source: part(report, "mean", source) for source in sources}
    columns = [heading(SOURCES[source], bar=source == "run") for source in sources]
    head = [heading("Pathology"), heading("n"), *columns, heading("Threshold")]
    foot = ["Mean", cell(""), *iou_cells(means), cell("")]
    return html_table("Pooled IoU at the letterbox", head, rows, foot)


def image_tables(report: Mapping[str, Any]) -> str:
    """Returns the per-image tables: IoU in both of CheXlocalize's modes, and the hit rate."""
    tables = [(title, note, ("per_image", mode)) for mode, (title, note) in MODES.items()] + [
        (
            "Hit rate",
            "The share of drawn images whose map is greatest inside the truth.",
            ("hit_rate",),
        )
    ]
    pieces = []
    for title, note, keys in tables:
        sources = sources_of(report, *keys)
        rows = []
        for name in PATHOLOGIES:
            cells = []
            for source in sources:
                entry = part(report, *keys, source, name)
                cells += [bar(entry.get("mean"), entry), cell(whole_number(entry.get("n")))]
            rows.append([escape(name), *cells])
        head = [heading("Pathology")]
        for source in sources:
            head += [heading(SOURCES[source], bar=True), heading("n")]
        caption = f"{escape(title)}<em>{escape(note)}</em>"
        pieces.append(html_table(caption, head, rows))
    return "".join(pieces)


def classifier_table(report: Mapping[str, Any]) -> str:
    """Returns the classifier's AUROC by observation."""
    scores, counts = part(report, "classifier", "auroc"), part(report, "classifier", "n")
    rows = [
        [escape(name), cell(whole_number(counts.get(name))), bar(scores.get(name), {}, start=0.5)]
        for name in OBSERVATIONS
    ]
    five = [scores[name] for name in COMPETITION_OBSERVATIONS if known(scores.get(name))]
    mean = sum(five) / 5 if len(five) == 5 else None
    foot = ["Mean of CheXpert's five", cell(""), bar(mean, {}, start=0.5)]
    head = [heading("Observation"), heading("n"), heading("AUROC", bar=True)]
    return html_table("Classifier: AUROC", head, rows, foot)


def pseudo_table(report: Mapping[str, Any]) -> str:
    """Returns the IoU of the pseudo-masks with masks that training never saw, if it is known."""
    kinds = {
        "cam": "CAM",
        "irnet": "IRNet",
        "prior": "Prior",
        "prior_labels": "Prior + labels",
    }
    if not part(report, "pseudo_masks"):
        return "<p>Pseudo-masks were not measured: no masks to hold them to.</p>"

    def cells(values: Sequence[Any]) -> list[str]:
        top = greatest(values)
        return [cell(number(v), best=top is not None and v == top) for v in values]

    rows = [
        [escape(name), *cells([part(report, "pseudo_masks", kind).get(name) for kind in kinds])]
        for name in PATHOLOGIES
    ]
    means = part(report, "pseudo_masks", "means")
    foot = ["Mean", *cells([means.get(kind) for kind in kinds])]
    head = [heading("Pathology"), *map(heading, kinds.values())]
    return html_table("Pseudo-masks: pooled IoU", head, rows, foot)


def rho_table(report: Mapping[str, Any]) -> str:
    """Returns the runs that differ from this one in rho alone, side by side; nothing without any."""
    runs = report.get("rhos") or []
    if len(runs) < 2:
        return ""
    top = greatest(run.get("iou") for run in runs)
    rows = [
        [
            f"ρ = {escape(str(run.get('rho')))}"
            + (" (this run)" if run.get("rho") == report.get("rho") else ""),
            bar(run.get("iou"), run, best=top is not None and run.get("iou") == top),
            f"<td><code>{escape(str(run.get('folder')))}</code></td>",
        ]
        for run in runs
    ]
    caption = (
        "Other shares of expert masks<em>Finished runs in the same place whose settings and data "
        "are this run's but for ρ: 0 is pseudo-masks alone, 1 is expert masks alone.</em>"
    )
    head = [heading("Run"), heading("Mean pooled IoU", bar=True), heading("Folder")]
    return html_table(caption, head, rows)
