"""The model card of an export, from what the run has measured."""

from collections.abc import Mapping
from typing import Any

from experiments.report.tables import number

SPLITS = {
    "train": "weak labels",
    "valid": "the classifier's validation",
    "expert_train": "expert masks to learn from",
    "expert_val": "expert masks to choose thresholds on",
    "test": "expert masks to test on",
}
USES = {
    "segmenter": ("load_segmenter", "probabilities of ten pathologies, a pixel each"),
    "classifier": ("exports.load_classifier", "probabilities of fourteen observations"),
    "irnet": ("exports.load_irnet", "class boundaries on the grid of stride 4"),
}


def model_card(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """Returns the card, Markdown with the header that model hubs read.

    Args:
        config: the export's `config.json`.
        report: `report.json` of the run, which knows the data; without it only fingerprints are told.
    """
    parts = [_head(config), _use(config), _data(config, report), _figures(config), _limits(report)]
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

A {config["network"]["kind"]} with blocks of {", ".join(map(str, config["network"]["blocks"]))} layers,
trained as CheXseg (Gadgil, Endo, Wen, Ng, Rajpurkar, MIDL 2021) with chexseg-jax, seed
{settings["seed"]}. Weights at rest are {config["dtype"]}; versions:
{", ".join(f"{name} {value}" for name, value in config["versions"].items())}."""


def _use(config: Mapping[str, Any]) -> str:
    loader, gives = USES[config["kind"]]
    module, _, name = loader.rpartition(".")
    source = f"chexseg_jax.{module}" if module else "chexseg_jax"
    side = config["image_size"]
    mean, std = config["normalisation"]["mean"], config["normalisation"]["std"]
    return f"""## Use

```python
from {source} import {name}
network = {name}("this folder")
found = network(frames)  # uint8 frames, b x {side} x {side} x 1: {gives}
```

Frames are letterboxed to {side} x {side} pixels (long side scaled, centred, black around:
`chexseg_jax.images.letterbox`), grey, eight bits; they are normalised inside, by the mean {mean} and
standard deviation {std} of pixels on [0, 1]. `function.jax` needs only the packages `jax` and
`flatbuffers`."""


def _data(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    if not report:
        inputs = config["trained"]["inputs"].items()
        return "## Data\n\nFingerprints of what it was trained on:\n\n" + "\n".join(
            f"- {name}: `{value}`" for name, value in inputs
        )
    rows = [
        f"| {name} | {row['images']:,} | {SPLITS.get(name, 'masks that no stage sees')} "
        f"| `{row['fingerprint'][:12]}` |"
        for name, row in report["data"].items()
    ]
    kind = (
        "Synthetic chests, free of any licence: the network has never seen a radiograph."
        if report["phantom"]
        else "CheXpert and CheXlocalize, under the research use agreements of Stanford University "
        "that came with them; these weights were made from that data, and its terms hold for them."
    )
    return f"""## Data

{kind} Pseudo-masks: {report["pseudo"]}.

| split | images | for | fingerprint |
| --- | --- | --- | --- |
""" + "\n".join(rows)


def _figures(config: Mapping[str, Any]) -> str:
    if config["kind"] == "classifier":
        rows = [f"| {name} | {number(value)} |" for name, value in config["auroc"].items()]
        return "## Figures\n\n| observation | AUROC, validation |\n| --- | --- |\n" + "\n".join(
            rows
        )
    if "metrics" not in config:
        return ""
    pooled, mean = config["metrics"]["pooled"]["run"], config["metrics"]["mean"]["run"]
    rows = [
        f"| {name} | {_with_interval(row)} | {config['metrics']['n'][name]} "
        f"| {config['thresholds'][name]:.2f} | {config['gates'][name]:.2f} |"
        for name, row in pooled.items()
    ]
    return f"""## Figures

On the test split, IoU pooled over all images in the letterbox with 95 % bootstrap intervals over images;
mean {_with_interval(mean)}. Thresholds and gates were chosen on expert-val.

| pathology | IoU | images with it | threshold | gate |
| --- | --- | --- | --- | --- |
""" + "\n".join(rows)


def _with_interval(row: Mapping[str, float | None]) -> str:
    return f"{number(row['iou'])} [{number(row['lower'])}, {number(row['upper'])}]"


def _limits(report: Mapping[str, Any] | None) -> str:
    synthetic = report is not None and report["phantom"]
    seen = "It was trained on synthetic chests and says nothing of real ones. " if synthetic else ""
    return f"""## Limits

{seen}It knows frontal views only. Figures are of one data set's test split: other hospitals, devices and
patients will give others, and it was never tested for fairness between groups of patients. A pathology
with few test images has a wide interval for that reason: do not rely on it. Masks show where the network
finds evidence, not where disease ends."""
