"""Compare several runs: intervals over seeds and images together, and paired differences.

The seeds of a comparison are those of the last training alone: the segmenter's weights, order, mix and
choice of pseudo-masks. Every stage before it, the classifier and IRNet included, is made once with
`--seed` and shared; so an interval over seeds says nothing of how another classifier would have done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from chexseg_jax.evaluation.metrics import (
    Counts,
    Interval,
    hierarchical_intervals,
    mean_of,
    patients_of,
)
from chexseg_jax.evaluation.scoring import read_counts
from chexseg_jax.pathologies import PATHOLOGIES
from experiments.run.cli import managed_run
from experiments.run.cluster import join_cluster
from experiments.run.config import Config
from experiments.run.data import Data, open_data, with_experts, with_hidden
from experiments.run.pipeline import run_pipeline

ImageCounts = tuple[np.ndarray, list[Counts]]
"""Indices of test images, and the counts of these images in every run, in the order of seeds."""

LONGER = "full, twice the steps"
"""The arm of expert masks alone that takes the steps of a teacher and its student together."""

METHODS = {"cam": "classifier's maps", "prior": "location prior", "human": "second reader"}
"""What every run is compared with and nothing is trained for."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the segmenter's seed alone."""

    name: str
    config: Config
    reference: str
    """The arm it is compared with."""
    hidden: bool = False
    """Whether the hidden masks of phantoms are among its expert masks, for an upper bound."""

    def data_of(self, data: Data) -> Data:
        """Return this arm's share of the data."""
        return with_hidden(data) if self.hidden else with_experts(data, self.config)


@dataclass(frozen=True)
class Row:
    """The result of an arm, or of a method without training."""

    name: str
    runs: dict[int, float]
    """Mean pooled IoU by seed; empty without seeds."""
    seeds: tuple[float, float]
    """Student's 95 % interval over seeds alone."""
    mean: Interval
    """Mean pooled IoU, averaged over seeds, with its interval over seeds and images."""
    pathologies: dict[str, Interval]
    reference: str | None
    difference: Interval | None
    """The reference minus this, with its interval over the same seeds and images."""
    folders: list[str]


@dataclass(frozen=True)
class Comparison:
    """The rows of a comparison, the stages of all runs, and the numbers of test images and patients."""

    rows: list[Row]
    stages: list[dict[str, Any]]
    sampled: dict[str, int]


def check_seeds(seeds: Sequence[int]) -> None:
    """Check that there is at least one seed and that all differ.

    Raises:
        ValueError: there is none, or one is repeated.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be one or more, all different, got {seeds}")


def without_experts(config: Config, maps: int | None, learning_rate: float | None) -> Config:
    """Return the settings of a run without expert masks: with these, where they are given."""
    given = {"maps": maps, "learning_rate": learning_rate}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(config, rho=0.0, segmenter=replace(config.segmenter, **changes))


def twice_the_steps(config: Config) -> Config:
    """Return a run whose segmenter takes twice the steps: as many as a teacher and its student."""
    segmenter = replace(config.segmenter, epochs=2 * config.segmenter.epochs)
    return replace(config, segmenter=segmenter)


def seeds_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds alone, by Student's t; NaN with fewer than two.

    It is of other runs on the same images, where `hierarchical_intervals` are of other images too. The
    paper's is of three trials, too, and does not say by which quantile. With three, Student's is
    4.30 standard errors, where the normal's would be 1.96.
    """
    valid = np.array([value for value in values if value == value])
    if len(valid) < 2:
        return float("nan"), float("nan")
    margin = stdtrit(len(valid) - 1, 0.975) * valid.std(ddof=1) / np.sqrt(len(valid))
    return float(valid.mean() - margin), float(valid.mean() + margin)


def run_comparison(
    config: Config, arms_of: Callable[[Data], Sequence[Arm]], seeds: Sequence[int]
) -> Comparison:
    """Run a command's arms on the data of its settings, with the exit codes of a run."""
    if config.distributed:
        join_cluster(config.processes)
    with managed_run(config.workdir):
        data = open_data(config)
        return compare(arms_of(data), data, seeds)


def compare(arms: Sequence[Arm], data: Data, seeds: Sequence[int]) -> Comparison:
    """Run every arm with every seed, or reuse its finished runs, and compare them.

    The classifier's maps, the location prior and the second reader are the same in every run; they
    come last, compared with the last arm's reference.
    """
    counts_by_arm: dict[str, ImageCounts] = {}
    folders: dict[str, list[str]] = {}
    methods: dict[str, Any] = {}
    stages: list[dict[str, Any]] = []
    for arm_index, arm in enumerate(arms):
        for seed_index, seed in enumerate(seeds):
            run = run_pipeline(replace(arm.config, segmenter_seed=seed), arm.data_of(data))
            if run.evaluation is None:
                raise ValueError("a comparison needs evaluated runs: leave out --until")
            methods = read_counts(run.evaluation.path / "counts.npz")
            images, counts = methods.pop("run")
            counts_by_arm.setdefault(arm.name, (images, []))[1].append(counts)
            folders.setdefault(arm.name, []).append(run.evaluation.path.name)
            stages += run.stages
            done = arm_index * len(seeds) + seed_index + 1
            progress = f"[{done}/{len(arms) * len(seeds)}]"
            print(f"{progress} {arm.name}, seed {seed}: {_mean(counts):.3f}")
    patients = patients_of(data.test.image_ids)

    def row(name: str, counts: ImageCounts, reference: str, seeds: Sequence[int] = ()) -> Row:
        return _row(name, counts, reference, counts_by_arm, patients, seeds, folders.get(name, []))

    rows = [row(arm.name, counts_by_arm[arm.name], arm.reference, seeds) for arm in arms]
    reference = arms[-1].reference
    for method, name in METHODS.items():
        if method in methods:
            images, counts = methods[method]
            rows.append(row(name, (images, [counts]), reference))
    sampled = {"images": len(patients), "patients": len(set(patients))}
    return Comparison(rows, stages, sampled)


def _mean(counts: Counts) -> float:
    values = counts.pooled().iou()[0]
    return mean_of(values[counts.target_area.any(0)])


def _row(
    name: str,
    image_counts: ImageCounts,
    reference: str,
    counts_by_arm: Mapping[str, ImageCounts],
    patients: Sequence[str],
    seeds: Sequence[int],
    folders: list[str],
) -> Row:
    """Return one row; where a method lacks a value for some images, both sides leave those out."""
    images, runs = image_counts
    rows, mean = hierarchical_intervals(runs, patients=[patients[i] for i in images])
    means = dict(zip(seeds, map(_mean, runs), strict=False))
    difference = None
    if name != reference:
        reference_images, references = counts_by_arm[reference]
        common, mine, theirs = np.intersect1d(images, reference_images, return_indices=True)
        difference = hierarchical_intervals(
            [counts[theirs] for counts in references],
            [counts[mine] for counts in runs],
            patients=[patients[i] for i in common],
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
