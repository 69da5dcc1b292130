"""A segmenter on the test set, beside the location prior, the maps and a second reader.

Thresholds are chosen on expert-val; where a pathology is never drawn there, as the paper's split has it
for scarce ones, on expert-train. The maps compete as probability times map divided by its maximum, so
that one threshold also says whether there is a finding at all. Gates for the segmenter's masks, by the
classifier's probability, are chosen on expert-val too, and used if asked for.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from chexseg_jax.evaluation.chexlocalize import (
    read_thresholds,
    write_gates,
    write_predictions,
    write_thresholds,
)
from chexseg_jax.evaluation.metrics import (
    Counts,
    best_thresholds,
    count,
    overlap,
    stack,
    threshold_bins,
)
from chexseg_jax.evaluation.scoring import (
    ImageScores,
    record_of,
    score_image,
    score_of,
    summarise,
    write_counts,
    write_csvs,
)
from chexseg_jax.evaluation.thresholds import Gates, best_gates
from chexseg_jax.images import Normalization, letterbox, letterbox_masks
from chexseg_jax.inference.apply import (
    Cams,
    MaskProbabilities,
    ObservationProbabilities,
    jit_inference,
)
from chexseg_jax.masks import pack, unpack
from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, PATHOLOGIES
from chexseg_jax.pseudolabels.gradcam import upsample_cams
from chexseg_jax.runtime.process_shards import all_gather, shard_for_process
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.runtime.stage_folder import (
    Records,
    StageFolder,
    missing_shards,
    write_json,
    write_records,
)
from chexseg_jax.training.data import Source, Subset, letterboxed, ordered_batches

VERSION = 3

Maps = Float[np.ndarray, "b s s k"]
Method = Callable[[UInt8[np.ndarray, "b s s 1"]], Maps]
Confidence = Callable[[UInt8[np.ndarray, "b s s 1"]], Float[np.ndarray, "b k"]]


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test set is read."""

    batch_size: int = 16
    threads: int = 8  # images compared at native size at once
    thresholds: Path | None = None
    """The segmenter's thresholds (a `thresholds.txt` of the release, or our CSV), not to be chosen."""
    gated: bool = False
    """Empty the segmenter's masks of findings that the classifier finds less likely than the gate."""


def prior_of(source: Source, size: int) -> Maps:
    """Returns the mean expert mask of each pathology where it is drawn: where findings tend to be."""
    total = np.zeros((size, size, len(PATHOLOGIES)))
    drawn = np.zeros(len(PATHOLOGIES))
    for index in range(len(source)):
        masks = letterbox_masks(source[index]["masks"], size)
        total += masks
        drawn += masks.any((0, 1))
    return (total / np.maximum(drawn, 1)).astype(np.float32)[None]


def methods(
    segmenter: Any, classifier: Any, normalise: Normalization, prior: Maps, size: int
) -> dict[str, Method]:
    """Returns what is compared: 8-bit images in the letterbox to maps on [0, 1]."""
    probabilities = jit_inference(MaskProbabilities(normalise), segmenter)
    cams = jit_inference(Cams(normalise), classifier)

    def mapped(images: UInt8[np.ndarray, "b s s 1"]) -> Maps:
        maps, logits = cams(images)
        sure = 1 / (1 + np.exp(-logits[:, None, None]))
        return np.asarray(upsample_cams(jnp.asarray(maps), size)) * sure

    def located(images: UInt8[np.ndarray, "b s s 1"]) -> Maps:
        return np.repeat(prior, len(images), 0)

    return {"run": probabilities, "cam": mapped, "prior": located}


def confidence_of(classifier: Any, normalise: Normalization) -> Confidence:
    """Returns what gives the classifier's probability of each pathology."""
    findings = jit_inference(ObservationProbabilities(normalise), classifier)

    def confidence(images: UInt8[np.ndarray, "b s s 1"]) -> Float[np.ndarray, "b k"]:
        return findings(images)[:, OBSERVATION_OF_PATHOLOGY]

    return confidence


def gated(method: Method, confidence: Confidence, gates: Gates) -> Method:
    """Returns a method whose maps are zero where the gate is shut."""

    def kept(images: UInt8[np.ndarray, "b s s 1"]) -> Maps:
        return method(images) * gates.open(confidence(images))[:, None, None]

    return kept


def thresholds_of(
    compared: Mapping[str, Method], expert_val: Source, expert_train: Source, size: int, batch: int
) -> dict[str, Float[np.ndarray, "k"]]:
    """Returns each method's threshold for each pathology; 0.5 for one that no expert ever drew."""
    chosen = {name: np.full(len(PATHOLOGIES), np.nan) for name in compared}
    for source in (expert_val, expert_train):
        counts: dict[str, list[Counts]] = {name: [] for name in compared}
        for frames, number in ordered_batches(
            letterboxed(Subset(source, shard_for_process(len(source))), size), batch
        ):
            for name, method in compared.items():
                bins = threshold_bins(method(frames["images"])[:number])
                counts[name] += map(count, bins, frames["masks"][:number])
        for name, some in counts.items():
            every = all_gather(stack(some), len(source))
            best = best_thresholds(every.pooled())
            chosen[name] = np.where(np.isnan(chosen[name]), best, chosen[name])
    return {name: np.nan_to_num(values, nan=0.5) for name, values in chosen.items()}


def gates_of(
    segment: Method,
    confidence: Confidence,
    thresholds: Float[np.ndarray, "k"],
    source: Source,
    size: int,
    batch: int,
) -> Gates:
    """Returns the gates that are best for a segmenter's masks of a source, at these thresholds."""
    counts: list[Counts] = []
    confidences: list[np.ndarray] = []
    for frames, number in ordered_batches(
        letterboxed(Subset(source, shard_for_process(len(source))), size), batch
    ):
        masks = segment(frames["images"])[:number] > thresholds
        counts += map(overlap, masks, frames["masks"][:number])
        confidences.append(confidence(frames["images"])[:number])
    every = all_gather(stack(counts), len(source))
    return best_gates(every, all_gather(np.concatenate(confidences), len(source)))


def run(
    config: EvaluationConfig,
    *,
    segmenter: Any,
    classifier: Any,
    normalise: Normalization,
    expert_train: Source,
    expert_val: Source,
    test: Source,
    size: int,
    folder: StageFolder,
) -> None:
    """Writes `metrics.json`, CheXlocalize's files for this run, and `examples` for a page to show."""
    prior = prior_of(expert_train, size)
    compared = methods(segmenter, classifier, normalise, prior, size)
    thresholds = thresholds_of(compared, expert_val, expert_train, size, config.batch_size)
    if config.thresholds:
        thresholds["run"] = read_thresholds(config.thresholds)
    confidence = confidence_of(classifier, normalise)
    gates = gates_of(
        compared["run"], confidence, thresholds["run"], expert_val, size, config.batch_size
    )
    if config.gated:
        compared["run"] = gated(compared["run"], confidence, gates)
    with ThreadPoolExecutor(config.threads) as pool:
        for path, part in missing_shards(folder, "scores", len(test), "arrayrecord"):
            images = letterboxed(Subset(test, part), size)
            found: list[dict[str, np.ndarray]] = []
            for frames, number in ordered_batches(images, config.batch_size):
                maps = {name: method(frames["images"]) for name, method in compared.items()}
                start = part.start + len(found)
                jobs = [
                    pool.submit(_read_and_score, test, start + i, _row(maps, i), thresholds)
                    for i in range(number)
                ]
                found += [record_of(job.result()) for job in jobs]
            write_records(path, found)
    wait_for_all(f"score {folder.path.name}")
    if jax.process_index() == 0:
        _put_together(config, test, compared, thresholds, gates, size, folder)
    folder.finish(images=len(test))


def _put_together(
    config: EvaluationConfig,
    test: Source,
    compared: dict[str, Method],
    thresholds: dict[str, Float[np.ndarray, "k"]],
    gates: Gates,
    size: int,
    folder: StageFolder,
) -> None:
    """Writes what all images' scores add up to."""
    records = Records(folder, "scores")
    scores: list[ImageScores] = []

    def scored() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for record in (records[i] for i in range(len(records))):
            scores.append(score_of(record))
            yield scores[-1].image_id, json.loads(str(record["rles"]))

    write_predictions(folder.path / "pred_segmentations.json", scored())
    metrics = {
        **summarise(scores),
        "thresholds": dict(zip(PATHOLOGIES, thresholds["run"].tolist(), strict=True)),
        "prior_thresholds": dict(zip(PATHOLOGIES, thresholds["prior"].tolist(), strict=True)),
    }
    write_csvs(folder.path, scores)
    write_counts(folder.path / "counts.npz", scores)
    shown = _gallery(scores)
    write_records(
        folder.path / "examples-00000-of-00001.arrayrecord",
        [_shown(test[i], compared, thresholds, size, config.batch_size) for i in shown],
    )
    write_thresholds(folder.path / "thresholds.csv", thresholds["run"])
    write_gates(folder.path / "gates.csv", gates)
    write_json(folder.path / "metrics.json", metrics)


def _row(maps: dict[str, Maps], index: int) -> dict[str, Float[np.ndarray, "s s k"]]:
    return {name: values[index] for name, values in maps.items()}


def _read_and_score(test: Source, index: int, maps: Any, thresholds: Any) -> ImageScores:
    return score_image(test[index], maps, thresholds)


def _gallery(scores: Sequence[ImageScores]) -> list[int]:
    """Returns the best, the middle and the worst test image of each pathology."""
    values = np.array([score.ious["run"][False] for score in scores])
    drawn = np.array([score.counts["run"].truths > 0 for score in scores])
    chosen: list[int] = []
    for k in range(len(PATHOLOGIES)):
        images = np.flatnonzero(drawn[:, k])
        ranked = images[np.argsort(-values[images, k], kind="stable")]
        chosen += [int(ranked[i]) for i in (0, len(ranked) // 2, -1)] if len(ranked) else []
    return list(dict.fromkeys(chosen))


def _shown(
    example: dict[str, Any],
    compared: dict[str, Method],
    thresholds: dict[str, Float[np.ndarray, "k"]],
    size: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Returns what a page shows of one image: bitmasks in the letterbox, and the IoUs."""
    image = letterbox(example["image"], size)
    images = np.repeat(image[None], batch_size, 0)
    layers = {name: pack(compared[name](images)[0] > thresholds[name]) for name in ("run", "cam")}
    truths = letterbox_masks(example["masks"], size)
    layers |= {"expert": pack(truths > 0)}
    if example["benchmarked"]:
        layers["reader"] = pack(letterbox_masks(example["reader_masks"], size) > 0)
    ious = overlap(unpack(layers["run"]) > 0, truths).iou()[0]
    return {"image_id": np.array(example["image_id"]), "image": image, "ious": ious, **layers}
