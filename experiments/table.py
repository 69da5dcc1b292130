"""The paper's tables in one command: weak, full and CheXseg, over seeds, with paired differences.

    python -m experiments.table --data-dir data --workdir runs/chexpert --seeds 17 18 19
    python -m experiments.table --preset paper --dry-run
    python -m experiments.table --inits random imagenet=resnet18.pth chexpert --encoder resnet18
    python -m experiments.table --experts 10 20 40 80 140

Takes every flag of `experiments.chexseg`; `--rho` is CheXseg's. `--seeds` are the segmenter's: the
stages before it are made once, with `--seed`. Intervals are over seeds and images together: of 1,000
resamples of the seeds, and in each of the test set's patients, the same ones on both sides of a
difference. Several numbers of `--experts` make the curve of test IoU against them. Writes `table.csv`,
`table.json` and `table.png` (`inits.*` with `--inits`, `experts.*` with `--experts`) to
`<workdir>/table`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.stage_folder import write_json
from experiments.comparison import experts
from experiments.comparison.compare import (
    LONGER,
    Arm,
    Comparison,
    Row,
    check_seeds,
    run_comparison,
    twice_the_steps,
    without_experts,
)
from experiments.comparison.output import (
    comparison_json,
    cost,
    output_folder,
    plot_title,
    signed,
    write_rows,
)
from experiments.comparison.plan import plan, sizes_of
from experiments.report.plots import COLORS, QUIET, save_figure, style_axes
from experiments.report.tables import format_interval, format_score, interval_name
from experiments.run.config import CHEXSEG_RHO, WEAK_ROWS, Config, read_flags
from experiments.run.data import Data

AVERAGE = 0.99
"""Decay of the moving average of weights in the row that has one."""


@dataclass(frozen=True)
class TableConfig:
    """The rows of the table."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Config(rho=CHEXSEG_RHO)
    )
    seeds: tuple[int, ...] = (17, 18, 19)
    """Of the segmenter; the stages before it keep `--seed`, and are shared."""
    weak_maps: int | None = None
    """How many pseudo-masks the rows without expert masks draw from, if not as many as others."""
    weak_learning_rate: float | None = None
    """The learning rate of the rows without expert masks, if not that of the others."""
    dry_run: bool = False
    """Print what each row would train on and how long, and run nothing."""
    teacher_rho: float | None = None
    """Rho of the rows whose pseudo-masks are a teacher's; by the number of expert masks if not given."""
    inits: tuple[str, ...] = ()
    """Compare what the encoder starts from: any of `random`, `chexpert` and NAME=FILE."""
    out: Path | None = None
    """Where the files go; `<workdir>/table` if not given."""

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if self.run.rho is None or not 0 < self.run.rho < 1:
            raise ValueError(f"--rho is CheXseg's and must lie between 0 and 1, got {self.run.rho}")


def starts(inits: Sequence[str]) -> dict[str, Any]:
    """Parse the encoder's initial weights by name; `chexpert` is the classifier's own training."""
    named: dict[str, Any] = {}
    for init in (one for some in inits for one in some.split(",")):
        name, equals, file = init.partition("=")
        if equals:
            named[name] = Path(file)
        elif name in ("random", "chexpert", "classifier"):
            named[name] = "random" if name == "random" else "classifier"
        else:
            raise ValueError(f"--inits takes random, chexpert or NAME=FILE, got {init}")
    return named


def arms_of(config: TableConfig) -> list[Arm]:
    """Return the trained rows; each is compared with CheXseg (IRNet).

    With `--inits`, each is compared with the same supervision from the last of these weights.
    """
    base = config.run
    weak = without_experts(base, config.weak_maps, config.weak_learning_rate)
    full = replace(base, rho=1.0, pseudo="irnet")
    teacher = replace(base, pseudo="teacher", rho=config.teacher_rho)
    average = 0.0 if base.segmenter.average else AVERAGE
    averaged = "teacher, averaged" if average else "teacher, not averaged"
    supervisions = {
        "weak (CAM)": replace(weak, pseudo="cam"),
        "weak (IRNet)": replace(weak, pseudo="irnet"),
        "full": full,
        LONGER: twice_the_steps(full),
        "teacher": teacher,
        averaged: replace(teacher, segmenter=replace(base.segmenter, average=average)),
        "CheXseg (CAM)": replace(base, pseudo="cam"),
        "CheXseg (IRNet)": replace(base, pseudo="irnet"),
    }
    if not config.inits:
        return [Arm(name, run, "CheXseg (IRNet)") for name, run in supervisions.items()]
    named = starts(config.inits)
    last = list(named)[-1]
    return [
        Arm(f"{name}, {init}", replace(run, encoder_start=start), f"{name}, {last}")
        for name, run in supervisions.items()
        if "CAM" not in name and name not in (averaged, LONGER)
        for init, start in named.items()
    ]


def text(rows: Sequence[Row], sampled: Mapping[str, int], seeds: int) -> str:
    """Format the table for the terminal: the means, then IoU by pathology."""
    wide = max(len(row.name) for row in rows)
    lines = [f" {'Mean pooled IoU':<{wide}}  {'[95 %]':<20}  {'reference − this [paired, 95 %]'}"]
    for row in rows:
        mean = f"{format_score(row.mean.mean)} {format_interval(asdict(row.mean))}"
        lines.append(f" {row.name:<{wide}}  {mean:<20}  {signed(row.difference)}")
    lines.append(f" [ ]: {interval_name(sampled, seeds)}; without training, over images alone")
    rule = "─" * max(map(len, lines))
    lines = [rule, lines[0], rule, *lines[1:], rule]
    lines.append(f" {'IoU':<{wide}}" + "".join(f"{name[:6]:>8}" for name in PATHOLOGIES))
    for row in rows:
        values = [format_score(row.pathologies[name].mean) for name in PATHOLOGIES]
        lines.append(f" {row.name:<{wide}}" + "".join(f"{value:>8}" for value in values))
    return "\n".join([*lines, rule])


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Plot the means with intervals and seeds, and beside them the paired differences."""
    figure = Figure(figsize=(9.6, 1.5 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    colours = [COLORS["run"] if row.runs else COLORS["prior"] for row in rows]
    left.barh(places, [row.mean.mean for row in rows], 0.62, color=colours)
    left.axvline(0, color=QUIET, linewidth=0.8)
    right.axvline(0, color=QUIET, linewidth=0.8)
    for place, row in zip(places, rows, strict=True):
        left.plot([row.mean.lower, row.mean.upper], [place] * 2, "|-", color="black", linewidth=1.2)
        left.plot(
            list(row.runs.values()), [place] * len(row.runs), "o", color="white",
            markeredgecolor="black", markersize=4,
        )  # fmt: skip
        less = row.difference
        if less is not None:
            right.plot([less.lower, less.upper], [place] * 2, "|-", color="black", linewidth=1.2)
            right.plot([less.mean], [place], "o", color=COLORS["run"], markersize=6)
    for axes, label in (
        (
            left,
            "mean pooled IoU\nbar: all seeds · circles: each seed · line: 95 %, seeds and images",
        ),
        (right, "reference less this, same seeds and images\nline: 95 %, paired"),
    ):
        style_axes(axes)
        axes.grid(axis="x", color="#E4E6E9", linewidth=0.7)
        axes.set_xlabel(label, fontsize=9, color=QUIET)
    left.set_yticks(places, [row.name for row in rows])
    left.tick_params(axis="y", length=0, labelsize=10, labelcolor="black")
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(left=0)
    right.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)


def write(folder: Path, name: str, result: Comparison, config: TableConfig) -> None:
    """Write the CSV, the JSON and the plot."""
    run, rows = config.run, result.rows
    pathologies = {name: [row.pathologies[name].mean for row in rows] for name in PATHOLOGIES}
    names = {"name": [row.name for row in rows]}
    write_rows(folder / f"{name}.csv", rows, config.seeds, names, pathologies)
    content = comparison_json(run, result, config.seeds)
    content |= {"weak_maps": config.weak_maps, "rows": [asdict(row) for row in rows]}
    write_json(folder / f"{name}.json", content)
    plot(folder / f"{name}.png", rows, plot_title(run, result.sampled, config.seeds))


def _curve(config: TableConfig) -> None:
    """Run what is missing of the curve over numbers of expert masks, and write it."""
    arms: dict[experts.Point, Arm] = {}

    def arms_of_data(data: Data) -> list[Arm]:
        arms.update(experts.arms_of(config.run, config.teacher_rho, data))
        return [*arms.values()]

    result = run_comparison(config.run, arms_of_data, config.seeds)
    if jax.process_index() > 0:
        return
    folder = output_folder(config.out, config.run.workdir, "table")
    by_name = {row.name: row for row in result.rows}
    rows = {point: by_name[arm.name] for point, arm in arms.items()}
    experts.write(folder, config.run, rows, result, config.seeds)
    print(experts.text(rows, result.sampled, len(config.seeds)))
    print(f"Curve: {folder / 'experts'}.csv, .json, .png")
    print(cost(result.stages))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, and write the table."""
    config = read_flags(
        TableConfig,
        "table",
        lambda preset: TableConfig(
            replace(preset, rho=CHEXSEG_RHO),
            teacher_rho=preset.rho,
            **WEAK_ROWS.get(preset.preset, {}),
        ),
        __doc__ or "",
        arguments,
    )
    if config.dry_run:
        print(plan(arms_of(config), sizes_of(config.run)))
        return
    if len(config.run.experts) > 1:
        _curve(config)
        return
    result = run_comparison(config.run, lambda _: arms_of(config), config.seeds)
    if jax.process_index() > 0:
        return
    folder = output_folder(config.out, config.run.workdir, "table")
    name = "inits" if config.inits else "table"
    write(folder, name, result, config)
    print(text(result.rows, result.sampled, len(config.seeds)))
    print(f"Table: {folder / name}.csv, .json, .png")
    print(cost(result.stages))


if __name__ == "__main__":
    main()
