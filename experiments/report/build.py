"""What a run ends in: a table in the terminal, report.json, CSVs, plots and a page of overlays."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped

from chexseg_jax.evaluation.metrics import mean_of, overlap
from chexseg_jax.evaluation.scoring import pseudo_mask_ious
from chexseg_jax.images import letterbox, letterbox_masks
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.masks import unpack
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.stage_folder import Records, StageFolder, digest, write_json
from chexseg_jax.stages.evaluation import prior_of
from chexseg_jax.training.data import Subset, letterboxed, ordered_batches
from chexseg_jax.training.metrics_log import read_metrics
from experiments.report.overlays import Example, nearest, painted
from experiments.report.page import table, write_report
from experiments.report.plots import plot_iou, plot_rhos, plot_training
from experiments.run.pipeline import Run
from experiments.run.versions import versions

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
SIDE = 512
"""The least side of what the page shows, pixels: X-rays and experts' masks are finer than a frame."""
EACH = 2
"""How many weakly labelled images are shown of each pathology, at least, where there are as many."""
PICTURES = 8
"""How many overlays a sink gets."""


def publish(run: Run) -> None:
    """Writes the report of a finished run beside its metrics, and prints its table."""
    # First what every process has a part in; then the first goes on alone.
    kinds: dict[str, StageFolder] = {}
    if run.data.hidden is not None:
        kinds = {"cam": run.labelled("cam"), "irnet": run.labelled("irnet")}
    segmenter = run.segmenter
    if jax.process_index() == 0:
        _write(run, kinds, segmenter)
    wait_for_all("report")


def _write(run: Run, kinds: Mapping[str, StageFolder], segmenter: Any) -> None:
    folder = run.evaluate.path
    report = describe(run, kinds)
    write_json(folder / "report.json", report)
    report = json.loads((folder / "report.json").read_text())
    trained = {"classify": run.classify, "relate": run.relate, "segment": run.segment}
    curves = {name: read_metrics(stage.path / "metrics.jsonl") for name, stage in trained.items()}
    figures = {"Training": folder / "training.png", "IoU": folder / "iou.png"}
    plot_training(figures["Training"], curves)
    plot_iou(figures["IoU"], report)
    if len(report["rhos"]) > 1:
        figures["Mean pooled IoU by ρ, the share of expert masks"] = folder / "rho.png"
        plot_rhos(folder / "rho.png", report["rhos"], report["rho"])
    shown = examples(run, segmenter)
    write_report(folder / "report.html", report, shown, figures)
    send(run, report, shown)
    print(table(report))
    print(f"Report: {folder / 'report.html'}")


def describe(run: Run, kinds: Mapping[str, StageFolder]) -> dict[str, Any]:
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
        "versions": versions(PACKAGES),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {
            name: {"fingerprint": source.fingerprint, "images": len(source)}
            for name, source in run.data.named().items()
        },
        "classifier": {"auroc": manifest["auroc"], "n": manifest["positives"]},
        "pseudo_masks": pseudo_masks(run, kinds),
        **json.loads((run.evaluate.path / "metrics.json").read_text()),
        "rhos": siblings(run),
        "stages": run.rows,
    }


def siblings(run: Run) -> list[dict[str, Any]]:
    """Returns the finished runs that differ from this one in rho alone, itself among them."""
    rows = []
    for path in run.config.workdir.glob("segment-*/manifest.json"):
        rho = json.loads(path.read_text())["settings"]["rho"]
        settings = {**run.segment.settings, "rho": rho}
        trained = digest(["segment", segmenter_stage.VERSION, settings, run.segment.inputs])
        inputs = {**run.evaluate.inputs, "segmenter": trained}
        tested = digest(["evaluate", evaluation_stage.VERSION, run.evaluate.settings, inputs])
        folder = run.evaluate.path.with_name(f"evaluate-{tested}")
        if path.parent.name == f"segment-{trained}" and (folder / "manifest.json").exists():
            mean = json.loads((folder / "metrics.json").read_text())["mean"]["run"]
            values = {name: mean[name] for name in ("iou", "lower", "upper")}
            rows.append({"rho": rho, **values, "folder": folder.name})
    return sorted(rows, key=lambda row: row["rho"])


def send(run: Run, report: Mapping[str, Any], shown: Sequence[Example]) -> None:
    """Sends mean IoUs and some overlays to TensorBoard and whatever else the run sends numbers to."""
    step = int(run.segment.manifest["best_step"])
    values = {f"iou/{name}": row["iou"] for name, row in report["pooled"]["run"].items()}
    values |= {f"mean iou/{name}": row["iou"] for name, row in report["mean"].items()}
    pictures = {f"overlay/{example.image_id}": painted(example) for example in shown[:PICTURES]}
    for opener in run.sinks:
        with closing(opener(run.evaluate.path, 0)) as sink:
            sink.add_scalars(step, {name: iou for name, iou in values.items() if iou is not None})
            sink.add_images(step, pictures)


def pseudo_masks(run: Run, kinds: Mapping[str, StageFolder]) -> dict[str, Any] | None:
    """Returns the IoU of each kind of pseudo-masks, where the truth is known."""
    if run.data.hidden is None:
        return None
    size = run.config.image_size
    thresholds = json.loads((run.evaluate.path / "metrics.json").read_text())["prior_thresholds"]
    prior = prior_of(run.data.expert_train, size)[0] > np.array(list(thresholds.values()))
    pseudo = {kind: PseudoMaskSource(folder) for kind, folder in kinds.items()}
    ious = pseudo_mask_ious(run.data.hidden, pseudo, prior)
    means = {kind: mean_of(list(values.values())) for kind, values in ious.items()}
    return {**ious, "means": means}


def examples(run: Run, segmenter: Any) -> Sequence[Example]:
    """Returns the test images that the page shows, and some with their pseudo-masks."""
    side = max(run.config.image_size, SIDE)
    records = Records(run.evaluate, "examples")
    places = {image_id: place for place, image_id in enumerate(run.data.test.image_ids)}
    shown = []
    for record in (records[i] for i in range(len(records))):
        image_id = str(record["image_id"])
        example = run.data.test[places[image_id]]
        layers = {"expert": letterbox_masks(example["masks"], side) > 0}
        if "reader" in record:
            layers["reader"] = letterbox_masks(example["reader_masks"], side) > 0
        layers["cam"] = enlarged(unpack(record["cam"]) > 0, side)
        layers["prediction"] = enlarged(unpack(record["run"]) > 0, side)
        image = letterbox(example["image"], side)[..., 0]
        shown.append(Example(image_id, image, layers, scores_of(record["ious"])))
    return [*shown, *_weak_examples(run, segmenter, side)]


def enlarged(masks: Shaped[np.ndarray, "h h k"], side: int) -> Bool[np.ndarray, "s s k"]:
    """Returns where square masks are 1, at the page's size."""
    return nearest(masks, side, side) == 1


def scores_of(ious: Shaped[np.ndarray, "k"]) -> dict[str, float]:
    """Returns the IoUs that are defined, by pathology."""
    pairs = zip(PATHOLOGIES, ious.tolist(), strict=True)
    return {name: iou for name, iou in pairs if iou == iou}


def _drawn(pseudo: PseudoMaskSource) -> list[int]:
    """Returns the first images with pseudo-masks that together show every pathology `EACH` times."""
    chosen, counts = [], dict.fromkeys(PATHOLOGIES, 0)
    for index in range(len(pseudo)):
        names = pseudo[index].rles.keys()
        if any(counts[name] < EACH for name in names):
            chosen.append(index)
            counts |= {name: counts[name] + 1 for name in names}
        if min(counts.values()) >= EACH:
            break
    return chosen


def _weak_examples(run: Run, segmenter: Any, side: int) -> Iterator[Example]:
    """Gives some weakly labelled images: map, seed, pseudo-mask, prediction, and truth if known."""
    pseudo, cams, size = (
        PseudoMaskSource(run.label),
        Records(run.localize, "cams"),
        run.config.image_size,
    )
    drawn = _drawn(pseudo)
    seeds = _seeds(run, drawn)
    metrics = json.loads((run.evaluate.path / "metrics.json").read_text())
    thresholds = np.array(list(metrics["thresholds"].values()))
    segment = jit_inference(MaskProbabilities(run.normalise), segmenter)
    source = letterboxed(Subset(run.data.train, drawn), size)
    rows = (
        prediction
        for batch, count in ordered_batches(source, run.config.evaluate.batch_size)
        for prediction in segment(batch["images"])[:count] > thresholds
    )
    for index, prediction in zip(drawn, rows, strict=True):
        masks, known = pseudo[index].letterboxed(size)
        record = cams[index]
        positive = pathology_labels(record["labels"][None])[0] == 1
        cam = np.asarray(upsample_cams(jnp.asarray(record["cams"])[None], side))[0]
        layers = {
            "cam": (cam > run.config.label.cam_threshold) & positive,
            "pseudo": enlarged(masks, side),
            "prediction": enlarged(prediction, side),
        }
        if index in seeds:
            layers["seed"] = enlarged(seeds[index], side)
        image_id, scores = pseudo[index].image_id, {}
        truths = _truths(run, image_id)
        if truths is not None:
            layers["expert"] = letterbox_masks(truths, side) > 0
            scores = scores_of(
                overlap((masks > 0) & known, letterbox_masks(truths, size) * known).iou()[0]
            )
        image = letterbox(run.data.train[index]["image"], side)[..., 0]
        yield Example(image_id, image, layers, scores, weak=True)


def _seeds(run: Run, drawn: Sequence[int]) -> dict[int, Shaped[np.ndarray, "h h k"]]:
    """Returns the seeds of some images, by index, for those that have any."""
    records, found = Records(run.seed, "seeds"), {}
    for record in (records[i] for i in range(len(records))):
        index = int(record["index"])
        if index in drawn:
            found[index] = record["seeds"]
        if index >= max(drawn, default=0):
            break
    return found


def _truths(run: Run, image_id: str) -> Shaped[np.ndarray, "h w"] | None:
    """Returns the hidden masks of a weakly labelled image, if there are any."""
    hidden = run.data.hidden
    if hidden is None or image_id not in hidden.image_ids:
        return None
    return hidden[hidden.image_ids.index(image_id)]["masks"]
