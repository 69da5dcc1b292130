"""How many expert masks are worth what: test IoU against their number, with every use of weak labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.stages.segmenter import training_steps
from experiments.comparison.compare import LONGER, Arm, Comparison, Row, twice_the_steps
from experiments.comparison.output import comparison_json, plot_title, signed, write_rows
from experiments.report.plots import (
    COLORS,
    CURVE_AXIS,
    QUIET,
    draw_curve,
    save_curves,
    style_axes,
)
from experiments.report.tables import format_interval, format_score, interval_name
from experiments.run.config import Config
from experiments.run.data import Data

BOUND = "all masks"
COLOURS = {
    "full": COLORS["run"],
    LONGER: COLORS["human"],
    "maps": COLORS["cam"],
    "teacher": COLORS["teacher"],
}


@dataclass(frozen=True)
class Point:
    """A use of weak labels at a number of expert masks; no number for the bound."""

    method: str
    experts: int | None


def arms_of(config: Config, teacher_rho: float | None, data: Data) -> dict[Point, Arm]:
    """Return the runs of the curve, each compared with expert masks alone at the same number.

    A teacher and its student take twice the steps together, and are compared with expert masks alone
    in twice the steps. The bound trains on all hidden masks too, for twice the steps of the largest
    number of expert masks.
    """
    full = replace(config, rho=1.0)
    methods = {
        "full": full,
        LONGER: twice_the_steps(full),
        "maps": replace(config, pseudo="cam"),
        "teacher": replace(config, pseudo="teacher", rho=teacher_rho),
    }
    references = {"teacher": LONGER}
    arms = {
        Point(method, count): Arm(
            f"{method}, {count}",
            replace(run, experts=(count,)),
            f"{references.get(method, 'full')}, {count}",
        )
        for count in config.experts
        for method, run in methods.items()
    }
    if data.hidden is not None:
        largest = max(config.experts)
        few, every = (
            training_steps(config.segmenter, experts, len(data.mapped), rho=1.0)
            for experts in (largest, len(data.expert_train) + len(data.hidden))
        )
        segmenter = replace(config.segmenter, epochs=config.segmenter.epochs * few / every)
        bound = twice_the_steps(replace(full, experts=(), segmenter=segmenter))
        arms[Point(BOUND, None)] = Arm(BOUND, bound, f"{LONGER}, {largest}", hidden=True)
    return arms


def text(rows: Mapping[Point, Row], sampled: Mapping[str, int], seeds: int) -> str:
    """Format the curve for the terminal."""
    wide = max(len(row.name) for row in rows.values())
    lines = [f" {'Mean pooled IoU':<{wide}}  {'[95 %]':<20}  reference − this [paired, 95 %]"]
    for row in rows.values():
        mean = f"{format_score(row.mean.mean)} {format_interval(asdict(row.mean))}"
        less = f"{row.reference}: {signed(row.difference)}" if row.reference else ""
        lines.append(f" {row.name:<{wide}}  {mean:<20}  {less}".rstrip())
    return "\n".join([*lines, f" [ ]: {interval_name(sampled, seeds)}"])


def plot(path: Path, rows: Mapping[Point, Row], title: str) -> None:
    """Plot IoU against the number of expert masks, on a logarithmic axis."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    for method, colour in COLOURS.items():
        mine = {point.experts: row for point, row in rows.items() if point.method == method}
        counts = [count for count in mine if count is not None]
        if not counts:
            continue
        draw_curve(axes, counts, [mine[n].mean for n in counts], color=colour, label=method)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
    bound = rows.get(Point(BOUND, None))
    if bound:
        axes.axhline(bound.mean.mean, color=QUIET, linestyle="--", linewidth=1, label=BOUND)
    axes.minorticks_off()
    save_curves(path, figure, axes, title, "images with expert masks", CURVE_AXIS)


def write(
    folder: Path,
    config: Config,
    rows: Mapping[Point, Row],
    result: Comparison,
    seeds: Sequence[int],
) -> None:
    """Write `experts.csv`, `experts.json` and `experts.png`."""
    points = [*rows]
    keys: dict[str, list[Any]] = {
        "method": [point.method for point in points],
        "experts": [point.experts for point in points],
    }
    write_rows(folder / "experts.csv", [*rows.values()], seeds, keys, {})
    content = comparison_json(config, result, seeds)
    content["points"] = [{**asdict(point), **asdict(row)} for point, row in rows.items()]
    write_json(folder / "experts.json", content)
    plot(folder / "experts.png", rows, plot_title(config, result.sampled, seeds))
