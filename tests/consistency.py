"""Compare a teacher's stored masks with consistency training: `python -m tests.consistency FLAGS`.

Both start from the teacher, a segmenter of expert masks alone, and take the same mix of samples. The
student of the pipeline learns the teacher's stored masks. With consistency (FixMatch, Sohn et al. 2020;
CutMix for segmentation, French et al. 2020) the network that is trained draws the masks of each step
itself: on the augmented image, gated by the image's labels, at the teacher's thresholds relative to each
map's peak; it learns them on the same image under another gamma, with a box of another image pasted in.
That is one forward pass more a step, so that three steps stand for four. Three seeds of the segmenter,
intervals over seeds and patients.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chexseg_jax.evaluation.metrics import Counts, hierarchical_intervals, patients_of
from chexseg_jax.inference.apply import MaskProbabilities, jit_inference
from chexseg_jax.losses import segmentation_loss
from chexseg_jax.pathologies import PATHOLOGIES, pathology_labels
from chexseg_jax.stages.segmenter import (
    augmented,
    counts_of,
    expert_dataset,
    selection_scores,
    training_steps,
)
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.data import Mapped, letterboxed, mix
from chexseg_jax.training.loop import adam, fit
from experiments.comparison.output import signed
from experiments.report.tables import format_interval, format_score
from experiments.run.cli import managed_run
from experiments.run.config import read_arguments
from experiments.run.data import Data, open_data
from experiments.run.pipeline import Run, made, run_pipeline
from tests.unet import counts_on_test

SEEDS = (17, 18, 19)
EQUAL = 3 / 4
"""Steps with consistency that cost as much as one without: four passes in place of three."""
HEART, MEDIASTINUM = map(PATHOLOGIES.index, ("Cardiomegaly", "Enlarged Cardiomediastinum"))


def objective(normalize: Any, loss: Any, thresholds: np.ndarray) -> Callable[..., Any]:
    """Return the loss of experts' masks where there are any, and of the network's own elsewhere."""

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        images, experts = batch["images"], batch["expert"][:, None, None, None]
        probs = jax.nn.sigmoid(jax.lax.stop_gradient(model(normalize(images))))
        peaks = jnp.maximum(probs.max((1, 2), keepdims=True), 1e-6)
        own = (probs / peaks > thresholds) & batch["positive"][:, None, None]
        own = own.at[..., MEDIASTINUM].set(own[..., MEDIASTINUM] | own[..., HEART])
        masks = jnp.where(experts, batch["masks"] > 127, own)
        weights = jnp.broadcast_to(batch["valid"][:, None, None], masks.shape)
        keys = jax.random.split(key, 4)
        gammas = 2 ** jax.random.uniform(keys[0], (len(images), 1, 1, 1), minval=-1, maxval=1)
        strong = 255 * (images.astype(jnp.float32) / 255) ** gammas
        pasted = boxes(keys[1], images.shape) & ~experts

        def other(arrays: Any) -> Any:
            return jnp.where(pasted, jnp.roll(arrays, 1, 0), arrays)

        strong = jnp.where(experts, images, other(strong)).astype(jnp.uint8)
        logits = model(normalize(strong), train=True, key=keys[3])
        return segmentation_loss(logits, other(masks), other(weights), loss), {}

    return loss_of


def boxes(key: Any, shape: Any) -> Any:
    """Return a random box of each image, a quarter to half of its sides."""
    count, height, width, _ = shape
    sides, places = jax.random.uniform(key, (2, count, 2, 1, 1))
    sizes = 0.25 + sides / 4
    starts = places * (1 - sizes)
    rows = jnp.arange(height)[None, :, None] / height - starts[:, 0]
    columns = jnp.arange(width)[None, None, :] / width - starts[:, 1]
    inside = (rows >= 0) & (rows < sizes[:, 0]) & (columns >= 0) & (columns < sizes[:, 1])
    return inside[..., None]


def train(run: Run, data: Data, scratch: Path) -> Any:
    """Go on with a run's teacher, with consistency; keep the best by mean IoU on expert-val."""
    config, settings = run.config, run.config.segmenter
    seed, size = config.segmenter_seed_or_seed, config.image_size
    normalize = spec_of(made(run.teacher).path).normalization
    chosen = made(run.pseudo_masks).manifest["thresholds"]
    thresholds = np.array([chosen[name] for name in PATHOLOGIES], np.float32)
    nothing = np.zeros((size, size, len(PATHOLOGIES)), np.uint8)

    def weak(_: int, example: Any) -> Any:
        labels = pathology_labels(example["labels"][None])[0]
        gates = {"positive": labels == 1, "valid": labels >= 0, "expert": np.bool_(False)}
        return {**example, "masks": nothing, **gates}

    def expert(_: int, example: Any) -> Any:
        every = np.ones(len(PATHOLOGIES), bool)
        return {**example, "positive": every, "valid": every, "expert": np.bool_(True)}

    experts = Mapped(expert_dataset(data.expert_train, size), expert)
    images = Mapped(letterboxed(data.mapped, size, cache=len(data.mapped)), weak)
    examples = augmented(settings, experts, seed), augmented(settings, images, seed + 1)
    validation = letterboxed(data.expert_val, size, cache=len(data.expert_val))
    best: list[Any] = [-1.0, None]

    def evaluate(model: Any) -> dict[str, float]:
        counts = counts_of(model, validation, len(validation), normalize, settings.batch_size)
        scores = selection_scores(counts.pooled(), settings.select)
        if scores["score"] > best[0]:
            best[:] = scores["score"], model
        return scores

    steps = training_steps(settings, len(data.expert_train), len(data.mapped), run.rho)
    steps = round(EQUAL * steps)
    fit(
        restore(made(run.teacher).path),
        mix(*examples, run.rho, seed),
        objective(normalize, settings.loss, thresholds),
        adam(settings.schedule, settings.learning_rate, steps),
        folder=scratch,
        name="consistency",
        batch_size=settings.batch_size,
        steps=steps,
        every=settings.every,
        key=jax.random.key(seed),
        evaluate=evaluate,
        average=settings.average,
    )
    return best[1]


def main() -> None:
    """Train both with every seed, and print a table."""
    base = read_arguments(str(__doc__), sys.argv[1:])
    found: dict[str, list[Counts]] = {"teacher": [], "stored masks": [], "consistency": []}
    with managed_run(base.workdir):
        data = open_data(base)
        for seed in SEEDS:
            run = run_pipeline(replace(base, segmenter_seed=seed), data)
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                consistent = train(run, data, Path(scratch))
            print(f"seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr)
            normalize = spec_of(made(run.teacher).path).normalization
            models = [restore(made(f).path) for f in (run.teacher, run.segmenter)]
            for counts, model in zip(found.values(), [*models, consistent], strict=True):
                infer = jit_inference(MaskProbabilities(normalize), model)
                counts.append(counts_on_test(infer, data, base.image_size))
    patients, stored = patients_of(data.test.image_ids), found["stored masks"]
    print("| | mean [95 %] | less stored masks, paired |\n| --- | --- | --- |")
    for name, counts in found.items():
        mean = hierarchical_intervals(counts, patients=patients)[1]
        less = hierarchical_intervals(counts, stored, patients=patients)[1]
        text = "" if name == "stored masks" else signed(less)
        print(f"| {name} | {format_score(mean.mean)} {format_interval(asdict(mean))} | {text} |")


if __name__ == "__main__":
    main()
