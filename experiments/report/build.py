"""Build the report of a finished run: terminal table, report.json, CSVs, plots and the HTML page."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from chexseg_jax.evaluation.metrics import mean_of, overlap
from chexseg_jax.evaluation.scoring import pseudo_mask_ious
from chexseg_jax.images import content_mask, letterbox, letterbox_masks
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.masks import unpack
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.stage_folder import (
    RecordReader,
    StageFolder,
    pass_over,
    read_manifest,
    write_json,
)
from chexseg_jax.stages.evaluation import location_prior
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import Subset, letterboxed, ordered_batches
from chexseg_jax.training.metrics_log import read_metrics, sinks
from experiments.report.overlays import Example, blend_masks, resize_nearest
from experiments.report.page import write_report
from experiments.report.plots import plot_iou, plot_rhos, plot_training
from experiments.report.tables import terminal_table
from experiments.run.config import Config
from experiments.run.data import frontal_indices
from experiments.run.pipeline import Run, made, make_pseudo_masks
from experiments.run.versions import versions

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
SIDE = 512
"""Minimum side of the page's images, pixels: finer than the letterbox."""
EACH = 2
"""Minimum number of weakly labelled examples of each pathology."""
PICTURES = 8
"""Number of overlays sent to a sink."""


def publish(run: Run) -> None:
    """Write the report of an evaluated run beside its metrics, and print its table."""
    # Every process takes part in making pseudo-masks; the first one writes the report.
    pseudo: dict[str, StageFolder] = {}
    if run.pseudo_masks and run.data.hidden is not None:
        if run.cams and run.config.pseudo != "cam":
            pseudo["cam"] = make_pseudo_masks(run, "cam")
        pseudo[run.config.pseudo] = run.pseudo_masks
    # Orbax restores in all processes together.
    segmenter = restore(made(run.segmenter).path) if run.pseudo_masks else None
    if jax.process_index() == 0:
        _write(run, pseudo, segmenter)
    wait_for_all("report")


def _write(run: Run, pseudo: Mapping[str, StageFolder], segmenter: Any) -> None:
    folder = made(run.evaluation).path
    write_json(folder / "report.json", describe(run, pseudo))
    report = json.loads((folder / "report.json").read_text())
    trained = {"classifier": run.classifier, "irnet": run.irnet, "segmenter": run.segmenter}
    curves = {name: read_metrics(s.path / "metrics.jsonl") for name, s in trained.items() if s}
    figures = {"Training": folder / "training.png", "IoU": folder / "iou.png"}
    plot_training(figures["Training"], curves)
    plot_iou(figures["IoU"], report)
    if len(report["rhos"]) > 1:
        figures["Mean pooled IoU by ρ, the share of expert masks"] = folder / "rho.png"
        plot_rhos(folder / "rho.png", report["rhos"], report["rho"])
    if report["experts"]:
        figures["Mean pooled IoU by number of expert masks"] = experts_curve(run)
    gallery = examples(run, segmenter)
    write_report(folder / "report.html", report, gallery, figures)
    send(run, report, gallery)
    print(terminal_table(report))
    stages = [row["name"] + " (reused)" * row["reused"] for row in run.stages]
    print(f"Stages: {', '.join(stages)}")
    print(f"Report: {folder / 'report.html'}")


def describe(run: Run, pseudo: Mapping[str, StageFolder]) -> dict[str, Any]:
    """Return everything that the report says."""
    config, manifest = run.config, made(run.classifier).manifest
    return {
        "title": "CheXseg",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "preset": config.preset,
        "rho": run.rho,
        "seed": config.seed,
        "pseudo": config.pseudo,
        "warning": config.warning,
        "views": config.views,
        "phantom": config.data_dir is None,
        "settings": asdict(config),
        "versions": versions(PACKAGES),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {
            name: {
                "fingerprint": source.fingerprint,
                "images": len(source),
                "lateral": len(source) - len(frontal_indices(source.image_ids)),
            }
            for name, source in run.data.sources().items()
        },
        "classifier": {"auroc": manifest["auroc"], "n": manifest["positives"]},
        "pseudo_masks": pseudo_masks(run, pseudo),
        **_metrics(run),
        "rhos": siblings(run),
        "experts": expert_points(run),
        "stages": run.stages,
    }


def experts_curve(run: Run) -> Path:
    """Return where `experiments.table --experts` draws its curve."""
    return run.config.workdir / "table" / "experts.png"


def expert_points(run: Run) -> list[dict[str, Any]]:
    """Return the curve over numbers of expert masks in this work folder, if it is of such runs."""
    path = experts_curve(run).with_suffix(".json")
    if not path.exists() or not experts_curve(run).exists():
        return []
    try:
        content = json.loads(path.read_text())
        theirs, points = content["settings"], content["points"]
    except (OSError, ValueError, KeyError, TypeError):
        pass_over(path.parent, "its curve is")
        return []
    mine = as_stored(asdict(run.config))
    same = ("data_dir", "seed", "image_size", "photometry", "views", "classifier", "cams")
    return points if all(theirs.get(name) == mine[name] for name in same) else []


def as_stored(values: Mapping[str, Any]) -> Any:
    """Return values as JSON gives them back, to compare with a file's."""
    return json.loads(json.dumps(values, default=str))


def _metrics(run: Run) -> dict[str, Any]:
    return json.loads((made(run.evaluation).path / "metrics.json").read_text())


def siblings(run: Run) -> list[dict[str, Any]]:
    """Return the finished runs that differ from this one in rho alone, this one included."""
    rows = []
    for path in run.config.workdir.glob("evaluation-*/manifest.json"):
        try:
            row = _sibling(path.parent, made(run.segmenter), made(run.evaluation))
        except (OSError, ValueError, KeyError, TypeError):
            pass_over(path.parent, "its scores are")
            continue
        if row:
            rows.append(row)
    return sorted(rows, key=lambda row: row["rho"])


def _sibling(path: Path, segmenter: StageFolder, evaluation: StageFolder) -> dict[str, Any] | None:
    """Return the row of an evaluation's folder, None if more than rho differs."""
    manifest = read_manifest(path)
    if manifest is None or not _agree(manifest, evaluation, besides=("segmenter",)):
        return None
    trained = path.with_name(f"segmenter-{manifest['inputs'].get('segmenter')}")
    other = read_manifest(trained) if (trained / "manifest.json").exists() else None
    if other is None or not _agree(other, segmenter, besides=("rho", "training_steps")):
        return None
    if (manifest["version"], other["version"]) != (evaluation.version, segmenter.version):
        pass_over(path, "it is")
        return None
    mean = json.loads((path / "metrics.json").read_text())["mean"]["run"]
    values = {name: mean[name] for name in ("iou", "lower", "upper")}
    return {"rho": float(other["settings"]["rho"]), **values, "folder": path.name}


def _agree(manifest: Mapping[str, Any], folder: StageFolder, besides: tuple[str, ...]) -> bool:
    """Return whether settings and inputs agree; an input that only one side has does not count.

    At rho = 1 a segmenter has no pseudo-masks, at rho = 0 no expert masks.
    """
    mine = as_stored({"settings": folder.settings, "inputs": folder.inputs})
    settings = {**manifest["settings"], **{name: None for name in besides}}
    if settings != {**mine["settings"], **{name: None for name in besides}}:
        return False
    inputs = manifest["inputs"]
    common = (inputs.keys() & mine["inputs"].keys()) - {*besides}
    return all(inputs[name] == mine["inputs"][name] for name in common)


def send(run: Run, report: Mapping[str, Any], gallery: Sequence[Example]) -> None:
    """Send mean IoUs and some overlays to TensorBoard and Weights & Biases."""
    step = int(made(run.segmenter).manifest["best_step"])
    values = {f"iou/{name}": row["iou"] for name, row in report["pooled"]["run"].items()}
    values |= {f"mean iou/{name}": row["iou"] for name, row in report["mean"].items()}
    pictures = {
        f"overlay/{example.image_id}": blend_masks(example) for example in gallery[:PICTURES]
    }
    for opener in sinks(run.config.wandb):
        with closing(opener(made(run.evaluation).path, 0)) as sink:
            sink.add_scalars(step, {name: iou for name, iou in values.items() if iou is not None})
            sink.add_images(step, pictures)


def pseudo_masks(run: Run, folders: Mapping[str, StageFolder]) -> dict[str, Any] | None:
    """Return the IoU of each kind of pseudo-masks with hidden masks, where there are any."""
    if run.data.hidden is None or not folders:
        return None
    thresholds = np.array(list(_metrics(run)["prior_thresholds"].values()), np.float64)
    prior = location_prior(run.data.expert_train, run.config.image_size)[0] > thresholds
    sources = {kind: PseudoMaskSource(folder) for kind, folder in folders.items()}
    ious = pseudo_mask_ious(run.data.hidden, sources, prior)
    means = {kind: mean_of(list(values.values())) for kind, values in ious.items()}
    return {**ious, "means": means}


def examples(run: Run, segmenter: Any) -> Sequence[Example]:
    """Return the test images that the page shows, and some with their pseudo-masks."""
    side = max(run.config.image_size, SIDE)
    records = RecordReader(made(run.evaluation), "examples")
    places = {image_id: place for place, image_id in enumerate(run.data.test.image_ids)}
    gallery = []
    for record in (records[i] for i in range(len(records))):
        image_id = str(record["image_id"])
        example = run.data.test[places[image_id]]
        layers = {"expert": letterbox_masks(example["masks"], side) > 0}
        if "reader" in record:
            layers["reader"] = letterbox_masks(example["reader_masks"], side) > 0
        layers["cam"] = upsampled(unpack(record["cam"]), side)
        layers["prediction"] = upsampled(unpack(record["run"]), side)
        image = letterbox(example["image"], side)[..., 0]
        seen = record["image"][..., 0]
        gallery.append(Example(image_id, image, layers, iou_by_name(record["ious"]), seen=seen))
    return [*gallery, *_weak_examples(run, segmenter, side)]


def upsampled(masks: Shaped[np.ndarray, "h h k"], side: int) -> Bool[np.ndarray, "s s k"]:
    """Return where square masks are 1, at the page's size."""
    return resize_nearest(masks, side, side) == 1


def iou_by_name(ious: Shaped[np.ndarray, "k"]) -> dict[str, float]:
    """Return the IoUs that are defined, by pathology."""
    pairs = zip(PATHOLOGIES, ious.tolist(), strict=True)
    return {name: iou for name, iou in pairs if iou == iou}


def _covering(pseudo: PseudoMaskSource) -> list[int]:
    """Return the first images whose pseudo-masks together show every pathology `EACH` times."""
    indices, counts = [], dict.fromkeys(PATHOLOGIES, 0)
    for index in range(len(pseudo)):
        names = pseudo[index].planes.keys()
        if any(counts[name] < EACH for name in names):
            indices.append(index)
            counts |= {name: counts[name] + 1 for name in names}
        if min(counts.values()) >= EACH:
            break
    return indices


def _weak_examples(run: Run, segmenter: Any, side: int) -> Iterator[Example]:
    """Yield weakly labelled images: map, seed, pseudo-mask, prediction, and hidden mask if any."""
    if run.pseudo_masks is None:
        return
    size, config = run.config.image_size, run.config
    pseudo = PseudoMaskSource(run.pseudo_masks)
    cams = RecordReader(run.cams, "cams") if run.cams else None
    indices = _covering(pseudo)
    seeds = _seeds(run.seeds, indices) if run.seeds else {}
    thresholds = np.array(list(_metrics(run)["thresholds"].values()), np.float64)
    normalization = spec_of(made(run.segmenter).path).normalization
    infer = jit_inference(MaskProbabilities(normalization), segmenter)
    predictions = (
        row
        for batch, count in ordered_batches(
            letterboxed(Subset(run.data.mapped, indices), size), config.evaluation.batch_size
        )
        for row in zip(batch["images"][:count], infer(batch["images"]) > thresholds, strict=False)
    )
    for index, (seen, prediction) in zip(indices, predictions, strict=True):
        masks, valid = pseudo[index].hard(size)
        image = letterbox(run.data.mapped[index]["image"], side)
        layers = {"cam": _cam_masks(cams[index], image, config)} if cams else {}
        layers |= {"pseudo": upsampled(masks, side), "prediction": upsampled(prediction, side)}
        if index in seeds:
            layers["seed"] = upsampled(seeds[index], side)
        image_id, scores = pseudo[index].image_id, {}
        hidden = _hidden_masks(run, image_id)
        if hidden is not None:
            layers["expert"] = letterbox_masks(hidden, side) > 0
            counts = overlap(masks & valid, letterbox_masks(hidden, size) * valid)
            scores = iou_by_name(counts.iou()[0])
        yield Example(image_id, image[..., 0], layers, scores, weak=True, seen=seen[..., 0])


def _cam_masks(
    record: Mapping[str, Any], image: UInt8[np.ndarray, "s s 1"], config: Config
) -> Bool[np.ndarray, "s s k"]:
    """Return the maps of an image's positive findings above the fixed threshold."""
    content = content_mask(jnp.asarray(image)[None])
    maps = np.asarray(upsample_cams(jnp.asarray(record["cams"])[None], content))[0]
    positive = pathology_labels(record["labels"][None])[0] == 1
    return (maps > config.pseudo_masks.cam_threshold) & positive


def _seeds(folder: StageFolder, indices: Sequence[int]) -> dict[int, Shaped[np.ndarray, "h h k"]]:
    """Return the seeds of some images by index, for those that have any."""
    records, seeds = RecordReader(folder, "seeds"), {}
    for record in (records[i] for i in range(len(records))):
        index = int(record["index"])
        if index in indices:
            seeds[index] = record["seeds"]
        if index >= max(indices, default=0):
            break
    return seeds


def _hidden_masks(run: Run, image_id: str) -> Shaped[np.ndarray, "h w"] | None:
    """Return the hidden masks of a weakly labelled image, if there are any."""
    hidden = run.data.hidden
    if hidden is None or image_id not in hidden.image_ids:
        return None
    return hidden[hidden.image_ids.index(image_id)]["masks"]
