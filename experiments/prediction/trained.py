"""Find trained networks in a work folder, and what an export says of them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chexseg_jax.models.spec import Kind, NetworkSpec
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.stage_folder import read_manifest
from chexseg_jax.training.checkpoints import spec_of
from datasets.errors import DataError
from experiments.run.versions import versions

STAGE_OF: Final[Mapping[Kind, str]] = {
    "segmenter": "evaluation",
    "classifier": "classifier",
    "irnet": "irnet",
}
"""The finished stage that `--run` may name; a segmenter is found by its evaluation."""
PACKAGES: Final = ("jax", "flax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class TrainedNetwork:
    """The folder of a training and, of a segmenter, of its evaluation."""

    kind: Kind
    folder: Path
    evaluation: Path | None

    @property
    def spec(self) -> NetworkSpec:
        """Which network it is."""
        return spec_of(self.folder)

    def metadata(self) -> dict[str, Any]:
        """Return what an export says beside the network: thresholds, metrics, origin."""
        manifest = _manifest(self.folder)
        metadata: dict[str, Any] = {
            "trained": {name: manifest[name] for name in ("fingerprint", "settings", "inputs")},
            "versions": versions(PACKAGES),
        }
        if self.kind == "classifier":
            metadata |= {"observations": OBSERVATIONS, "auroc": manifest["auroc"]}
        if self.evaluation:
            metrics = json.loads((self.evaluation / "metrics.json").read_text())
            metadata |= {
                "pathologies": PATHOLOGIES,
                "thresholds": metrics["thresholds"],
                "gates": _gates(self.evaluation / "gates.csv"),
                "metrics": {name: metrics[name] for name in ("pooled", "mean", "n", "sampled")},
                "test": _manifest(self.evaluation)["inputs"]["test"],
            }
        return metadata

    def report(self) -> dict[str, Any] | None:
        """Return the report of the run that evaluated it, if one was written."""
        path = self.evaluation / "report.json" if self.evaluation else None
        return json.loads(path.read_text()) if path and path.exists() else None


def find_trained(path: Path, kind: Kind) -> TrainedNetwork:
    """Find the trained network of a kind in a work folder, or in the folder of one stage.

    Raises:
        DataError: there is none, or more than one.
    """
    if (path / "manifest.json").exists():
        return _from_stage(path, kind)
    stage = STAGE_OF[kind]
    folders = [p.parent for p in sorted(path.glob(f"{stage}-*/manifest.json"))]
    folders = [folder for folder in folders if read_manifest(folder)]
    if not folders:
        raise DataError(
            f"{path}: no finished {stage} stage in it; give --run the work folder of "
            "python -m experiments.chexseg"
        )
    if len(folders) > 1:
        names = "; ".join(f"{folder.name} ({_summary(folder)})" for folder in folders)
        raise DataError(
            f"{path}: {len(folders)} to choose from; give one of them as --run: {names}"
        )
    return _from_stage(folders[0], kind)


def _from_stage(folder: Path, kind: Kind) -> TrainedNetwork:
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder}: its manifest is of another version or another tool; run it again"
        )
    stage = manifest["stage"]
    if not stage.startswith(STAGE_OF[kind]):
        hint = "" if kind != "segmenter" else "; give the folder of its evaluation"
        raise DataError(f"{folder}: a stage of kind {stage} holds no {kind}{hint}")
    if kind != "segmenter":
        return TrainedNetwork(kind, folder, None)
    trained = _segmenter_of(folder)
    if not (trained / "manifest.json").exists():
        raise DataError(f"{trained}: missing, though {folder} was made from it; train it again")
    return TrainedNetwork(kind, trained, folder)


def _segmenter_of(evaluation: Path) -> Path:
    return evaluation.with_name(f"segmenter-{_manifest(evaluation)['inputs']['segmenter']}")


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def _summary(folder: Path) -> str:
    """Return what tells a stage's folder from others of its kind."""
    try:
        manifest = _manifest(folder)
        if manifest["stage"] != "evaluation":
            return manifest["finished"]
        settings = _manifest(_segmenter_of(folder))["settings"]
        iou = json.loads((folder / "metrics.json").read_text())["mean"]["run"]["iou"]
        return f"rho {settings['rho']:g}, seed {settings['seed']}, mean IoU {iou:.3f}"
    except (OSError, ValueError, KeyError, TypeError):
        return "of another version"


def _gates(path: Path) -> dict[str, float]:
    with path.open(newline="") as file:
        return {row["task"]: float(row["prob_threshold"]) for row in csv.DictReader(file)}
