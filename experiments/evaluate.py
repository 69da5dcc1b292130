"""CheXlocalize's evaluation of masks or points: `python -m experiments.evaluate`.

Takes CheXlocalize's JSON files and writes the tables of its `eval.py`, to the last digit:

    python -m experiments.evaluate --gt gt_segmentations.json --pred pred_segmentations.json --out DIR

`iou_results_per_cxr.csv`, `iou_bootstrap_results_per_cxr.csv`, `iou_summary_results.csv`, from run
lengths alone, and `precision_recall_specificity.csv`. With `--metric hitmiss` files hold points,
{image id: {pathology: [[x, y], ...]}}, as the human benchmark's do; folders of pickled heat maps are not
read, as reading a pickle runs it. A reader's file beside it (`--human`) adds its own tables, `human_*`,
and `percentage_decrease.csv`; `--letterbox 320` the paper's IoU, `pooled_iou.csv`; and a baseline's file
(`--baseline`) the share of the gap to the reader that is closed, `gap.csv`.
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
    Segmentations,
    hit_points,
    images_that_count,
    measure,
    pool,
    require_images,
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
from chexseg_jax.evaluation.metrics import Interval, bootstrap_means, intervals_of
from chexseg_jax.pathologies import PATHOLOGIES
from datasets.errors import DataError
from experiments.run.cli import errors_to_exit_code_2

LETTERBOX = 320
"""The side at which the paper pools."""

Files = dict[str, Callable[[Path], None]]


@dataclass(frozen=True)
class Config:
    """Scores masks or points as CheXlocalize's eval.py does."""

    gt: Path
    """The experts' masks."""
    pred: Path
    """The model's masks; with `--metric hitmiss`, points."""
    out: Path
    """Where the tables go."""
    metric: Literal["iou", "hitmiss"] = "iou"
    """IoU of masks, or whether a point hits."""
    true_pos_only: bool = True
    """Only where truth and mask are both drawn; otherwise, wherever one of them is."""
    seed: int = 0
    """Of the 1,000 resamples of images."""
    human: Path | None = None
    """A second reader's masks, or points."""
    letterbox: int | None = None
    """Side at which to pool IoU over all images, pixels; the paper's is 320."""
    baseline: Path | None = None
    """Masks of a model to measure progress from, such as rho = 0; needs `--human`."""
    allow_missing: bool = False
    """Count images that a model's file lacks as empty, as CheXlocalize does."""

    def check(self) -> None:
        """Checks that the flags go together, before any file is read."""
        if self.metric == "hitmiss" and (self.letterbox or self.baseline):
            raise DataError(
                "--letterbox and --baseline are about masks: leave out --metric hitmiss"
            )
        if self.baseline and not self.human:
            raise DataError("--baseline measures progress towards a reader: add --human")
        if self.letterbox is not None and self.letterbox < 1:
            raise DataError(f"--letterbox must be a number of pixels, got {self.letterbox}")
        if not 0 <= self.seed < 2**32:
            raise DataError(f"--seed must lie in [0, 2^32), got {self.seed}")
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out}: --out is a file; give a folder")


@dataclass(frozen=True)
class Scores:
    """One source's values by image and pathology, and their bootstrap."""

    image_ids: list[str]
    values: Float[np.ndarray, "n k"]
    replicates: Float[np.ndarray, "r k"]

    def intervals(self) -> list[Interval]:
        """Returns the interval of each pathology."""
        return intervals_of(self.values, self.replicates)

    def files(self, prefix: str, metric: str) -> Files:
        """Returns CheXlocalize's three tables."""
        rows = partial(write_per_image, whole_numbers=metric == "hitmiss")
        return {
            f"{prefix}{metric}_results_per_cxr.csv": lambda p: rows(p, self.image_ids, self.values),
            f"{prefix}{metric}_bootstrap_results_per_cxr.csv": lambda p: write_bootstrap(
                p, self.replicates
            ),
            f"{prefix}{metric}_summary_results.csv": lambda p: write_summary(p, self.intervals()),
        }


def evaluate(config: Config) -> tuple[dict[str, Scores], Files]:
    """Returns scores by source, and the tables to write by name: nothing is written yet."""
    config.check()
    truth = Segmentations.read(config.gt)
    paths = {"pred": config.pred} | ({"human": config.human} if config.human else {})
    if config.metric == "iou":
        scores, files = _masks(
            config, truth, {name: Segmentations.read(p) for name, p in paths.items()}
        )
    else:
        scores, files = {}, {}
        for name, path in paths.items():
            values = hit_points(path, truth)
            scores[name] = _scores(config, sorted(truth.images), values)
    for name, some in scores.items():
        files |= some.files("" if name == "pred" else f"{name}_", config.metric)
    if "human" in scores:
        pair = scores["human"].replicates, scores["pred"].replicates
        files["percentage_decrease.csv"] = lambda path: write_decrease(path, *pair)
    return scores, files


def _scores(config: Config, image_ids: list[str], values: Float[np.ndarray, "n k"]) -> Scores:
    return Scores(image_ids, values, bootstrap_means(values, seed=config.seed))


def _masks(
    config: Config, truth: Segmentations, sources: dict[str, Segmentations]
) -> tuple[dict[str, Scores], Files]:
    """Returns what masks are scored by."""
    every = dict(sources)
    if config.baseline:
        every["baseline"] = Segmentations.read(config.baseline)
    for name, source in every.items():
        if name != "human" and not config.allow_missing:
            require_images(truth, source)
    scores: dict[str, Scores] = {}
    files: Files = {}
    for name, source in sources.items():
        image_ids = images_that_count(truth, source, true_pos_only=config.true_pos_only)
        areas = measure(truth, source, image_ids, name)
        scores[name] = _scores(config, image_ids, areas.ious(true_pos_only=config.true_pos_only))
        rates = areas[np.array([image_id in truth.images for image_id in image_ids])].rates()
        prefix = "" if name == "pred" else f"{name}_"
        files[f"{prefix}precision_recall_specificity.csv"] = partial(write_rates, rates=rates)
    if config.letterbox or config.baseline:
        image_ids = sorted({*truth.images}.union(*(source.images for source in every.values())))
        counts = pool(truth, every, image_ids, config.letterbox or LETTERBOX)
        files["pooled_iou.csv"] = partial(write_pooled, counts=counts, seed=config.seed)
        if config.baseline:
            found = gap(**counts, seed=config.seed)
            files["gap.csv"] = partial(write_gap, found=found)
    return scores, files


def table(scores: dict[str, Scores]) -> str:
    """Returns the summary as text: mean with its interval, and how many images have a value."""
    wide = max(map(len, PATHOLOGIES))
    lines = [" " * wide + "".join(f"  {name:<26}" for name in scores)]
    rows = {name: some.intervals() for name, some in scores.items()}
    for k in ORDER:
        cells = []
        for intervals in rows.values():
            row = intervals[k]
            values = ["–" if v != v else f"{v:.3f}" for v in (row.mean, row.lower, row.upper)]
            cells.append(f"{values[0]} [{values[1]}, {values[2]}] n={row.n}")
        lines.append(f"{PATHOLOGIES[k]:<{wide}}" + "".join(f"  {cell:<26}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, then files; writes only when everything is known."""
    config = tyro.cli(
        Config, prog="python -m experiments.evaluate", args=arguments, description=__doc__
    )
    with errors_to_exit_code_2(DataError, OSError):
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
