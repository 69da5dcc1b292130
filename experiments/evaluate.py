"""CheXlocalize evaluation of masks or points: `python -m experiments.evaluate`.

Reads CheXlocalize's JSON files and writes the tables of its `eval.py`, to the last digit:

    python -m experiments.evaluate --gt gt_segmentations.json --pred pred_segmentations.json --out DIR

`iou_results_per_cxr.csv`, `iou_bootstrap_results_per_cxr.csv`, `iou_summary_results.csv` and
`precision_recall_specificity.csv`. With `--metric hitmiss` files hold points, {image id: {pathology:
[[x, y], ...]}}, as the human benchmark's do; pickled heat maps are not read, since unpickling executes
code. `--human`, a reader's file, adds the reader's tables, `human_*`, and `percentage_decrease.csv`;
`--letterbox 320` adds the paper's IoU, `pooled_iou.csv`; `--baseline` adds the share of the gap to the
reader that is closed, `gap.csv`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from jaxtyping import Float

from chexseg_jax.evaluation.chexlocalize import (
    ORDER,
    ChexlocalizeError,
    Segmentations,
    letterbox_counts,
    measure_areas,
    require_images,
    score_points,
    scored_images,
    write_bootstrap,
    write_per_image,
    write_summary,
)
from chexseg_jax.evaluation.human_benchmark import (
    gap,
    write_decrease,
    write_gap,
    write_pooled,
    write_rates,
)
from chexseg_jax.evaluation.metrics import Interval, bootstrap_means, intervals_of, patients_of
from chexseg_jax.pathologies import PATHOLOGIES
from experiments.run.cli import exit_on_errors

LETTERBOX = 320
"""The paper's letterbox, pixels."""

Files = dict[str, Callable[[Path], None]]


@dataclass(frozen=True)
class Config:
    """Score masks or points as CheXlocalize's eval.py does."""

    gt: Path
    """The experts' masks."""
    pred: Path
    """The model's masks; with `--metric hitmiss`, points."""
    out: Path
    """The folder for the tables."""
    metric: Literal["iou", "hitmiss"] = "iou"
    """IoU of masks, or hit rate of points."""
    true_pos_only: bool = True
    """Score only where target and prediction are both present; otherwise, where either is."""
    seed: int = 0
    """Of the 1,000 bootstrap replicates."""
    human: Path | None = None
    """A second reader's masks, or points."""
    letterbox: int | None = None
    """Side of the letterbox in which to pool IoU over all images, pixels; the paper's is 320."""
    baseline: Path | None = None
    """Masks of a baseline, such as the model of rho = 0, for the gap; needs `--human`."""
    allow_missing: bool = False
    """Count images missing from a model's file as empty, as CheXlocalize does."""

    def check(self) -> None:
        """Validate the flags before any file is read."""
        if self.metric == "hitmiss" and (self.letterbox or self.baseline):
            raise ChexlocalizeError(
                "--letterbox and --baseline need masks: leave out --metric hitmiss"
            )
        if self.baseline and not self.human:
            raise ChexlocalizeError("--baseline compares with a reader: add --human")
        if self.letterbox is not None and self.letterbox < 1:
            raise ChexlocalizeError(f"--letterbox must be a number of pixels, got {self.letterbox}")
        if not 0 <= self.seed < 2**32:
            raise ChexlocalizeError(f"--seed must lie in [0, 2^32), got {self.seed}")
        if self.out.exists() and not self.out.is_dir():
            raise ChexlocalizeError(f"{self.out}: --out is a file; give a folder")


@dataclass(frozen=True)
class Scores:
    """One source's values by image and pathology, and their bootstrap."""

    image_ids: list[str]
    values: Float[np.ndarray, "n k"]
    replicates: Float[np.ndarray, "r k"]

    def intervals(self) -> list[Interval]:
        """Compute the interval of each pathology."""
        return intervals_of(self.values, self.replicates)

    def files(self, prefix: str, metric: str) -> Files:
        """Return CheXlocalize's three tables by file name."""
        rows = partial(write_per_image, integers=metric == "hitmiss")
        return {
            f"{prefix}{metric}_results_per_cxr.csv": lambda p: rows(p, self.image_ids, self.values),
            f"{prefix}{metric}_bootstrap_results_per_cxr.csv": lambda p: write_bootstrap(
                p, self.replicates
            ),
            f"{prefix}{metric}_summary_results.csv": lambda p: write_summary(p, self.intervals()),
        }


def evaluate(config: Config) -> tuple[dict[str, Scores], Files]:
    """Compute scores by source, and the tables by file name; write nothing yet."""
    config.check()
    targets = Segmentations.read(config.gt)
    paths = {"pred": config.pred} | ({"human": config.human} if config.human else {})
    scores: dict[str, Scores] = {}
    files: Files = {}
    if config.metric == "iou":
        sources = {name: Segmentations.read(path) for name, path in paths.items()}
        scores, files = _score_masks(config, targets, sources)
    else:
        for name, path in paths.items():
            hits = score_points(path, targets)
            scores[name] = _bootstrap(config, sorted(targets.images), hits)
    for name, source_scores in scores.items():
        files |= source_scores.files(_prefix(name), config.metric)
    if "human" in scores:
        pair = scores["human"].replicates, scores["pred"].replicates
        files["percentage_decrease.csv"] = lambda path: write_decrease(path, *pair)
    return scores, files


def _prefix(source: str) -> str:
    return "" if source == "pred" else f"{source}_"


def _bootstrap(config: Config, image_ids: list[str], values: Float[np.ndarray, "n k"]) -> Scores:
    return Scores(image_ids, values, bootstrap_means(values, seed=config.seed))


def _score_masks(
    config: Config, targets: Segmentations, sources: dict[str, Segmentations]
) -> tuple[dict[str, Scores], Files]:
    """Compute per-image IoUs, pixel rates and, if asked for, pooled IoUs and the gap."""
    methods = dict(sources)
    if config.baseline:
        methods["baseline"] = Segmentations.read(config.baseline)
    for name, source in methods.items():
        if name != "human" and not config.allow_missing:
            require_images(targets, source)
    scores: dict[str, Scores] = {}
    files: Files = {}
    for name, source in sources.items():
        image_ids = scored_images(targets, source, true_pos_only=config.true_pos_only)
        areas = measure_areas(targets, source, image_ids, name)
        scores[name] = _bootstrap(config, image_ids, areas.ious(true_pos_only=config.true_pos_only))
        rates = areas[np.array([image_id in targets.images for image_id in image_ids])].rates()
        file = f"{_prefix(name)}precision_recall_specificity.csv"
        files[file] = partial(write_rates, rates=rates)
    if config.letterbox or config.baseline:
        image_ids = sorted({*targets.images}.union(*(source.images for source in methods.values())))
        counts = letterbox_counts(targets, methods, image_ids, config.letterbox or LETTERBOX)
        patients, seed = patients_of(image_ids), config.seed
        files["pooled_iou.csv"] = partial(write_pooled, counts=counts, patients=patients, seed=seed)
        if config.baseline:
            found = gap(**counts, patients=patients, seed=seed)
            files["gap.csv"] = partial(write_gap, gap=found)
    return scores, files


def table(scores: dict[str, Scores]) -> str:
    """Format the summary: mean, interval, and the number of images with a value."""
    width = max(map(len, PATHOLOGIES))
    lines = [" " * width + "".join(f"  {name:<26}" for name in scores)]
    rows = {name: source.intervals() for name, source in scores.items()}
    for k in ORDER:
        cells = []
        for intervals in rows.values():
            row = intervals[k]
            values = ["–" if v != v else f"{v:.3f}" for v in (row.mean, row.lower, row.upper)]
            cells.append(f"{values[0]} [{values[1]}, {values[2]}] n={row.n}")
        lines.append(f"{PATHOLOGIES[k]:<{width}}" + "".join(f"  {cell:<26}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Score the files of the command line; write tables only once all scores are computed."""
    config = tyro.cli(
        Config, prog="python -m experiments.evaluate", args=arguments, description=__doc__
    )
    with exit_on_errors(ChexlocalizeError, OSError):
        scores, files = evaluate(config)
        config.out.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            write(config.out / name)
    print(table(scores))
    if "gap.csv" in files:
        print((config.out / "gap.csv").read_text().strip())
    print(f"Tables: {config.out}")


if __name__ == "__main__":
    main()
