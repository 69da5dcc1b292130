"""Compare kinds of class activation maps of one classifier: `python -m tests.maps`.

Takes the flags of `python -m experiments.chexseg`; phantoms only, whose hidden masks are the judge. Maps
are masked by the image's labels. Thresholds, relative to each map's maximum, are chosen on expert-train.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import letterboxed, ordered_batches
from experiments.run.config import read_arguments
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


def measure(infer: Callable[..., Any], source: Any, size: int) -> tuple[Counts, np.ndarray]:
    """Return counts of every image at every threshold, and hits: 1, 0, or NaN without the finding."""
    counts: list[Counts] = []
    hits: list[np.ndarray] = []
    for batch, number in ordered_batches(letterboxed(source, size), BATCH):
        cams, _ = infer(batch["images"])
        content = content_mask(jnp.asarray(batch["images"]))
        maps = np.asarray(upsample_cams(jnp.asarray(cams), content))[:number]
        positive = (pathology_labels(batch["labels"])[:number] == 1)[:, None, None]
        masks = batch["masks"][:number] * positive
        counts += map(count, threshold_bins(maps * positive), masks)
        flat = masks.reshape(number, -1, masks.shape[-1])
        peaks = maps.reshape(flat.shape).argmax(1)
        hit = np.take_along_axis(flat, peaks[:, None], 1)[:, 0].astype(float)
        hits.append(np.where(flat.any(1), hit, np.nan))
    return stack(counts), np.concatenate(hits)


def judge(infer: Callable[..., Any], data: Data, size: int) -> tuple[float, float]:
    """Return the pooled IoU and the hit rate of maps on hidden masks, at thresholds of expert-train."""
    assert data.hidden is not None, "only phantoms have hidden masks"
    chosen = pseudo_mask_thresholds(measure(infer, data.expert_train, size)[0], 8)
    counts, hits = measure(infer, data.hidden, size)
    rows = np.abs(THRESHOLDS[:, None] - chosen).argmin(0)
    ious = counts.pooled().iou()[rows, np.arange(len(rows))]
    return mean_of(ious), mean_of(np.nanmean(hits, 0))


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
            kinds[f"{kind} at {', '.join(map(str, scales))}"] = Cams(normalize, kind, scales)
    print("| maps | pooled IoU | hit rate | seconds |\n| --- | --- | --- | --- |")
    for name, kind in kinds.items():
        started, infer = time.monotonic(), jit_inference(kind, model)
        iou, rate = judge(infer, data, size)
        print(f"| {name} | {iou:.3f} | {rate:.3f} | {time.monotonic() - started:.0f} |")


if __name__ == "__main__":
    main()
