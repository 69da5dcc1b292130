"""Score test images by every definition of a metric, and summarize the scores in tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16

from chexseg_jax.evaluation.chexlocalize import write_per_image, write_summary
from chexseg_jax.evaluation.metrics import (
    Counts,
    Interval,
    hits,
    iou_of_areas,
    overlap,
    patients_of,
    per_image_intervals,
    pooled_intervals,
    stack,
)
from chexseg_jax.images import letterbox_masks, unletterbox_plane
from chexseg_jax.masks import rles_of, unpack_plane
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.training.data import Source


@dataclass
class ImageScores:
    """One test image: counts in the letterbox and IoUs at native size by method, and hits."""

    image_id: str
    annotated: bool
    counts: dict[str, Counts]
    ious: dict[str, dict[bool, Float[np.ndarray, "k"]]]
    hit: Float[np.ndarray, "k"]
    prediction: UInt16[np.ndarray, "h w"]


def score_image(
    example: dict[str, Any],
    maps: dict[str, Float[np.ndarray, "s s k"]],
    thresholds: dict[str, Float[np.ndarray, "k"]],
) -> ImageScores:
    """Score one image's maps, and the second reader's masks where there are any.

    At native size one pathology is handled at a time: ten planes would take a gigabyte.
    """
    size = maps["run"].shape[0]
    targets = letterbox_masks(example["masks"], size)
    masks = {name: values > thresholds[name] for name, values in maps.items()}
    if example["benchmarked"]:
        masks["human"] = letterbox_masks(example["reader_masks"], size) > 0
    height, width = example["masks"].shape
    areas = {name: np.zeros((3, len(PATHOLOGIES)), np.int64) for name in masks}
    hit = np.full(len(PATHOLOGIES), np.nan)
    prediction = np.zeros((height, width), np.uint16)
    for k in range(len(PATHOLOGIES)):
        target = unpack_plane(example["masks"], k)
        for name in masks:
            if name == "human":
                mask = unpack_plane(example["reader_masks"], k)
            else:
                native = unletterbox_plane(maps[name][..., k], height, width)
                mask = native > thresholds[name][k]
                if name == "cam":
                    hit[k] = hits(native[..., None], target[..., None])[0]
                if name == "run":
                    prediction |= mask.astype(np.uint16) << np.uint16(k)
            areas[name][:, k] = [np.count_nonzero(x) for x in (mask & target, mask, target)]
    return ImageScores(
        example["image_id"],
        example["annotated"],
        {name: overlap(mask, targets) for name, mask in masks.items()},
        {
            name: {only: iou_of_areas(*values, true_pos_only=only) for only in (True, False)}
            for name, values in areas.items()
        },
        hit,
        prediction,
    )


def record_of(score: ImageScores) -> dict[str, np.ndarray]:
    """Convert one image's scores and its prediction to named arrays."""
    rles = json.dumps(rles_of(score.prediction))
    arrays: dict[str, Any] = {
        "image_id": score.image_id,
        "annotated": score.annotated,
        "hit": score.hit,
    }
    arrays |= {
        f"ious-{name}-{only}": row
        for name, rows in score.ious.items()
        for only, row in rows.items()
    }
    for name, counts in score.counts.items():
        arrays |= {f"counts-{name}-{field}": pixels for field, pixels in vars(counts).items()}
    return {name: np.asarray(value) for name, value in {**arrays, "rles": rles}.items()}


def score_of(record: Mapping[str, np.ndarray]) -> ImageScores:
    """Convert named arrays from `record_of` to scores, without the prediction."""
    names = [n.split("-")[1] for n in record if n.endswith("-target_area")]
    return ImageScores(
        str(record["image_id"]),
        bool(record["annotated"]),
        {name: _counts_from_arrays(record, f"counts-{name}") for name in names},
        {name: {only: record[f"ious-{name}-{only}"] for only in (True, False)} for name in names},
        record["hit"],
        np.zeros((0, 0), np.uint16),
    )


def _counts_from_arrays(arrays: Mapping[str, np.ndarray], prefix: str) -> Counts:
    return Counts(*(arrays[f"{prefix}-{field.name}"] for field in fields(Counts)))


def summarize(scores: Sequence[ImageScores]) -> dict[str, Any]:
    """Compute a report's tables: {"pooled", "mean", "per_image", "hit_rate", "n", "sampled"}.

    All intervals are over images, resampled by patient; `sampled` counts both.
    """
    pooled, means = {}, {}
    for name in ("run", "teacher", "cam", "prior", "human"):
        those = [score for score in scores if name in score.counts]
        if those:
            counts = stack([score.counts[name] for score in those])
            rows, means[name] = pooled_intervals(counts, patients_of(s.image_id for s in those))
            pooled[name] = _rows(rows, "iou")

    def per_image(name: str, only: bool) -> dict[str, Any]:
        image_ids, values = values_of(scores, name, only)
        return _rows(per_image_intervals(values, patients_of(image_ids)), "mean")

    annotated = [score for score in scores if score.annotated]
    hit = np.array([score.hit for score in annotated]).reshape(-1, len(PATHOLOGIES))
    hit_rates = per_image_intervals(hit, patients_of(s.image_id for s in annotated))
    return {
        "pooled": pooled,
        "mean": {name: _row(interval, "iou") for name, interval in means.items()},
        "per_image": {
            f"true_pos_only_{only}": {name: per_image(name, only) for name in pooled}
            for only in (True, False)
        },
        "hit_rate": {"cam": _rows(hit_rates, "mean")},
        "n": {
            name: sum(int(score.counts["run"].target_area[k] > 0) for score in scores)
            for k, name in enumerate(PATHOLOGIES)
        },
        "sampled": {
            "images": len(scores),
            "patients": len(set(patients_of(s.image_id for s in scores))),
        },
    }


def values_of(
    scores: Sequence[ImageScores], name: str, only: bool
) -> tuple[list[str], Float[np.ndarray, "n k"]]:
    """Return image ids and IoUs; with `only`, of the images that an expert annotated."""
    rows = [s for s in scores if name in s.ious and (s.annotated or not only)]
    values = [score.ious[name][only] for score in rows]
    return [s.image_id for s in rows], np.array(values).reshape(-1, len(PATHOLOGIES))


def _row(interval: Interval, value: str) -> dict[str, Any]:
    """Convert an interval to a dict, with its mean under the name of the value."""
    row = asdict(interval)
    return {value: row.pop("mean"), **row}


def _rows(intervals: Sequence[Interval], value: str) -> dict[str, Any]:
    return {name: _row(row, value) for name, row in zip(PATHOLOGIES, intervals, strict=True)}


def write_csvs(folder: Path, scores: Sequence[ImageScores]) -> None:
    """Write CheXlocalize's two tables of this run, with and without `true_pos_only`.

    Their intervals resample images one by one, as CheXlocalize's do.
    """
    for only in (True, False):
        tables = folder / f"true_pos_only_{only}"
        tables.mkdir(exist_ok=True)
        image_ids, values = values_of(scores, "run", only)
        write_per_image(tables / "iou_results_per_cxr.csv", image_ids, values)
        write_summary(tables / "iou_summary_results.csv", per_image_intervals(values))


def write_counts(path: Path, scores: Sequence[ImageScores]) -> None:
    """Write every method's counts at its thresholds, an image a row, for a later bootstrap."""
    arrays: dict[str, np.ndarray] = {"image_ids": np.array([score.image_id for score in scores])}
    for name in dict.fromkeys(name for score in scores for name in score.counts):
        images = [i for i, score in enumerate(scores) if name in score.counts]
        counts = stack([scores[i].counts[name] for i in images])
        arrays |= {f"{name}-{field}": pixels for field, pixels in vars(counts).items()}
        arrays[f"{name}-images"] = np.array(images)
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_counts(path: Path) -> dict[str, tuple[Int[np.ndarray, "n"], Counts]]:
    """Read every method's counts, and the indices of their images in the test set."""
    with np.load(path, allow_pickle=False) as file:
        names = [name.removesuffix("-images") for name in file.files if name.endswith("-images")]
        return {name: (file[f"{name}-images"], _counts_from_arrays(file, name)) for name in names}


def pseudo_mask_ious(
    hidden: Source,
    pseudo: Mapping[str, PseudoMaskSource],
    prior: Bool[np.ndarray, "s s k"],
) -> dict[str, dict[str, float]]:
    """Compute the pooled IoU of pseudo-masks, and of the prior, against hidden expert masks.

    `prior` predicts every pathology in every image; `prior_labels` only those whose label is positive,
    as the pseudo-masks do. Uncertain findings are ignored for all.
    """
    size = prior.shape[0]
    indices = {kind: _indices(source) for kind, source in pseudo.items()}
    counts: dict[str, list[Counts]] = {kind: [] for kind in (*pseudo, "prior", "prior_labels")}
    for example in (hidden[i] for i in range(len(hidden))):
        image_id = example["image_id"]
        if any(image_id not in indices[kind] for kind in pseudo):
            continue
        targets = letterbox_masks(example["masks"], size)
        labels = pathology_labels(example["labels"])
        for kind, source in pseudo.items():
            masks, valid = source[indices[kind][image_id]].hard(size)
            counts[kind].append(overlap(masks & valid, targets * valid))
        certain = labels >= 0
        counts["prior"].append(overlap(prior & certain, targets * certain))
        counts["prior_labels"].append(overlap(prior & (labels == 1), targets * certain))
    return {
        kind: dict(zip(PATHOLOGIES, stack(rows).pooled().iou()[0].tolist(), strict=True))
        for kind, rows in counts.items()
        if rows
    }


def _indices(source: PseudoMaskSource) -> dict[str, int]:
    return {source[i].image_id: i for i in range(len(source))}
