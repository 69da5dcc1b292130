"""Compare kinds of class activation maps of one classifier: `python -m tests.maps`.

Takes the flags of `python -m experiments.chexseg`; phantoms only, whose hidden masks are the judge. Maps
are masked by the image's labels. Thresholds, relative to each map's maximum, are chosen on expert-train.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chexseg_jax.evaluation.metrics import THRESHOLDS, Counts, count, mean_of, stack, threshold_bins
from chexseg_jax.evaluation.thresholds import pseudo_mask_thresholds
from chexseg_jax.images import Normalization, content_fractions, content_mask
from chexseg_jax.inference.apply import PATHOLOGY_OUTPUTS, Cams, jit_inference
from chexseg_jax.pathologies import pathology_labels
from chexseg_jax.pseudolabels.gradcam import normalize_cams, upsample_cams
from chexseg_jax.stages.evaluation import location_prior
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import letterboxed, ordered_batches
from experiments.run.config import Config, read_arguments
from experiments.run.data import Data, open_data
from experiments.run.pipeline import run_pipeline

BATCH = 16


@dataclass(frozen=True)
class Other:
    """Kinds of maps that no stage uses, at one scale: `cam`, `grad-cam++` and `layer-cam`.

    CAM (Zhou et al. 2016) takes the head's weights; Grad-CAM++ (Chattopadhay et al. 2018) weighs a
    channel by its positive gradients; LayerCAM (Jiang et al. 2021) weighs every cell by its own.
    """

    normalize: Normalization
    kind: str

    def __call__(self, model: Any, images: Any) -> Any:
        """Return maps of the pathologies, and nothing in place of logits."""
        features = model.features(self.normalize(images)).astype(jnp.float32)
        content = content_fractions(content_mask(images), *features.shape[1:3])
        active = jax.nn.relu(features)
        if self.kind == "cam":
            kernel = model.head.kernel[...][:, PATHOLOGY_OUTPUTS]
            return normalize_cams(jax.nn.relu(active @ kernel) * (content > 0)[..., None]), None
        logits, vjp = jax.vjp(lambda maps: model.classify(maps, content), features)
        rows = jnp.eye(logits.shape[-1])[PATHOLOGY_OUTPUTS]

        def one(row: Any) -> Any:
            (gradient,) = vjp(jnp.broadcast_to(row[None], logits.shape))
            positive = jax.nn.relu(gradient)
            if self.kind == "layer-cam":
                return (positive * active).sum(-1)
            square, cube = gradient**2, gradient**3
            total = active.sum((1, 2), keepdims=True)
            alphas = square / jnp.maximum(2 * square + total * cube, 1e-12)
            return ((alphas * positive).sum((1, 2), keepdims=True) * active).sum(-1)

        maps = jnp.moveaxis(jax.vmap(one)(rows), 0, -1)
        return normalize_cams(jax.nn.relu(maps) * (content > 0)[..., None]), None


def cams_of(config: Config, classifier: Path) -> Callable[..., Any]:
    """Return the inference function of a run's class activation maps."""
    cams = config.cams.maps(spec_of(classifier).normalization)
    return jit_inference(cams, restore(classifier))


def upsampled(infer: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return an inference function's maps at the size of the images."""

    def maps_of(images: Any) -> Any:
        return upsample_cams(jnp.asarray(infer(images)[0]), content_mask(jnp.asarray(images)))

    return maps_of


def measure(maps_of: Callable[[Any], Any], source: Any, size: int) -> tuple[Counts, np.ndarray]:
    """Return counts of every image at every threshold, and hits: 1, 0, or NaN without the finding."""
    counts: list[Counts] = []
    hits: list[np.ndarray] = []
    for batch, number in ordered_batches(letterboxed(source, size), BATCH):
        maps = np.asarray(maps_of(batch["images"]))[:number]
        positive = (pathology_labels(batch["labels"])[:number] == 1)[:, None, None]
        masks = batch["masks"][:number] * positive
        counts += map(count, threshold_bins(maps * positive), masks)
        flat = masks.reshape(number, -1, masks.shape[-1])
        peaks = maps.reshape(flat.shape).argmax(1)
        hit = np.take_along_axis(flat, peaks[:, None], 1)[:, 0].astype(float)
        hits.append(np.where(flat.any(1), hit, np.nan))
    return stack(counts), np.concatenate(hits)


@dataclass(frozen=True)
class Judgement:
    """Pooled IoU on the masks that chose the thresholds, and IoU and hit rate on hidden masks."""

    experts: float
    hidden: float
    hits: float


def judge(maps_of: Callable[[Any], Any], data: Data, size: int) -> Judgement:
    """Judge maps by hidden masks, at thresholds that are chosen on expert-train."""
    assert data.hidden is not None, "only phantoms have hidden masks"
    experts = measure(maps_of, data.expert_train, size)[0]
    chosen = pseudo_mask_thresholds(experts, 8)
    rows = np.abs(THRESHOLDS[:, None] - chosen).argmin(0), np.arange(len(chosen))
    counts, hits = measure(maps_of, data.hidden, size)
    ious = [mean_of(some.pooled().iou()[rows]) for some in (experts, counts)]
    return Judgement(*ious, mean_of(np.nanmean(hits, 0)))


def main() -> None:
    """Train the classifier if need be, and print a table of the kinds."""
    config = replace(read_arguments(str(__doc__), sys.argv[1:]), until="classifier")
    data, size = open_data(config), config.image_size
    folder = run_pipeline(config, data).classifier
    assert folder is not None
    model, normalize = restore(folder.path), spec_of(folder.path).normalization
    kinds: dict[str, Any] = {
        kind: Other(normalize, kind) for kind in ("cam", "grad-cam++", "layer-cam")
    }
    for scales in ((1.0,), (1.0, 1.5), (1.0, 1.5, 2.0)):
        for kind in ("grad-cam", "cell-probability"):
            name = f"{kind} at {', '.join(map(str, scales))}"
            kinds[name] = Cams(normalize, kind, scales)
    maps = {name: upsampled(jit_inference(kind, model)) for name, kind in kinds.items()}
    prior = location_prior(data.expert_train, size)
    maps["location prior"] = lambda images: normalize_cams(np.repeat(prior, len(images), 0))
    last = maps[name]
    maps[f"location prior times {name}"] = lambda images: normalize_cams(last(images) * prior)
    print("| maps | pooled IoU | hit rate | seconds |\n| --- | --- | --- | --- |")
    for name, maps_of in maps.items():
        started = time.monotonic()
        found = judge(maps_of, data, size)
        seconds = time.monotonic() - started
        print(f"| {name} | {found.hidden:.3f} | {found.hits:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
