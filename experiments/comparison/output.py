"""What `experiments.table` and `experiments.sweep` write of a comparison: CSV, JSON and text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chexseg_jax.evaluation.metrics import Interval
from chexseg_jax.runtime.stage_folder import write_csv
from experiments.comparison.compare import Comparison, Row
from experiments.report.tables import format_difference, interval_name
from experiments.run.config import Config


def output_folder(path: Path | None, workdir: Path, name: str) -> Path:
    """Return the folder that a comparison's files go to, made if need be."""
    folder = path or workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def plot_title(config: Config, sampled: Mapping[str, int], seeds: Sequence[int]) -> str:
    """Return the data of a plot, and what its intervals are over, in a line."""
    data = "synthetic chests" if config.data_dir is None else "CheXpert and CheXlocalize"
    return f"{data}: {interval_name(sampled, len(seeds))}"


def write_rows(
    path: Path,
    rows: Sequence[Row],
    seeds: Sequence[int],
    keys: Mapping[str, Sequence[Any]],
    values: Mapping[str, Sequence[Any]],
) -> None:
    """Write a CSV row for each arm; a value that is missing or NaN is left blank.

    Args:
        path: the file.
        rows: the arms' results: mean, its interval over seeds and images, Student's over seeds, each
            seed, reference and difference.
        seeds: of the comparison.
        keys: columns before these, a value for each row.
        values: columns after these.
    """
    head = ["mean", "lower", "upper", "seeds_lower", "seeds_upper"]
    head += [f"seed_{seed}" for seed in seeds]
    head += ["reference", "difference", "difference_lower", "difference_upper"]
    lines: list[list[Any]] = [[*keys, *head, *values]]
    for index, row in enumerate(rows):
        less = row.difference
        cells: list[Any] = [row.mean.mean, row.mean.lower, row.mean.upper, *row.seeds]
        cells += [row.runs.get(seed) for seed in seeds]
        cells += [row.reference]
        cells += [less.mean, less.lower, less.upper] if less else [None] * 3
        cells = [*(v[index] for v in keys.values()), *cells, *(v[index] for v in values.values())]
        lines.append(["" if v is None or v != v else v for v in cells])
    write_csv(path, lines)


def comparison_json(config: Config, result: Comparison, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what the JSON file of any comparison says beside its rows."""
    return {
        "phantom": config.data_dir is None,
        "preset": config.preset,
        "rho": config.rho,
        "seed": config.seed,
        "seeds": seeds,
        "sampled": result.sampled,
        "intervals": {
            "mean, pathologies, difference": f"{interval_name(result.sampled, len(seeds))}: 1,000 "
            "resamples of seeds, and in each of patients; a difference takes the same on both sides",
            "seeds": "95 % over seeds alone, Student's t",
        },
        "stages": result.stages,
        "settings": asdict(config),
    }


def signed(difference: Interval | None) -> str:
    """Format a difference with its interval; empty if there is none."""
    return "" if difference is None else format_difference(asdict(difference))


def cost(stages: Sequence[dict[str, Any]]) -> str:
    """Format the seconds of the stages, and how many were reused, in a line."""
    folders: dict[str, dict[str, Any]] = {}
    for stage in stages:
        folders.setdefault(stage["folder"], stage)
    parts = []
    for name in dict.fromkeys(stage["name"] for stage in folders.values()):
        group = [stage for stage in folders.values() if stage["name"] == name]
        seconds = [stage["seconds"] for stage in group if not stage["reused"]]
        words = []
        if seconds:
            runs = f" for {len(seconds)}" if len(seconds) > 1 else ""
            words.append(f"{sum(seconds):,.1f} s{runs}")
        if reused := len(group) - len(seconds):
            words.append("reused" if len(group) == 1 else f"{reused} reused")
        parts.append(f"{name} {', '.join(words)}")
    total = sum(stage["seconds"] for stage in folders.values() if not stage["reused"])
    return f"Cost: {'; '.join(parts)}. In all {total / 60:,.1f} min."
