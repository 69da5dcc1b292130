"""The model card of an export: use, data, measured results and limits."""

from collections.abc import Mapping
from typing import Any

from experiments.report.tables import format_interval, format_score, format_threshold, interval_name

SPLITS = {
    "train": "weak labels",
    "valid": "validation of the classifier",
    "expert_train": "training on expert masks",
    "expert_val": "choice of thresholds on expert masks",
    "test": "test on expert masks",
}
OUTPUTS = {
    "segmenter": "probabilities of ten pathologies per pixel",
    "classifier": "probabilities of fourteen observations",
    "irnet": "class boundaries on the grid of stride 4",
}


def model_card(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """Return the card as Markdown with the metadata that model hubs read.

    Args:
        config: the export's `config.json`.
        report: the run's `report.json`, which describes the data; without it the card lists the
            fingerprints of the training's inputs.
    """
    parts = [_head(config), _use(config), _data(config, report), _results(config), _limits(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(config: Mapping[str, Any]) -> str:
    settings = config["trained"]["settings"]
    rho = f", rho = {settings['rho']:g}" if "rho" in settings else ""
    return f"""---
library_name: chexseg-jax
tags: [jax, flax, chest-x-ray, {config["kind"]}]
---

# CheXseg {config["kind"]}{rho}

**Not a medical device.** For research; not for diagnosis, triage or treatment.

A {config["backbone"]["kind"]} with blocks of {", ".join(map(str, config["backbone"]["blocks"]))} layers,
trained as CheXseg (Gadgil, Endo, Wen, Ng, Rajpurkar, MIDL 2021) with chexseg-jax, seed
{settings["seed"]}. Weights are stored as {config["dtype"]}; versions:
{", ".join(f"{name} {value}" for name, value in config["versions"].items())}."""


def _use(config: Mapping[str, Any]) -> str:
    kind = config["kind"]
    module = "chexseg_jax" if kind == "segmenter" else "chexseg_jax.inference.export"
    side = config["image_size"]
    mean, std = config["normalization"]["mean"], config["normalization"]["std"]
    return f"""## Use

```python
from {module} import load_{kind}
network = load_{kind}("this folder")
images = network.letterbox(image)[None]  # of uint8, h x w x 1, to b x {side} x {side} x 1
outputs = network(images)  # {OUTPUTS[kind]}
```

`letterbox` scales the long side of an 8-bit gray image to {side} pixels, treats its gray levels as in
training (photometry: {config["photometry"]}), and pads it with black. The network normalizes images by
the mean {mean} and the standard deviation {std} of pixels on [0, 1].
`function.jax`, of images so treated, needs only the packages `jax` and `flatbuffers`."""


def _data(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    if not report:
        inputs = config["trained"]["inputs"].items()
        return "## Data\n\nFingerprints of the training's inputs:\n\n" + "\n".join(
            f"- {name}: `{value}`" for name, value in inputs
        )
    rows = [
        f"| {name} | {row['images']:,} | {SPLITS.get(name, 'masks that no stage sees')} "
        f"| `{row['fingerprint'][:12]}` |"
        for name, row in report["data"].items()
    ]
    origin = (
        "Synthetic chests, free of any license: the network has never seen a radiograph."
        if report["phantom"]
        else "CheXpert and CheXlocalize, under the research use agreements of Stanford University "
        "that came with them; these weights were made from that data, and its terms hold for them."
    )
    return f"""## Data

{origin} Pseudo-masks: {report["pseudo"]}.

| split | images | for | fingerprint |
| --- | --- | --- | --- |
""" + "\n".join(rows)


def _results(config: Mapping[str, Any]) -> str:
    if config["kind"] == "classifier":
        rows = [f"| {name} | {format_score(value)} |" for name, value in config["auroc"].items()]
        head = "## Results\n\n| observation | AUROC, validation |\n| --- | --- |\n"
        return head + "\n".join(rows)
    if "metrics" not in config:
        return ""
    pooled, mean = config["metrics"]["pooled"]["run"], config["metrics"]["mean"]["run"]
    rows = [
        f"| {name} | {_iou(row)} | {config['metrics']['n'][name]} "
        f"| {format_threshold(config['thresholds'][name])} | {config['gates'][name]:.2f} |"
        for name, row in pooled.items()
    ]
    return f"""## Results

On the test split, IoU pooled over all images in the letterbox, with its
{interval_name(config["metrics"]["sampled"])}; mean {_iou(mean)}. Thresholds and gates were chosen on
expert-val. The mask of a pathology that was not found there is empty.

| pathology | IoU | images with it | threshold | gate |
| --- | --- | --- | --- | --- |
""" + "\n".join(rows)


def _iou(row: Mapping[str, float | None]) -> str:
    return f"{format_score(row['iou'])} {format_interval(row)}".strip()


def _views(report: Mapping[str, Any]) -> str:
    """Say which views are in the training images, where the report counts them."""
    rows = [row for name in ("train", "expert_train") if (row := report["data"].get(name))]
    if any("lateral" not in row for row in rows):
        return ""
    lateral = sum(row["lateral"] for row in rows)
    if not lateral:
        return "It was trained on frontal views only. "
    frontal = sum(row["images"] for row in rows) - lateral
    return f"It was trained on {frontal:,} frontal and {lateral:,} lateral views. "


def _limits(report: Mapping[str, Any] | None) -> str:
    synthetic = report is not None and report["phantom"]
    data = "It was trained on synthetic chests and says nothing of real ones. " if synthetic else ""
    data += _views(report) if report else ""
    return f"""## Limits

{data}The results are those of one data set's test split: other
hospitals, devices and patients will give others, and it was never tested for fairness between groups of
patients. A pathology with few test images has a wide interval for that reason: do not rely on it. Masks
show where the network finds evidence, not where disease ends."""
