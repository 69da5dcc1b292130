"""Measure how a trained run bears other exposures: `python -m experiments.robustness --run runs`.

Every test image is shown darker and brighter (gamma), in a narrow and a wide window, and with little
contrast, before the run's photometry. For each exposure the table has the classifier's mean AUROC over
CheXpert's five competition observations and the segmenter's mean pooled IoU in the letterbox, at the
thresholds of the run. The exposures are applied at the letterbox's scale, to images read once. Writes
`robustness.csv` beside the evaluation, with a column for each observation and pathology.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from chexseg_jax.evaluation.chexlocalize import ChexlocalizeError, read_thresholds
from chexseg_jax.evaluation.metrics import Counts, mean_of, overlap, stack
from chexseg_jax.images import content_slices, letterbox, letterbox_masks
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.masks import pack
from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.stage_folder import write_csv
from chexseg_jax.stages.classifier import aurocs, predict
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import (
    BatchError,
    Example,
    Mapped,
    Source,
    letterboxed,
    ordered_batches,
)
from datasets.errors import DataError
from datasets.source import open_source
from experiments.prediction.trained import find_trained
from experiments.run.cli import exit_on_errors

NETWORKS: Final = ("segmenter", "classifier")
Curve = Float[np.ndarray, "256"]
LEVELS: Final = np.arange(256) / 255
EXPOSURES: Final[Mapping[str, Curve]] = {
    "as it is": LEVELS,
    **{f"gamma {gamma:g}": LEVELS**gamma for gamma in (0.5, 0.7, 1.4, 2.0)},
    "narrow window": (LEVELS - 0.3) / 0.4,  # the middle 0.4 of the range fills it
    "wide window": LEVELS / 2 + 0.25,  # the range fills its middle half
    "low contrast": LEVELS / 4 + 0.2,  # and dark
}
"""The new level of each grey level, from black 0 to white 1, clipped to them."""


@dataclass(frozen=True)
class RobustnessConfig:
    """Measure AUROC and IoU under other exposures of the test images."""

    run: Path
    """A work folder, or the folder of one evaluation in it."""
    data_dir: Path | None = None
    """The prepared data; the work folder's phantoms if not given."""
    batch_size: int = 16


def small(source: Source, size: int) -> Source:
    """Scale images and masks to their content in the letterbox; keep them in memory."""

    def transform(_: int, example: Example) -> Example:
        height, width = example["image"].shape[:2]
        inside = content_slices(height, width, size)
        masks = pack(letterbox_masks(example["masks"], size) > 0)[inside]
        return {**example, "image": letterbox(example["image"], size)[inside], "masks": masks}

    return Mapped(source, transform, cache=len(source))


def exposed(source: Source, curve: Curve) -> Source:
    """Apply a curve of grey levels to the images of a source."""
    levels: UInt8[np.ndarray, "256"] = np.rint(255 * curve.clip(0, 1)).astype(np.uint8)
    return Mapped(source, lambda _, e: {**e, "image": levels[e["image"]]})


def measure(config: RobustnessConfig, evaluation: Path) -> list[dict[str, Any]]:
    """Return a row for each exposure: its name, means, AUROCs and IoUs; NaN where undefined."""
    manifest = json.loads((evaluation / "manifest.json").read_text())
    folders = {n: evaluation.with_name(f"{n}-{manifest['inputs'][n]}") for n in NETWORKS}
    spec, classifier_spec = spec_of(folders["segmenter"]), spec_of(folders["classifier"])
    data_dir = config.data_dir or evaluation.with_name("phantoms")
    test = small(open_source(data_dir, "chexlocalize", "test", spec.photometry), spec.image_size)
    classifier, segmenter = restore(folders["classifier"]), restore(folders["segmenter"])
    segment = jit_inference(MaskProbabilities(spec.normalization), segmenter)
    thresholds = read_thresholds(evaluation / "thresholds.csv")
    rows: list[dict[str, Any]] = []
    for name, curve in EXPOSURES.items():
        source = exposed(test, curve)
        scores = aurocs(*predict(classifier, source, classifier_spec, config.batch_size))
        counts: list[Counts] = []
        seen = letterboxed(source, spec.image_size)
        for batch, count in ordered_batches(seen, config.batch_size):
            masks = segment(batch["images"])[:count] > thresholds
            counts += map(overlap, masks, batch["masks"][:count])
        ious = dict(zip(PATHOLOGIES, stack(counts).pooled().iou()[0].tolist(), strict=True))
        auroc = mean_of([scores[observation] for observation in COMPETITION_OBSERVATIONS])
        row: dict[str, Any] = {"exposure": name, "auroc": auroc}
        row["iou"] = mean_of(list(ious.values()))
        row |= {f"auroc/{observation}": score for observation, score in scores.items()}
        rows.append(row | {f"iou/{pathology}": value for pathology, value in ious.items()})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line."""
    name = "python -m experiments.robustness"
    config = tyro.cli(RobustnessConfig, prog=name, args=arguments, description=__doc__)
    with exit_on_errors(DataError, ChexlocalizeError, BatchError, OSError):
        evaluation = find_trained(config.run, "segmenter").evaluation
        assert evaluation is not None  # of a segmenter
        rows = measure(config, evaluation)
        write_csv(evaluation / "robustness.csv", [list(rows[0]), *(list(r.values()) for r in rows)])
    print("exposure         AUROC    IoU")
    for row in rows:
        print(f"{row['exposure']:<15}{row['auroc']:>7.3f}{row['iou']:>7.3f}")
    print(f"All observations and pathologies: {evaluation / 'robustness.csv'}")


if __name__ == "__main__":
    main()
