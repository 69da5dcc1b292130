"""Finished stages in a work folder: which networks were trained, and what is known of them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chexseg_jax.losses import policies_of
from chexseg_jax.models.spec import (
    NORMALIZATIONS,
    RESNET50,
    BackboneSpec,
    DecoderSpec,
    Kind,
    NetworkSpec,
)
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from datasets.errors import DataError
from experiments.run.versions import versions

STAGE_OF: Final[Mapping[Kind, str]] = {
    "segmenter": "evaluate",
    "classifier": "classify",
    "irnet": "relate",
}
PACKAGES: Final = ("jax", "flax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network: the folder of its training and, of a segmenter, of its evaluation."""

    kind: Kind
    folder: Path
    evaluated: Path | None

    @property
    def settings(self) -> dict[str, Any]:
        """The training's settings."""
        return _manifest(self.folder)["settings"]

    @property
    def description(self) -> NetworkSpec:
        """Which network it is."""
        settings = self.settings
        backbone = settings if self.kind == "classifier" else settings["backbone"]
        if backbone is None:  # an IRNet that came with a ResNet-50 of its own
            network, outputs, stride = RESNET50, 1000, 16
        else:
            classes = 3 if "3-class" in policies_of(backbone["policy"]) else 1
            network, outputs = BackboneSpec.read(backbone["network"]), classes * len(OBSERVATIONS)
            stride = 16 if self.kind == "segmenter" else backbone["output_stride"]
        decoder = None
        if self.kind == "segmenter":
            decoder = DecoderSpec(settings["width"], tuple(settings["rates"]))
        return NetworkSpec(
            kind=self.kind,
            network=network,
            outputs=outputs,
            output_stride=stride,
            image_size=settings["image_size"],
            normalisation=NORMALIZATIONS[(backbone or settings)["pixels"]],
            dilated=backbone is not None,
            decoder=decoder,
        )

    def stated(self) -> dict[str, Any]:
        """Returns what an export says beside the network: thresholds, figures, origin."""
        manifest = _manifest(self.folder)
        stated: dict[str, Any] = {
            "trained": {name: manifest[name] for name in ("fingerprint", "settings", "inputs")},
            "versions": versions(PACKAGES),
        }
        if self.kind == "classifier":
            stated |= {"observations": OBSERVATIONS, "auroc": manifest["auroc"]}
        if self.evaluated:
            metrics = json.loads((self.evaluated / "metrics.json").read_text())
            stated |= {
                "pathologies": PATHOLOGIES,
                "thresholds": metrics["thresholds"],
                "gates": _gates(self.evaluated / "gates.csv"),
                "metrics": {name: metrics[name] for name in ("pooled", "mean", "n")},
                "test": _manifest(self.evaluated)["inputs"]["test"],
            }
        return stated

    def report(self) -> dict[str, Any] | None:
        """Returns the report of the run that evaluated it, if one was written."""
        path = self.evaluated / "report.json" if self.evaluated else None
        return json.loads(path.read_text()) if path and path.exists() else None


def find_trained(path: Path, kind: Kind) -> TrainedNetwork:
    """Returns the trained network of a kind in a work folder, or in the folder of one stage.

    Raises:
        DataError: there is none, or more than one to choose from.
    """
    if (path / "manifest.json").exists():
        return _from_stage(path, kind)
    stage = STAGE_OF[kind]
    found = sorted(path.glob(f"{stage}-*/manifest.json"))
    if not found:
        raise DataError(
            f"{path}: no finished {stage} stage in it; give --run the work folder of "
            "python -m experiments.chexseg"
        )
    if len(found) > 1:
        names = "; ".join(f"{one.parent.name} ({_told(one.parent)})" for one in found)
        raise DataError(f"{path}: {len(found)} to choose from; give one of them as --run: {names}")
    return _from_stage(found[0].parent, kind)


def _from_stage(folder: Path, kind: Kind) -> TrainedNetwork:
    stage = _manifest(folder)["stage"]
    if not stage.startswith(STAGE_OF[kind]):
        hint = "" if kind != "segmenter" else "; give the folder of its evaluation"
        raise DataError(f"{folder}: a stage of kind {stage} holds no {kind}{hint}")
    if kind != "segmenter":
        return TrainedNetwork(kind, folder, None)
    trained = folder.with_name(f"segment-{_manifest(folder)['inputs']['segmenter']}")
    if not (trained / "manifest.json").exists():
        raise DataError(f"{trained}: missing, though {folder} was made from it; train it again")
    return TrainedNetwork(kind, trained, folder)


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def _told(folder: Path) -> str:
    """Returns what tells a stage from others of its kind."""
    manifest = _manifest(folder)
    if manifest["stage"] != "evaluate":
        return manifest["finished"]
    trained = folder.with_name(f"segment-{manifest['inputs']['segmenter']}")
    settings = _manifest(trained)["settings"]
    iou = json.loads((folder / "metrics.json").read_text())["mean"]["run"]["iou"]
    return f"rho {settings['rho']:g}, seed {settings['seed']}, mean IoU {iou:.3f}"


def _gates(path: Path) -> dict[str, float]:
    with path.open(newline="") as file:
        return {row["task"]: float(row["prob_threshold"]) for row in csv.DictReader(file)}
