"""What a run ends in: a table in the terminal, report.json, CSVs, plots and a page of overlays."""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from chexseg_jax.artefacts import Records, write_json
from chexseg_jax.data import Subset, framed, once
from chexseg_jax.images import letterbox_masks
from chexseg_jax.inference import Probabilities, infer
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
    records = Records(run.evaluate, "examples")
    shown = []
    for record in (records[i] for i in range(len(records))):
        layers = {name: record[field] for field, name in LAYERS.items() if field in record}
        scores = zip(PATHOLOGIES, record["ious"].tolist(), strict=True)
        shown.append(
            Example(
                str(record["image_id"]),
                record["image"][..., 0],
                {name: unpack(bits).astype(bool) for name, bits in layers.items()},
                {name: score for name, score in scores if score == score},
            )
        )
    return [*shown, *_weak_examples(run, weak)]


def _weak_examples(run: Run, wanted: int) -> Iterator[Example]:
    """Gives some weakly labelled images: pseudo-mask, prediction and, of phantoms, the truth."""
    pseudo, size = PseudoSource(run.label), run.config.image_size
    drawn = list(islice((i for i in range(len(pseudo)) if pseudo[i].rles), wanted))
    metrics = json.loads((run.evaluate.path / "metrics.json").read_text())
    thresholds = np.array(list(metrics["thresholds"].values()))
    segment = infer(Probabilities(run.normalise), run.segmenter)
    source = framed(Subset(run.data.train, drawn), size)
    for batch, count in once(source, run.config.evaluate.batch_size):
        predictions = segment(batch["images"]) > thresholds
        for row in range(count):
            masks = pseudo[drawn[row]]
            layers = {
                "pseudo": masks.framed(size)[0].astype(bool),
                "prediction": predictions[row],
                **_truth(run, masks.image_id, size),
            }
            yield Example(masks.image_id, batch["images"][row, ..., 0], layers, {})
        del drawn[:count]


def _truth(run: Run, image_id: str, size: int) -> dict[str, Bool[np.ndarray, "s s k"]]:
    """Returns the hidden masks of a weakly labelled image, if there are any."""
    hidden = run.data.hidden
    if hidden is None or image_id not in hidden.image_ids:
        return {}
    masks = hidden[hidden.image_ids.index(image_id)]["masks"]
    return {"expert": letterbox_masks(masks, size).astype(bool)}
