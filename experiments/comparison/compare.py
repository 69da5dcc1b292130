"""Several runs that share what they can: by settings and seeds, with what their numbers differ by.

The seeds of a comparison are those of the last training alone: the segmenter's weights, order and mix,
and which maps it draws. Everything before it, the classifier and IRNet included, is one for all, made
once with `--seed`; so an interval over seeds says nothing of how another classifier would have done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from chexseg_jax.evaluation.metrics import Counts, Interval, averaged_intervals, mean_of
from chexseg_jax.evaluation.scoring import read_counts
from chexseg_jax.pathologies import PATHOLOGIES
from experiments.run.config import Config
from experiments.run.data import Data
from experiments.run.pipeline import Run

Counted = tuple[np.ndarray, list[Counts]]
"""Which images of the test set, and their counts in every run."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the segmenter's seed alone."""

    name: str
    config: Config
    reference: str
    """The arm it is compared with."""


@dataclass(frozen=True)
class Row:
    """What came of an arm, or of a method that nothing is trained for."""

    name: str
    runs: dict[int, float]
    """Mean pooled IoU by seed; empty where there is no seed."""
    seeds: tuple[float, float]
    """95 % interval over seeds."""
    mean: Interval
    """Mean pooled IoU, averaged over seeds, with its interval over images."""
    pathologies: dict[str, Interval]
    reference: str | None
    difference: Interval | None
    """The reference less this, with its interval over the same images."""
    folders: list[str]


@dataclass(frozen=True)
class Comparison:
    """The rows, and what every stage cost."""

    rows: list[Row]
    stages: list[dict[str, Any]]


def check_seeds(seeds: Sequence[int]) -> None:
    """Checks that there is a seed, and none twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be one or more, all different, got {seeds}")


def heading(config: Config, images: int, seeds: Sequence[int]) -> str:
    """Returns what a plot is of, in a line."""
    shown = "synthetic chests" if config.data_dir is None else "CheXpert and CheXlocalize"
    return f"{shown}: {images} test images, {len(seeds)} seeds"


def weak_maps(config: Config, maps: int | None) -> Config:
    """Returns the settings of a run without expert masks, which may draw from more maps."""
    return replace(config, segment=replace(config.segment, maps=maps)) if maps else config


def seeds_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over seeds, by Student's t; NaN with fewer than two.

    The paper's is of three trials, too, and does not say by which quantile. With three, Student's is
    4.30 standard errors, where the normal's would be 1.96.
    """
    known = np.array([value for value in values if value == value])
    if len(known) < 2:
        return float("nan"), float("nan")
    reach = stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / np.sqrt(len(known))
    return float(known.mean() - reach), float(known.mean() + reach)


def compare(arms: Sequence[Arm], data: Data, seeds: Sequence[int]) -> Comparison:
    """Runs every arm with every seed, or finds that it has run, and compares them.

    The classifier's maps, the location prior and the second reader, which are the same in every run,
    come last, compared with the last arm's reference.
    """
    counted: dict[str, Counted] = {}
    folders: dict[str, list[str]] = {}
    others: dict[str, Any] = {}
    stages: list[dict[str, Any]] = []
    for place, arm in enumerate(arms):
        for turn, seed in enumerate(seeds):
            run = Run(replace(arm.config, segment_seed=seed), data)
            others = read_counts(run.evaluate.path / "counts.npz")
            images, counts = others.pop("run")
            counted.setdefault(arm.name, (images, []))[1].append(counts)
            folders.setdefault(arm.name, []).append(run.evaluate.path.name)
            stages += run.rows
            done = place * len(seeds) + turn + 1
            print(f"[{done}/{len(arms) * len(seeds)}] {arm.name}, seed {seed}: {_mean(counts):.3f}")
    rows = [
        _row(arm.name, counted[arm.name], arm.reference, counted, seeds, folders[arm.name])
        for arm in arms
    ]
    reference = arms[-1].reference
    for name in ("cam", "prior", "human"):
        if name in others:
            images, counts = others[name]
            rows.append(_row(METHODS[name], (images, [counts]), reference, counted, (), []))
    return Comparison(rows, stages)


METHODS = {"cam": "classifier's maps", "prior": "location prior", "human": "second reader"}


def _mean(counts: Counts) -> float:
    values = counts.pooled().iou()[0]
    return mean_of(values[counts.truths.any(0)])


def _row(
    name: str,
    counted: Counted,
    reference: str,
    every: dict[str, Counted],
    seeds: Sequence[int],
    folders: list[str],
) -> Row:
    """Returns one row; where a method has no value for every image, both sides leave those out."""
    images, runs = counted
    rows, mean = averaged_intervals(runs)
    means = dict(zip(seeds, map(_mean, runs), strict=False))
    difference = None
    if name != reference:
        theirs, others = every[reference]
        _shared, mine, their = np.intersect1d(images, theirs, return_indices=True)
        difference = averaged_intervals(
            [counts[their] for counts in others], [counts[mine] for counts in runs]
        )[1]
    return Row(
        name=name,
        runs=means,
        seeds=seeds_interval(list(means.values())),
        mean=mean,
        pathologies=dict(zip(PATHOLOGIES, rows, strict=True)),
        reference=None if difference is None else reference,
        difference=difference,
        folders=folders,
    )


def cost(stages: Sequence[dict[str, Any]]) -> str:
    """Returns what the stages cost, in a line: seconds by stage, and how many were reused."""
    folders: dict[str, dict[str, Any]] = {}
    for stage in stages:
        folders.setdefault(stage["folder"], stage)
    names = dict.fromkeys(stage["name"] for stage in folders.values())
    parts = []
    for name in names:
        mine = [stage for stage in folders.values() if stage["name"] == name]
        made = [stage["seconds"] for stage in mine if not stage["reused"]]
        said = [f"{sum(made):,.1f} s" + (f" for {len(made)}" if len(made) > 1 else "")] * bool(made)
        reused = len(mine) - len(made)
        said += ["reused" if len(mine) == 1 else f"{reused} reused"] * bool(reused)
        parts.append(f"{name} {', '.join(said)}")
    total = sum(stage["seconds"] for stage in folders.values() if not stage["reused"])
    return f"Cost: {'; '.join(parts)}. In all {total / 60:,.1f} min."


def output(path: Path | None, workdir: Path, name: str) -> Path:
    """Returns the folder that a comparison's files go to, made if need be."""
    folder = path or workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
