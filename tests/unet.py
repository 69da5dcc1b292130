"""Compare the segmenter at rho = 1 with a plain U-Net and the location prior: `python -m tests.unet`.

Takes the flags of `python -m experiments.chexseg`. The U-Net (Ronneberger et al. 2015) has about the
segmenter's number of parameters and the same masks, loss, augmentation and steps; it starts from random
weights, the segmenter from the classifier. Thresholds are chosen alike, on expert-val.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chexseg_jax.evaluation.metrics import Counts, overlap, patients_of, pooled_intervals, stack
from chexseg_jax.evaluation.thresholds import choose_thresholds
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.models.layers import BatchNorm, Conv, average_pool, resize
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.stages.evaluation import count_methods, location_prior
from chexseg_jax.stages.segmenter import augmented, expert_dataset, objective, training_steps
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import letterboxed, ordered_batches
from chexseg_jax.training.loop import adam, fit
from experiments.run.config import read_arguments
from experiments.run.data import Data, open_data
from experiments.run.pipeline import run_pipeline

BATCH = 16


class Unit(nnx.Module):
    """Two 3 x 3 convolutions, each with a batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.convs = nnx.List([Conv(i, outputs, 3, rngs=rngs) for i in (inputs, outputs)])
        self.norms = nnx.List([BatchNorm(outputs) for _ in range(2)])

    def __call__(self, maps: Any, *, train: bool) -> Any:
        """Return maps on the same grid."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps = jax.nn.relu(norm(conv(maps), train=train))
        return maps


class UNet(nnx.Module):
    """Five levels down and up again, with concatenated skips."""

    def __init__(self, width: int, seed: int):
        rngs = nnx.Rngs(seed)
        widths = [width << level for level in range(5)]
        self.down = nnx.List([Unit(i, o, rngs) for i, o in zip([3, *widths], widths, strict=False)])
        self.up = nnx.List(
            [Unit(a + b, a, rngs) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)]
        )
        self.head = Conv(width, len(PATHOLOGIES), 1, bias=True, rngs=rngs)

    def __call__(self, images: Any, *, train: bool = False, key: Any = None) -> Any:
        """Return logits at the size of the images."""
        skips: list[Any] = []
        maps = images
        for level, unit in enumerate(self.down):
            maps = unit(average_pool(maps, 2) if level else maps, train=train)
            skips.append(maps)
        for unit, skip in zip(self.up, skips[-2::-1], strict=True):
            larger = resize(maps, *skip.shape[1:3], align_corners=False)
            maps = unit(jnp.concatenate([larger, skip], -1), train=train)
        return self.head(maps).astype(jnp.float32)


def parameters(model: Any) -> int:
    """Count a network's parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def train_unet(config: Any, data: Data, size: int, normalization: Any, folder: Path) -> Any:
    """Train the U-Net whose width comes nearest to `size` parameters; keep the last weights."""
    seed, settings = config.segmenter_seed_or_seed, config.segmenter
    width = min(range(4, 65, 2), key=lambda w: abs(parameters(UNet(w, seed)) - size))
    experts = expert_dataset(data.expert_train, config.image_size)
    steps = training_steps(settings, len(data.expert_train), len(data.train), 1.0)
    trained: list[Any] = []

    def keep(model: Any) -> dict[str, float]:
        trained[:] = [model]
        return {"score": 0.0}

    fit(
        UNet(width, seed),
        augmented(settings, experts, seed),
        objective(normalization, settings.loss),
        adam(settings.schedule, settings.learning_rate, steps),
        folder=folder,
        name="unet",
        batch_size=settings.batch_size,
        steps=steps,
        every=steps,
        key=jax.random.key(seed),
        evaluate=keep,
        average=settings.average,
    )
    print(f"U-Net of width {width}: {parameters(trained[0]):,} parameters, segmenter {size:,}")
    return trained[0]


def main() -> None:
    """Train both and print a table of pooled IoU on the test images."""
    config = replace(read_arguments(str(__doc__), sys.argv[1:]), rho=1.0, until="segmenter")
    data = open_data(config)
    folder = run_pipeline(config, data).segmenter
    assert folder is not None
    segmenter, normalization = restore(folder.path), spec_of(folder.path).normalization
    with tempfile.TemporaryDirectory() as scratch:
        unet = train_unet(config, data, parameters(segmenter), normalization, Path(scratch))
    size = config.image_size
    prior = location_prior(data.expert_train, size)
    methods = {
        "segmenter": jit_inference(MaskProbabilities(normalization), segmenter),
        "U-Net": jit_inference(MaskProbabilities(normalization), unet),
        "prior": lambda images: np.repeat(prior, len(images), 0),
    }
    rows = {name: score(infer, data, size) for name, infer in methods.items()}
    print("| pathology |", " | ".join(rows), "|")
    for k, pathology in enumerate(PATHOLOGIES):
        print(f"| {pathology} |", " | ".join(f"{ious[k]:.3f}" for ious, _ in rows.values()), "|")
    print("| mean |", " | ".join(text for _, text in rows.values()), "|")


def counts_on_test(infer: Any, data: Data, size: int) -> Counts:
    """Return the counts of the test images, at thresholds that are chosen on expert-val."""
    methods = {"run": infer}
    chosen = [count_methods(methods, s, size, BATCH) for s in (data.expert_val, data.expert_train)]
    thresholds = choose_thresholds([counts["run"] for counts in chosen])
    counts = [
        overlap(maps > thresholds, masks)
        for batch, number in ordered_batches(letterboxed(data.test, size), BATCH)
        for maps, masks in zip(infer(batch["images"])[:number], batch["masks"], strict=False)
    ]
    return stack(counts)


def score(infer: Any, data: Data, size: int) -> tuple[list[float], str]:
    """Return the pooled IoU of each pathology, and their mean as text with its interval over images."""
    patients = patients_of(data.test.image_ids)
    ious, mean = pooled_intervals(counts_on_test(infer, data, size), patients)
    return [i.mean for i in ious], f"{mean.mean:.3f} [{mean.lower:.3f}, {mean.upper:.3f}]"


if __name__ == "__main__":
    main()
