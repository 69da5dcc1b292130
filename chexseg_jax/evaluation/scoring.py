"""One image's scores by every definition, and the tables they add up to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16

from chexseg_jax.evaluation.chexlocalize import write_per_image, write_summary
from chexseg_jax.evaluation.metrics import (
    Counts,
    Interval,
    hits,
    iou_per_image,
    overlap,
    per_image_intervals,
    pooled_intervals,
    stack,
)
from chexseg_jax.images import letterbox_masks, unletterbox
from chexseg_jax.masks import pack, rles_of, unpack
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.training.data import Source

COUNTED: Final = tuple(field.name for field in fields(Counts))
"""What counts are made of, as they are named in files."""


@dataclass
class ImageScores:
    """One test image: counts at the letterbox and IoUs at native size by method, and hits."""

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
    """Returns one image's scores; the second reader competes where there is one."""
    truths = unpack(example["masks"]).astype(bool)
    height, width = truths.shape[:2]
    size = maps["run"].shape[0]
    framed_truths = letterbox_masks(example["masks"], size)
    at_frame = {name: values > thresholds[name] for name, values in maps.items()}
    enlarged = {name: unletterbox(values, height, width) for name, values in maps.items()}
    native = {name: values > thresholds[name] for name, values in enlarged.items()}
    if example["benchmarked"]:
        at_frame["human"] = letterbox_masks(example["reader_masks"], size) > 0
        native["human"] = unpack(example["reader_masks"]).astype(bool)
    return ImageScores(
        example["image_id"],
        example["annotated"],
        {name: overlap(masks, framed_truths) for name, masks in at_frame.items()},
        {
            name: {o: iou_per_image(truths, masks, true_pos_only=o) for o in (True, False)}
            for name, masks in native.items()
        },
        hits(enlarged["cam"], truths),
        pack(native["run"]),
    )


def record_of(score: ImageScores) -> dict[str, np.ndarray]:
    """Returns one image's scores and its prediction as named arrays."""
    rles = json.dumps(rles_of(score.prediction))
    arrays: dict[str, Any] = {
        "image_id": score.image_id,
        "annotated": score.annotated,
        "hit": score.hit,
    }
    arrays |= {
        f"ious-{name}-{o}": row for name, rows in score.ious.items() for o, row in rows.items()
    }
    for name, counts in score.counts.items():
        arrays |= {f"counts-{name}-{field}": values for field, values in vars(counts).items()}
    return {name: np.asarray(value) for name, value in {**arrays, "rles": rles}.items()}


def score_of(record: Mapping[str, np.ndarray]) -> ImageScores:
    """Returns the scores that `record_of` wrote, without the prediction."""
    names = [n.split("-")[1] for n in record if n.endswith("-intersections")]
    return ImageScores(
        str(record["image_id"]),
        bool(record["annotated"]),
        {name: Counts(*(record[f"counts-{name}-{field}"] for field in COUNTED)) for name in names},
        {name: {o: record[f"ious-{name}-{o}"] for o in (True, False)} for name in names},
        record["hit"],
        np.zeros((0, 0), np.uint16),
    )


def summarise(scores: Sequence[ImageScores]) -> dict[str, Any]:
    """Returns all tables: {"pooled", "mean", "per_image", "hit_rate", "n"} of a report."""
    pooled, means = {}, {}
    for name in ("run", "cam", "prior", "human"):
        counts = [score.counts[name] for score in scores if name in score.counts]
        if counts:
            rows, means[name] = pooled_intervals(stack(counts))
            pooled[name] = _named(rows, "iou")
    return {
        "pooled": pooled,
        "mean": {name: _as(interval, "iou") for name, interval in means.items()},
        "per_image": {
            f"true_pos_only_{only}": {
                name: _named(per_image_intervals(values_of(scores, name, only)[1]), "mean")
                for name in pooled
            }
            for only in (True, False)
        },
        "hit_rate": {"cam": _named(per_image_intervals(_hits(scores)), "mean")},
        "n": {
            name: sum(int(score.counts["run"].truths[k] > 0) for score in scores)
            for k, name in enumerate(PATHOLOGIES)
        },
    }


def values_of(
    scores: Sequence[ImageScores], name: str, only: bool
) -> tuple[list[str], Float[np.ndarray, "n k"]]:
    """Returns the images that count and their IoUs: with `only`, those an expert annotated."""
    rows = [s for s in scores if name in s.ious and (s.annotated or not only)]
    values = [score.ious[name][only] for score in rows]
    return [s.image_id for s in rows], np.array(values).reshape(-1, len(PATHOLOGIES))


def _hits(scores: Sequence[ImageScores]) -> Float[np.ndarray, "n k"]:
    rows = [score.hit for score in scores if score.annotated]
    return np.array(rows).reshape(-1, len(PATHOLOGIES))


def _as(interval: Interval, value: str) -> dict[str, Any]:
    row = asdict(interval)
    return {value: row.pop("mean"), **row}


def _named(intervals: Sequence[Interval], value: str) -> dict[str, Any]:
    return {name: _as(row, value) for name, row in zip(PATHOLOGIES, intervals, strict=True)}


def write_csvs(folder: Path, scores: Sequence[ImageScores]) -> None:
    """Writes CheXlocalize's two tables of this run, for either way of counting images."""
    for only in (True, False):
        where = folder / f"true_pos_only_{only}"
        where.mkdir(exist_ok=True)
        image_ids, values = values_of(scores, "run", only)
        write_per_image(where / "iou_results_per_cxr.csv", image_ids, values)
        write_summary(where / "iou_summary_results.csv", per_image_intervals(values))


def write_counts(path: Path, scores: Sequence[ImageScores]) -> None:
    """Writes every method's counts at its thresholds, an image a row: what a bootstrap needs."""
    arrays: dict[str, np.ndarray] = {"image_ids": np.array([score.image_id for score in scores])}
    for name in dict.fromkeys(name for score in scores for name in score.counts):
        images = [i for i, score in enumerate(scores) if name in score.counts]
        counts = stack([scores[i].counts[name] for i in images])
        arrays |= {f"{name}-{field}": values for field, values in vars(counts).items()}
        arrays[f"{name}-images"] = np.array(images)
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_counts(path: Path) -> dict[str, tuple[Int[np.ndarray, "n"], Counts]]:
    """Returns every method's counts, and which images of the test set they are of."""
    with np.load(path, allow_pickle=False) as file:
        names = [name.removesuffix("-images") for name in file.files if name.endswith("-images")]
        return {
            name: (file[f"{name}-images"], Counts(*(file[f"{name}-{field}"] for field in COUNTED)))
            for name in names
        }


def pseudo_mask_ious(
    hidden: Source,
    pseudo: Mapping[str, PseudoMaskSource],
    prior: Bool[np.ndarray, "s s k"],
) -> dict[str, dict[str, float]]:
    """Returns the pooled IoU of pseudo-masks, and of the prior, against masks they never saw.

    `prior` is drawn on every image; `prior_labels` only where a label is positive, as the pseudo-masks
    are. Uncertain findings count for nobody.
    """
    size = prior.shape[0]
    places = {kind: _places(source) for kind, source in pseudo.items()}
    counts: dict[str, list[Counts]] = {kind: [] for kind in (*pseudo, "prior", "prior_labels")}
    for index in range(len(hidden)):
        example = hidden[index]
        if any(example["image_id"] not in places[kind] for kind in pseudo):
            continue
        truths = letterbox_masks(example["masks"], size)
        positive = pathology_labels(example["labels"])
        for kind, source in pseudo.items():
            masks, known = source[places[kind][example["image_id"]]].letterboxed(size)
            counts[kind].append(overlap((masks > 0) & known, truths * known))
        sure = truths * (positive >= 0)
        counts["prior"].append(overlap(prior & (positive >= 0), sure))
        counts["prior_labels"].append(overlap(prior & (positive == 1), sure))
    return {
        kind: dict(zip(PATHOLOGIES, stack(some).pooled().iou()[0].tolist(), strict=True))
        for kind, some in counts.items()
        if some
    }


def _places(source: PseudoMaskSource) -> dict[str, int]:
    return {source[i].image_id: i for i in range(len(source))}
