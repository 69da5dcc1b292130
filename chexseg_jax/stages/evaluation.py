"""Evaluate a segmenter on the test set, beside the location prior, the CAMs and a second reader.

Thresholds are chosen on expert-val, or on expert-train for a pathology that is not found there, as the
scarce ones are not in the paper's split; one that is found on neither has none, and its masks are empty.
A CAM competes as probability times map divided by its maximum, so that one threshold also decides
whether the finding is present. Gates for the segmenter's masks, by the classifier's probability, are
chosen on expert-val too, and applied if `gated`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from chexseg_jax.evaluation.chexlocalize import (
    read_thresholds,
    write_gates,
    write_predictions,
    write_thresholds,
)
from chexseg_jax.evaluation.metrics import Counts, count, overlap, stack, threshold_bins
from chexseg_jax.evaluation.scoring import (
    ImageScores,
    record_of,
    score_image,
    score_of,
    summarize,
    write_counts,
    write_csvs,
)
from chexseg_jax.evaluation.thresholds import Gates, best_gates, choose_thresholds
from chexseg_jax.images import Normalization, content_mask, letterbox_masks
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
    RecordReader,
    StageFolder,
    missing_shards,
    write_json,
    write_records,
)
from chexseg_jax.training.data import (
    Example,
    Source,
    Subset,
    letterboxed,
    network_input,
    ordered_batches,
)

VERSION = 4

Maps = Float[np.ndarray, "b s s k"]
Method = Callable[[UInt8[np.ndarray, "b s s 1"]], Maps]
"""Maps on [0, 1] of 8-bit images in the letterbox."""
Confidence = Callable[[UInt8[np.ndarray, "b s s 1"]], Float[np.ndarray, "b k"]]
"""The classifier's probability of each pathology in 8-bit images in the letterbox."""
Thresholds = dict[str, Float[np.ndarray, "k"]]
"""A method's threshold for each pathology, by the method's name."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How the test set is evaluated."""

    batch_size: int = 16
    threads: int = 8  # images scored at native size at once
    thresholds: Path | None = None
    """The segmenter's thresholds (the release's `thresholds.txt` or our CSV); chosen if not given."""
    gated: bool = False
    """Empty the masks of findings whose probability by the classifier is below the gate."""


def location_prior(source: Source, size: int) -> Maps:
    """Average each pathology's expert masks over the images where it is present."""
    total = np.zeros((size, size, len(PATHOLOGIES)))
    n_present = np.zeros(len(PATHOLOGIES))
    for index in range(len(source)):
        masks = letterbox_masks(source[index]["masks"], size)
        total += masks
        n_present += masks.any((0, 1))
    return (total / np.maximum(n_present, 1)).astype(np.float32)[None]


@dataclass(frozen=True)
class ProbableCams:
    """Class activation maps at the images' size, times the probability of the pathology."""

    cams: Cams

    def __call__(self, model: Any, images: UInt8[Array, "b s s 1"]) -> Float[Array, "b s s k"]:
        """Return the products."""
        maps, logits = self.cams(model, images)
        return upsample_cams(maps, content_mask(images)) * jax.nn.sigmoid(logits)[:, None, None]


def methods_of(
    segmenter: Any,
    classifier: Any,
    normalization: Normalization,
    prior: Maps,
    cams: Cams,
    teacher: Any | None,
) -> dict[str, Method]:
    """Return the methods to compare by name."""
    others = (
        {"teacher": jit_inference(MaskProbabilities(normalization), teacher)} if teacher else {}
    )
    return others | {
        "run": jit_inference(MaskProbabilities(normalization), segmenter),
        "cam": jit_inference(ProbableCams(cams), classifier),
        "prior": lambda images: np.repeat(prior, len(images), 0),
    }


def confidence_of(classifier: Any, normalization: Normalization) -> Confidence:
    """Return the classifier's probabilities of the ten pathologies as a function of images."""
    probs = jit_inference(ObservationProbabilities(normalization), classifier)
    return lambda images: probs(images)[:, OBSERVATION_OF_PATHOLOGY]


def gated(method: Method, confidence: Confidence, gates: Gates) -> Method:
    """Return a method whose maps are zero for findings below the gate."""
    return lambda images: method(images) * gates.passes(confidence(images))[:, None, None]


def count_methods(
    methods: Mapping[str, Method], source: Source, size: int, batch_size: int
) -> dict[str, Counts]:
    """Count each method's pixels at every threshold, summed over the images of a source."""
    counts: dict[str, list[Counts]] = {name: [] for name in methods}
    for batch, number in _shard_batches(source, size, batch_size):
        for name, method in methods.items():
            bins = threshold_bins(method(batch["images"])[:number])
            counts[name] += map(count, bins, batch["masks"][:number])
    return {name: all_gather(stack(rows), len(source)).pooled() for name, rows in counts.items()}


def choose_gates(
    method: Method,
    confidence: Confidence,
    thresholds: Float[np.ndarray, "k"],
    source: Source,
    size: int,
    batch_size: int,
) -> Gates:
    """Choose the best gates for a method's masks of a source at these thresholds."""
    counts: list[Counts] = []
    probs: list[np.ndarray] = []
    for batch, number in _shard_batches(source, size, batch_size):
        masks = method(batch["images"])[:number] > thresholds
        counts += map(overlap, masks, batch["masks"][:number])
        probs.append(confidence(batch["images"])[:number])
    gathered = all_gather(stack(counts), len(source))
    return best_gates(gathered, all_gather(np.concatenate(probs), len(source)))


def _shard_batches(source: Source, size: int, batch_size: int) -> Iterator[tuple[Any, int]]:
    shard = Subset(source, shard_for_process(len(source)))
    return ordered_batches(letterboxed(shard, size), batch_size)


def run(
    config: EvaluationConfig,
    *,
    segmenter: Any,
    classifier: Any,
    normalization: Normalization,
    cams: Cams,
    expert_train: Source,
    expert_val: Source,
    test: Source,
    image_size: int,
    folder: StageFolder,
    teacher: Any | None = None,
) -> None:
    """Write `metrics.json`, CheXlocalize's files for this run, and examples for the report."""
    prior = location_prior(expert_train, image_size)
    methods = methods_of(segmenter, classifier, normalization, prior, cams, teacher)
    counts = [
        count_methods(methods, source, image_size, config.batch_size)
        for source in (expert_val, expert_train)
    ]
    thresholds = {name: choose_thresholds([c[name] for c in counts]) for name in methods}
    if config.thresholds:
        thresholds["run"] = read_thresholds(config.thresholds)
    confidence = confidence_of(classifier, normalization)
    gates = choose_gates(
        methods["run"], confidence, thresholds["run"], expert_val, image_size, config.batch_size
    )
    if config.gated:
        methods["run"] = gated(methods["run"], confidence, gates)

    def score(index: int, maps: dict[str, Float[np.ndarray, "s s k"]]) -> dict[str, np.ndarray]:
        return record_of(score_image(test[index], maps, thresholds))

    with ThreadPoolExecutor(config.threads) as threads:
        for path, indices in missing_shards(folder, "scores", len(test), "arrayrecord"):
            images = letterboxed(Subset(test, indices), image_size)
            records: list[dict[str, np.ndarray]] = []
            for batch, number in ordered_batches(images, config.batch_size):
                maps = {name: method(batch["images"]) for name, method in methods.items()}
                start = indices.start + len(records)
                rows = [{name: m[i] for name, m in maps.items()} for i in range(number)]
                records += threads.map(score, range(start, start + number), rows)
            write_records(path, records)
    wait_for_all(f"score {folder.path.name}")
    if jax.process_index() == 0:
        _write_results(config, test, methods, thresholds, gates, image_size, folder)
    folder.finish(images=len(test))


def _write_results(
    config: EvaluationConfig,
    test: Source,
    methods: dict[str, Method],
    thresholds: Thresholds,
    gates: Gates,
    size: int,
    folder: StageFolder,
) -> None:
    """Write metrics, tables, predictions and examples from the scores of all images."""
    records = RecordReader(folder, "scores")
    scores: list[ImageScores] = []

    def predictions() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for record in (records[i] for i in range(len(records))):
            scores.append(score_of(record))
            yield scores[-1].image_id, json.loads(str(record["rles"]))

    write_predictions(folder.path / "pred_segmentations.json", predictions())
    metrics = {
        **summarize(scores),
        "thresholds": dict(zip(PATHOLOGIES, thresholds["run"].tolist(), strict=True)),
        "prior_thresholds": dict(zip(PATHOLOGIES, thresholds["prior"].tolist(), strict=True)),
    }
    write_csvs(folder.path, scores)
    write_counts(folder.path / "counts.npz", scores)
    examples = (test[i] for i in _example_indices(scores))
    write_records(
        folder.path / "examples-00000-of-00001.arrayrecord",
        [_example(e, methods, thresholds, size, config.batch_size) for e in examples],
    )
    write_thresholds(folder.path / "thresholds.csv", thresholds["run"])
    write_gates(folder.path / "gates.csv", gates)
    write_json(folder.path / "metrics.json", metrics)


def _example_indices(scores: Sequence[ImageScores]) -> list[int]:
    """Return the best, the median and the worst test image of each pathology."""
    ious = np.array([score.ious["run"][False] for score in scores])
    is_present = np.array([score.counts["run"].target_area > 0 for score in scores])
    indices: list[int] = []
    for k in range(len(PATHOLOGIES)):
        images = np.flatnonzero(is_present[:, k])
        ranked = images[np.argsort(-ious[images, k], kind="stable")]
        indices += [int(ranked[i]) for i in (0, len(ranked) // 2, -1)] if len(ranked) else []
    return list(dict.fromkeys(indices))


def _example(
    example: Example,
    methods: Mapping[str, Method],
    thresholds: Thresholds,
    size: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Return one image for the report: bitmasks in the letterbox, and the IoUs."""
    image = network_input(example, size)
    images = np.repeat(image[None], batch_size, 0)
    layers = {name: pack(methods[name](images)[0] > thresholds[name]) for name in ("run", "cam")}
    targets = letterbox_masks(example["masks"], size)
    layers |= {"expert": pack(targets > 0)}
    if example["benchmarked"]:
        layers["reader"] = pack(letterbox_masks(example["reader_masks"], size) > 0)
    ious = overlap(unpack(layers["run"]) > 0, targets).iou()[0]
    return {"image_id": np.array(example["image_id"]), "image": image, "ious": ious, **layers}
