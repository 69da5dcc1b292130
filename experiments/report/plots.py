"""Plots: training curves, IoU by pathology, and IoU by rho, as PNG files.

They use Matplotlib's objects instead of pyplot: no global state, no display.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from chexseg_jax.evaluation.metrics import Interval
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.atomic_write import atomic_write
from experiments.report.tables import SOURCES, is_number, lookup, sources_of

COLORS: Final = {
    "run": "#0072B2",
    "teacher": "#E69F00",
    "cam": "#CC79A7",
    "prior": "#B5B9BE",
    "human": "#009E73",
}
"""By source, from the palette of Okabe and Ito, and a gray."""
SCORE: Final = "#D55E00"
QUIET: Final = "#6B7178"
DPI: Final = 150
CURVE_AXIS: Final = "mean pooled IoU (band: 95 %, seeds and images)"


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def style_axes(axes: Axes) -> None:
    """Remove the upper and right spines and gray out the others."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.set_axisbelow(True)


def draw_curve(
    axes: Axes,
    places: Sequence[float],
    intervals: Sequence[Interval],
    *,
    color: str,
    label: str,
) -> None:
    """Draw means as a line with the band of their intervals."""
    lower, upper = [i.lower for i in intervals], [i.upper for i in intervals]
    axes.fill_between(places, lower, upper, color=color, alpha=0.15, linewidth=0)
    means = [i.mean for i in intervals]
    axes.plot(places, means, "o-", color=color, linewidth=1.8, label=label)


def save_curves(
    path: Path, figure: Figure, axes: Axes, title: str, horizontal: str, vertical: str
) -> None:
    """Label the axes of curves that start at 0, and write their figure."""
    axes.set_xlabel(horizontal, fontsize=9, color=QUIET)
    axes.set_ylabel(vertical, fontsize=9, color=QUIET)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(title, fontsize=11, loc="left")
    save_figure(path, figure)


def metric_curve(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Return the steps and values of a metric, without rows that lack it."""
    pairs = [(row["step"], row[name]) for row in rows if is_number(row.get(name))]
    return np.array([x for x, _ in pairs], float), np.array([y for _, y in pairs], float)


def moving_average(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Average over a centered window of a twentieth of the values, cut off at the ends."""
    radius = len(values) // 40
    sums = np.concatenate([[0.0], values.cumsum()])
    centers = np.arange(len(values))
    low, high = np.maximum(centers - radius, 0), np.minimum(centers + radius + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_training(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot the loss and the validation score of every training stage, a panel each.

    Args:
        path: the PNG.
        curves: rows of `metrics.jsonl` by stage: a step with a loss, a score or both.
    """
    columns = min(len(curves), 3) or 1
    lines = math.ceil(len(curves) / columns) or 1
    # The padding keeps a panel's score axis apart from the next panel's loss axis.
    layout = ConstrainedLayoutEngine(w_pad=0.12)
    figure = Figure(figsize=(3.8 * columns, 2.9 * lines), layout=layout)
    for place, (name, rows) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        style_axes(axes)
        axes.set_title(name, fontsize=11, loc="left")
        axes.set_xlabel("step", fontsize=9, color=QUIET)
        axes.set_ylabel("loss", fontsize=9, color=COLORS["run"])
        axes.grid(axis="y", color="#E4E6E9", linewidth=0.7)
        steps, losses = metric_curve(rows, "loss")
        axes.plot(steps, losses, color=COLORS["run"], linewidth=0.8, alpha=0.3)
        axes.plot(steps, moving_average(losses), color=COLORS["run"], linewidth=1.6)
        steps, scores = metric_curve(rows, "score")
        # A stage without validation logs the step as its score.
        if (scores != steps).any():
            right = axes.twinx()
            style_axes(right)
            right.spines["right"].set(visible=True, color=QUIET)
            right.plot(steps, scores, "o-", color=SCORE, markersize=4, linewidth=0.8)
            right.set_ylabel("score", fontsize=9, color=SCORE)
    save_figure(path, figure)


def plot_iou(path: Path, report: Mapping[str, Any]) -> None:
    """Plot pooled IoU by pathology and its mean: this run with its interval, and the other sources.

    Args:
        path: the PNG.
        report: the content of `report.json`.
    """
    sources = sources_of(report, "pooled")
    names = [*PATHOLOGIES, "Mean"]
    height = 0.8 / max(len(sources), 1)
    figure = Figure(
        figsize=(8.6, 0.9 + 0.13 * len(names) * (len(sources) + 1)), layout="constrained"
    )
    axes = figure.add_subplot()
    style_axes(axes)
    axes.grid(axis="x", color="#E4E6E9", linewidth=0.7)
    for rank, source in enumerate(sources):
        entries = [lookup(report, "pooled", source, name) for name in PATHOLOGIES]
        entries.append(lookup(report, "mean", source))
        places = np.arange(len(names)) + (rank - (len(sources) - 1) / 2) * height
        values = [entry["iou"] if is_number(entry.get("iou")) else 0.0 for entry in entries]
        axes.barh(places, values, height, color=COLORS[source], label=SOURCES[source])
        for place, entry in zip(places, entries, strict=True):
            low, high = entry.get("lower"), entry.get("upper")
            if source == "run" and is_number(low) and is_number(high):
                axes.plot([low, high], [place] * 2, "|-", color="black", linewidth=1, markersize=4)
    axes.axhline(len(PATHOLOGIES) - 0.5, color=QUIET, linewidth=0.7)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor="black")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("pooled IoU", fontsize=9, color=QUIET)
    if sources:
        figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=len(sources))
    save_figure(path, figure)


def plot_rhos(path: Path, rhos: Sequence[Mapping[str, Any]], rho: float) -> None:
    """Plot the mean pooled IoU of runs that differ in rho alone, each with its interval.

    Args:
        path: the PNG.
        rhos: `rho`, `iou`, `lower` and `upper` of each run, in the order of rho.
        rho: of this run, whose marker is filled.
    """
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    axes.grid(axis="y", color="#E4E6E9", linewidth=0.7)
    rows = [row for row in rhos if is_number(row.get("iou"))]
    axes.plot(
        [r["rho"] for r in rows], [r["iou"] for r in rows], color=COLORS["run"], linewidth=0.8
    )
    for row in rows:
        low, high = row.get("lower"), row.get("upper")
        if is_number(low) and is_number(high):
            axes.plot([row["rho"]] * 2, [low, high], "_-", color=COLORS["run"], linewidth=1.2)
        fill = COLORS["run"] if row["rho"] == rho else "white"
        axes.plot(row["rho"], row["iou"], "o", color=COLORS["run"], markerfacecolor=fill)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ρ, the share of expert masks", fontsize=9, color=QUIET)
    axes.set_ylabel("mean pooled IoU", fontsize=9, color=QUIET)
    save_figure(path, figure)
