"""Mean IoU against rho: `python -m experiments.sweep --rhos 0 .2 .4 .6 .8 .9 1 --seeds 17 18 19`.

Takes every flag of `experiments.chexseg`, but goes through the rhos given. `--seeds` are the
segmenter's: the stages before it are made once, with `--seed`. The band is the 95 % interval over seeds
and images, as in `experiments.table`. Beside it is the paper's own curve, on CheXlocalize. Writes
`sweep.csv`, `sweep.json` and `sweep.png` to `<workdir>/sweep`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import jax
import tyro
from matplotlib.figure import Figure

from chexseg_jax.runtime.stage_folder import write_json
from experiments.comparison.compare import Arm, Row, check_seeds, run_comparison, without_experts
from experiments.comparison.output import (
    comparison_json,
    cost,
    output_folder,
    plot_title,
    signed,
    write_rows,
)
from experiments.report.plots import CURVE_AXIS, draw_curve, save_curves, style_axes
from experiments.report.tables import format_interval, format_score, interval_name
from experiments.run.config import WEAK_ROWS, Config, read_flags

Kind = Literal["irnet", "cam"]

RHOS: Final = (0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 1)
PAPER: Final[Mapping[Kind, Mapping[float, float]]] = {
    "cam": dict(zip(RHOS, (0.142, 0.238, 0.246, 0.248, 0.255, 0.261, 0.270, 0.246), strict=True)),
    "irnet": dict(zip(RHOS, (0.156, 0.216, 0.228, 0.236, 0.252, 0.254, 0.267, 0.246), strict=True)),
}
"""The paper's Table 1: mean IoU on CheXlocalize's test set, three trials, by pseudo-masks and rho."""

COLOURS: Final[Mapping[Kind, str]] = {"irnet": "#0072B2", "cam": "#D55E00"}
NAMES: Final[Mapping[Kind, str]] = {"irnet": "IRNet", "cam": "CAM"}


@dataclass(frozen=True)
class SweepConfig:
    """The runs of the sweep."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    rhos: tuple[float, ...] = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 1)
    """Probabilities that a training sample is an expert's."""
    seeds: tuple[int, ...] = (17, 18, 19)
    """Of the segmenter; the stages before it keep `--seed`, and are shared."""
    kinds: tuple[Kind, ...] = ("irnet",)
    """Which pseudo-masks, in place of `--pseudo`."""
    weak_maps: int | None = None
    """How many pseudo-masks rho = 0 draws from; as many as the others if not given."""
    weak_learning_rate: float | None = None
    """The learning rate of rho = 0, if not that of the others."""
    out: Path | None = None
    """Where the files go; `<workdir>/sweep` if not given."""

    def __post_init__(self) -> None:
        if not self.rhos or not all(0 <= rho <= 1 for rho in self.rhos):
            raise ValueError(f"--rhos must be one or more, all within [0, 1], got {self.rhos}")
        check_seeds(self.seeds)
        if not self.kinds:
            raise ValueError("--kinds must be irnet, cam or both")


def arms_of(config: SweepConfig) -> dict[tuple[Kind, float], Arm]:
    """Return an arm for each point, compared with expert masks alone, or else with the greatest rho.

    At rho = 1 no pseudo-mask is used, so that it is one arm for both kinds.
    """
    rhos = sorted(set(config.rhos))
    arms: dict[tuple[Kind, float], Arm] = {}
    for kind in dict.fromkeys(config.kinds):
        for rho in rhos:
            source: Kind = config.kinds[0] if rho == 1 else kind
            run = replace(config.run, rho=rho, pseudo=source)
            if rho == 0:
                run = without_experts(run, config.weak_maps, config.weak_learning_rate)
            arms[kind, rho] = Arm(_name(source, rho), run, _name(config.kinds[0], rhos[-1]))
    return arms


def _name(kind: Kind, rho: float) -> str:
    return "rho 1" if rho == 1 else f"rho {rho:g} ({NAMES[kind]})"


def plot(path: Path, points: Mapping[tuple[Kind, float], Row], title: str) -> None:
    """Plot the curves with each seed and the band over seeds, and the paper's, dashed."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    axes.grid(axis="y", color="#E4E6E9", linewidth=0.7)
    for kind in dict.fromkeys(kind for kind, _ in points):
        mine = {rho: row for (other, rho), row in points.items() if other == kind}
        colour, intervals = COLOURS[kind], [row.mean for row in mine.values()]
        draw_curve(axes, [*mine], intervals, color=colour, label=f"here, {NAMES[kind]}")
        for rho, row in mine.items():
            axes.plot([rho] * len(row.runs), list(row.runs.values()), "_", color=colour, alpha=0.7)
    for kind, curve in PAPER.items():
        axes.plot(
            list(curve), list(curve.values()), ".--", color=COLOURS[kind], linewidth=1, alpha=0.7,
            label=f"the paper's, {NAMES[kind]}, on CheXlocalize",
        )  # fmt: skip
    save_curves(
        path, figure, axes, title, "ρ: probability that a sample is an expert's", CURVE_AXIS
    )


def text(
    points: Mapping[tuple[Kind, float], Row], reference: str, sampled: Mapping[str, int], seeds: int
) -> str:
    """Format the curve for the terminal."""
    lines = [f" {'':<18}  mean   [95 %]            paper   {reference} − this [paired, 95 %]"]
    for (kind, rho), row in points.items():
        band = format_interval(asdict(row.mean))
        paper = format_score(PAPER[kind].get(rho))
        name = f"rho {rho:g} ({NAMES[kind]})"
        mean = format_score(row.mean.mean)
        lines.append(f" {name:<18}  {mean}  {band:<16}  {paper:<6}  {signed(row.difference)}")
    return "\n".join([*lines, f" [ ]: {interval_name(sampled, seeds)}"])


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, and write the curve."""
    config = read_flags(
        SweepConfig,
        "sweep",
        lambda preset: SweepConfig(preset, **WEAK_ROWS.get(preset.preset, {})),
        __doc__ or "",
        arguments,
    )
    arms = arms_of(config)
    distinct = list({arm.name: arm for arm in arms.values()}.values())
    result = run_comparison(config.run, lambda _: distinct, config.seeds)
    if jax.process_index() > 0:
        return
    by_name = {row.name: row for row in result.rows}
    points = {point: by_name[arm.name] for point, arm in arms.items()}
    folder = output_folder(config.out, config.run.workdir, "sweep")
    kinds, rhos = zip(*points, strict=True)
    paper = [PAPER[kind].get(rho) for kind, rho in points]
    write_rows(
        folder / "sweep.csv",
        list(points.values()),
        config.seeds,
        {"pseudo": kinds, "rho": rhos},
        {"paper": paper},
    )
    content = comparison_json(config.run, result, config.seeds)
    content["points"] = [
        {"pseudo": kind, "rho": rho, "paper": PAPER[kind].get(rho), **asdict(row)}
        for (kind, rho), row in points.items()
    ]
    write_json(folder / "sweep.json", content)
    plot(folder / "sweep.png", points, plot_title(config.run, result.sampled, config.seeds))
    reference = next(iter(arms.values())).reference
    print(text(points, reference, result.sampled, len(config.seeds)))
    print(f"Sweep: {folder / 'sweep'}.csv, .json, .png")
    print(cost(result.stages))


if __name__ == "__main__":
    main()
