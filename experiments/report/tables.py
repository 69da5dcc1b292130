"""The report's tables as plain data, and the format of their numbers.

A value that is missing or not finite is shown as a dash.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS, OBSERVATIONS, PATHOLOGIES

SOURCES: Final = {
    "run": "This run",
    "teacher": "Teacher",
    "cam": "CAM",
    "prior": "Prior",
    "human": "Human",
}
"""The sources of masks that are scored, in the order of columns: the teacher is the segmenter of the
expert masks alone (after further rounds, their student), human is the second reader."""

PER_IMAGE: Final = (
    (
        "true_pos_only: images where truth and mask are both drawn",
        "An image whose finding was missed does not count, so this mode is lenient.",
        ("per_image", "true_pos_only_True"),
    ),
    (
        "All: images where truth or mask is drawn",
        "A missed finding counts as zero, and so does a false alarm.",
        ("per_image", "true_pos_only_False"),
    ),
    (
        "Hit rate",
        "The share of images with the finding whose map has its maximum inside the expert mask.",
        ("hit_rate",),
    ),
)
"""Title, note and key of CheXlocalize's scores per image: mean IoU in both modes, and hit rate."""

PSEUDO: Final = {
    "cam": "CAM",
    "irnet": "IRNet",
    "teacher": "Teacher",
    "prior": "Prior",
    "prior_labels": "Prior + labels",
}
"""The kinds of pseudo-masks that are scored, in the order of columns."""

DASH: Final = "–"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        best: whether it is the maximum of those it is compared with, and bold.
        code: whether it is an identifier, and monospaced.
        interval: of the number in `text`.
        bar: the number as the length of a bar, percent.
        whiskers: the interval as positions on that bar, percent.
    """

    text: str = ""
    best: bool = False
    code: bool = False
    interval: str = ""
    bar: float | None = None
    whiskers: tuple[float, float] | None = None


@dataclass(frozen=True)
class ReportTable:
    """A table; the first cell of each row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Cell] = ()
    note: str = ""


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def format_score(value: Any) -> str:
    """Format a value with three decimals."""
    return f"{value:.3f}" if is_number(value) else DASH


def format_count(value: Any) -> str:
    """Format a count with separators between thousands."""
    return f"{value:,}" if is_number(value) else DASH


def format_interval(entry: Mapping[str, Any]) -> str:
    """Format the interval of an entry; empty if it has none."""
    low, high = entry.get("lower"), entry.get("upper")
    if not (is_number(low) and is_number(high)):
        return ""
    return f"[{format_score(low)}, {format_score(high)}]"


def format_difference(entry: Mapping[str, Any]) -> str:
    """Format a difference and its interval with their signs; empty if it has none."""
    values = [entry.get(name) for name in ("mean", "lower", "upper")]
    if not all(is_number(value) for value in values):
        return ""
    mean, low, high = (f"{value:+.3f}" for value in values)
    return f"{mean} [{low}, {high}]"


def format_threshold(value: Any) -> str:
    """Format a threshold; a pathology that has none was not found."""
    return f"{value:.2f}" if is_number(value) else "not found"


def interval_name(sampled: Mapping[str, int], seeds: int = 1) -> str:
    """Name an interval for what it is over: "95 % interval over 3 seeds and 9 images (8 patients)"."""
    runs = f"{seeds} seeds and " if seeds > 1 else ""
    images, patients = format_count(sampled.get("images")), format_count(sampled.get("patients"))
    return f"95 % interval over {runs}{images} images ({patients} patients)"


def lookup(report: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the mapping under nested keys; empty if any of them is missing."""
    entry: Any = report
    for key in keys:
        entry = (entry or {}).get(key)
    return entry or {}


def sources_of(report: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the sources of masks that have numbers under nested keys."""
    return [source for source in SOURCES if lookup(report, *keys, source)]


def terminal_table(report: Mapping[str, Any]) -> str:
    """Format the pooled IoUs for the terminal, at most 100 columns wide."""
    others = [source for source in sources_of(report, "pooled") if source != "run"]

    def line(name: str, n: str, run: str, rest: Sequence[str]) -> str:
        return f" {name:<26}  {n:>8}  {run:<20}" + "".join(f"  {text:>7}" for text in rest)

    def scores(name: str, n: str, keys: tuple[str, ...], last: tuple[str, ...] = ()) -> str:
        run = lookup(report, *keys, "run", *last)
        rest = [lookup(report, *keys, source, *last).get("iou") for source in others]
        own = f"{format_score(run.get('iou'))} {format_interval(run)}"
        return line(name, n, own, [format_score(value) for value in rest])

    counts = lookup(report, "n")
    head = line("Pooled IoU", "n", "This run [95 %]", [SOURCES[source] for source in others])
    rule = "─" * (len(head) + 1)
    rows = [scores(k, format_count(counts.get(k)), ("pooled",), (k,)) for k in PATHOLOGIES]
    lines = [rule, head, rule, *rows, rule, scores("Mean", "", ("mean",)), rule]
    lines.append(f" [ ]: {interval_name(lookup(report, 'sampled'))}, resampled by patient")
    experts = lookup(report, "data", "expert_train").get("images")
    if report.get("rho") and experts:
        lines.append(f" Images with expert masks for training: {format_count(experts)}")
    if missing := not_found(report):
        lines.append(f" Not found by any threshold, so never drawn: {', '.join(missing)}")
    return "\n".join(lines)


def not_found(report: Mapping[str, Any]) -> list[str]:
    """Return the pathologies whose masks are empty for want of a threshold."""
    thresholds = lookup(report, "thresholds")
    return [name for name in PATHOLOGIES if name in thresholds and thresholds[name] is None]


def count_cell(value: Any) -> Cell:
    """Return the cell of a count."""
    return Cell(format_count(value))


def bar_cell(
    value: Any, entry: Mapping[str, Any] | None = None, *, start: float = 0.0, best: bool = False
) -> Cell:
    """Return the cell of a number and its interval, with a bar from `start` to 1."""

    def percent(at: Any) -> float:
        return 100 * min(max((at - start) / (1 - start), 0), 1) if is_number(at) else 0.0

    entry = entry or {}
    interval = format_interval(entry)
    whiskers = (percent(entry["lower"]), percent(entry["upper"])) if interval else None
    return Cell(format_score(value), best, False, interval, percent(value), whiskers)


def mark_best(values: Sequence[Any]) -> list[bool]:
    """Mark the maximum of some values, if it is above zero."""
    top = max((value for value in values if is_number(value) and value > 0), default=None)
    return [top is not None and value == top for value in values]


def iou_cells(entries: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """Return the cells of IoUs by source: this run with a bar, the others as numbers."""
    values = [entry.get("iou") for entry in entries.values()]
    return [
        bar_cell(value, entry, best=best) if source == "run" else Cell(format_score(value), best)
        for (source, entry), value, best in zip(
            entries.items(), values, mark_best(values), strict=True
        )
    ]


def iou_table(report: Mapping[str, Any]) -> ReportTable:
    """Return the main table: pooled IoU by pathology."""
    sources = sources_of(report, "pooled")
    counts, thresholds = lookup(report, "n"), lookup(report, "thresholds")
    rows = []
    for name in PATHOLOGIES:
        ious = iou_cells({source: lookup(report, "pooled", source, name) for source in sources})
        last = Cell(format_threshold(thresholds[name]) if name in thresholds else DASH)
        rows.append([Cell(name), count_cell(counts.get(name)), *ious, last])
    means = iou_cells({source: lookup(report, "mean", source) for source in sources})
    head = ["Pathology", "n", *(SOURCES[source] for source in sources), "Threshold"]
    foot = [Cell("Mean"), Cell(), *means, Cell()]
    note = f"{interval_name(lookup(report, 'sampled'))}, resampled by patient."
    return ReportTable("Pooled IoU at the letterbox", head, rows, foot, note)


def image_tables(report: Mapping[str, Any]) -> list[ReportTable]:
    """Return the tables of CheXlocalize's scores per image."""
    tables = []
    for title, note, keys in PER_IMAGE:
        sources = sources_of(report, *keys)
        rows = []
        for name in PATHOLOGIES:
            entries = [lookup(report, *keys, source, name) for source in sources]
            cells = [(bar_cell(e.get("mean"), e), count_cell(e.get("n"))) for e in entries]
            rows.append([Cell(name), *(cell for pair in cells for cell in pair)])
        head = ["Pathology", *(text for source in sources for text in (SOURCES[source], "n"))]
        tables.append(ReportTable(title, head, rows, note=note))
    return tables


def classifier_table(report: Mapping[str, Any]) -> ReportTable:
    """Return the classifier's AUROC by observation."""
    scores, counts = lookup(report, "classifier", "auroc"), lookup(report, "classifier", "n")
    rows = [
        [Cell(name), count_cell(counts.get(name)), bar_cell(scores.get(name), start=0.5)]
        for name in OBSERVATIONS
    ]
    five = [scores[name] for name in COMPETITION_OBSERVATIONS if is_number(scores.get(name))]
    mean = sum(five) / 5 if len(five) == 5 else None
    foot = [Cell("Mean of CheXpert's five"), Cell(), bar_cell(mean, start=0.5)]
    return ReportTable("Classifier: AUROC", ["Observation", "n", "AUROC"], rows, foot)


def pseudo_table(report: Mapping[str, Any]) -> ReportTable | None:
    """Return the IoU of pseudo-masks with hidden masks, if it was measured."""
    if not lookup(report, "pseudo_masks"):
        return None

    def cells(name: str, values: Sequence[Any]) -> list[Cell]:
        pairs = zip(values, mark_best(values), strict=True)
        return [Cell(name), *(Cell(format_score(value), best) for value, best in pairs)]

    means = lookup(report, "pseudo_masks", "means")
    kinds = [kind for kind in PSEUDO if kind in means]
    rows = [
        cells(name, [lookup(report, "pseudo_masks", kind).get(name) for kind in kinds])
        for name in PATHOLOGIES
    ]
    foot = cells("Mean", [means.get(kind) for kind in kinds])
    head = ["Pathology", *(PSEUDO[kind] for kind in kinds)]
    return ReportTable("Pseudo-masks: pooled IoU", head, rows, foot)


def rho_table(report: Mapping[str, Any]) -> ReportTable | None:
    """Return the runs that differ from this one in rho alone, if there are others."""
    runs = report.get("rhos") or []
    if len(runs) < 2:
        return None
    rows = []
    for run, best in zip(runs, mark_best([run.get("iou") for run in runs]), strict=True):
        own = " (this run)" if run.get("rho") == report.get("rho") else ""
        folder = Cell(str(run.get("folder")), code=True)
        rows.append(
            [Cell(f"ρ = {run.get('rho')}{own}"), bar_cell(run.get("iou"), run, best=best), folder]
        )
    return ReportTable(
        "Other shares of expert masks",
        ["Run", "Mean pooled IoU", "Folder"],
        rows,
        note="Finished runs in the same folder that differ from this one in ρ alone: 0 is pseudo-masks "
        "alone, 1 is expert masks alone. Intervals are over images by patient, not over seeds.",
    )


def experts_table(report: Mapping[str, Any]) -> ReportTable | None:
    """Return the curve over numbers of expert masks, if the work folder has one."""
    points = report.get("experts") or []
    if not points:
        return None
    rows = []
    for point in points:
        count, mean = point.get("experts"), point.get("mean") or {}
        less = point.get("difference") or {}  # the reference less this
        sides = {"mean": "mean", "lower": "upper", "upper": "lower"}
        gain = {side: -less[name] for side, name in sides.items() if is_number(less.get(name))}
        rows.append(
            [
                Cell(DASH if count is None else str(count)),
                Cell(str(point.get("method"))),
                bar_cell(mean.get("mean"), mean),
                Cell(format_difference(gain) or DASH),
            ]
        )
    return ReportTable(
        "How many expert masks are worth what",
        ["Expert masks", "Method", "Mean pooled IoU", "More than full"],
        rows,
        note="Of `experiments.table --experts` in the same folder. full: expert masks alone; maps: with "
        "masks of class activation maps; teacher: with a teacher's, in as many steps after the "
        "teacher's own; all masks: with the hidden masks of all images, in twice the steps. The last "
        "column is over full, and of the last two methods over full in twice the steps. Intervals are "
        "over seeds and images.",
    )


def provenance_tables(report: Mapping[str, Any]) -> dict[str, ReportTable]:
    """Return the tables of what produced the numbers: stages, data, software and device."""
    stages = [
        [
            Cell(str(stage.get("name"))),
            Cell("reused" if stage.get("reused") else f"{stage.get('seconds') or 0:,.1f} s"),
            Cell(str(stage.get("folder")), code=True),
        ]
        for stage in report.get("stages") or []
    ]
    data = [
        [
            Cell(str(name)),
            count_cell(entry.get("images")),
            Cell(str(entry.get("fingerprint")), code=True),
        ]
        for name, entry in lookup(report, "data").items()
    ]
    versions = {**lookup(report, "versions"), "Device": report.get("device") or DASH}
    software = [[Cell(str(name)), Cell(str(value))] for name, value in versions.items()]
    return {
        "Stages": ReportTable("Stages in order", ["Stage", "Time", "Folder"], stages),
        "Data": ReportTable("What was read", ["Data", "Images", "Fingerprint"], data),
        "Versions": ReportTable("Software and device", ["Name", "Version"], software),
    }
