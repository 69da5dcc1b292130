"""What a run ends in: a table in the terminal, report.json, CSVs, plots and a page of overlays."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from chexseg_jax.artefacts import Records, write_json
from chexseg_jax.images import letterbox
from chexseg_jax.logs import read_log
from chexseg_jax.masks import unpack
from chexseg_jax.metrics import mean_of
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudo import PseudoSource
from chexseg_jax.scores import pseudo_mask_ious
from chexseg_jax.stages.evaluate import prior_of
from experiments.overlays import Example
from experiments.pipeline import Run
from experiments.plots import plot_iou, plot_training
from experiments.report import table, write_report

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
LAYERS = {"expert": "expert", "reader": "reader", "cam": "cam", "run": "prediction"}


def publish(run: Run) -> None:
    """Writes the report of a finished run beside its metrics, and prints its table."""
    if jax.process_index() > 0:
        return
    folder = run.evaluate.path
    report = describe(run)
    write_json(folder / "report.json", report)
    report = json.loads((folder / "report.json").read_text())
    trained = {"classify": run.classify, "relate": run.relate, "segment": run.segment}
    curves = {name: read_log(stage.path / "metrics.jsonl") for name, stage in trained.items()}
    figures = {"Training": folder / "training.png", "IoU": folder / "iou.png"}
    plot_training(figures["Training"], curves)
    plot_iou(figures["IoU"], report)
    write_report(folder / "report.html", report, examples(run), figures)
    print(table(report))
    print(f"Report: {folder / 'report.html'}")


def describe(run: Run) -> dict[str, Any]:
    """Returns everything that the report says."""
    config = run.config
    manifest = run.classify.manifest
    return {
        "title": "CheXseg",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "preset": config.preset,
        "rho": config.rho,
        "seed": config.seed,
        "pseudo": config.pseudo,
        "phantom": config.data_dir is None,
        "settings": asdict(config),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {
            name: {"fingerprint": source.fingerprint, "images": len(source)}
            for name, source in run.data.named().items()
        },
        "classifier": {"auroc": manifest["auroc"], "n": manifest["positives"]},
        "pseudo_masks": pseudo_masks(run),
        **json.loads((run.evaluate.path / "metrics.json").read_text()),
        "stages": run.rows,
    }


def pseudo_masks(run: Run) -> dict[str, Any] | None:
    """Returns the IoU of both kinds of pseudo-masks, where the truth is known."""
    if run.data.hidden is None:
        return None
    size = run.config.image_size
    thresholds = json.loads((run.evaluate.path / "metrics.json").read_text())["prior_thresholds"]
    prior = prior_of(run.data.expert_train, size)[0] > np.array(list(thresholds.values()))
    kinds = {kind: PseudoSource(run.labelled(kind)) for kind in ("cam", "irnet")}
    ious = pseudo_mask_ious(run.data.hidden, kinds, prior)
    means = {kind: mean_of(list(values.values())) for kind, values in ious.items()}
    return {**ious, "means": means}


def examples(run: Run, weak: int = 12) -> Sequence[Example]:
    """Returns the test images that the page shows, and some with their pseudo-masks."""
    shown = []
    for record in (Records(run.evaluate, "examples")[i] for i in range(_count(run))):
        scores = zip(PATHOLOGIES, record["ious"].tolist(), strict=True)
        shown.append(
            Example(
                str(record["image_id"]),
                record["image"][..., 0],
                {
                    name: unpack(record[field]).astype(bool)
                    for field, name in LAYERS.items()
                    if field in record
                },
                {name: score for name, score in scores if score == score},
            )
        )
    pseudo, size = PseudoSource(run.label), run.config.image_size
    drawn = (i for i in range(len(pseudo)) if pseudo[i].rles)
    for _, index in zip(range(weak), drawn, strict=False):
        masks, _ = pseudo[index].framed(size)
        image = letterbox(run.data.train[index]["image"], size)
        layers = {"pseudo": masks.astype(bool)}
        shown.append(Example(pseudo[index].image_id, image[..., 0], layers, {}))
    return shown


def _count(run: Run) -> int:
    return len(Records(run.evaluate, "examples"))
