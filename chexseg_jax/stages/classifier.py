"""Images and weak labels to a classifier.

The release validates studies, taking the greatest logit of their views; here every image counts.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from chexseg_jax.evaluation.metrics import auroc, mean_of
from chexseg_jax.inference.apply import Logits, jit_inference
from chexseg_jax.losses import Policy, classification_loss, policies_of
from chexseg_jax.models.spec import NORMALIZATIONS, BackboneSpec, NormalizationName, build_backbone
from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS, OBSERVATIONS
from chexseg_jax.runtime.process_shards import all_gather, shard_for_process
from chexseg_jax.runtime.stage_folder import StageFolder
from chexseg_jax.training.checkpoints import restore
from chexseg_jax.training.data import (
    Source,
    Subset,
    letterboxed,
    ordered_batches,
    shuffled_repeated,
)
from chexseg_jax.training.loop import fit
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier's network and training; the defaults are the paper's (§3.3.1)."""

    network: BackboneSpec = field(default_factory=BackboneSpec)
    policy: Policy | Literal["per-finding"] = "ignore"
    """What an uncertain label means; `per-finding` is the CheXpert paper's choice."""
    output_stride: int = 32  # pixels per CAM cell: 32, or 16 with a dilated last block
    pixels: NormalizationName = "imagenet"
    init: Path | None = None
    """A PyTorch file to start from: torchvision, torchxrayvision, Lightning or MoCo."""
    init_head: bool = False
    """Whether to take that file's head too: a classifier of the same observations has one to give."""
    learning_rate: float = 1e-4
    batch_size: int = 16
    epochs: float = 3.0
    every: int = 300  # steps between validations: the paper's 4,800 images
    augment: float = 0.0


def constructor(config: ClassifierConfig, seed: int = 0) -> Any:
    """Returns a function that makes the classifier with fresh weights."""
    kinds = 3 if "3-class" in policies_of(config.policy) else 1
    outputs = kinds * len(OBSERVATIONS)
    key = jax.random.key(seed)
    return partial(build_backbone, config.network, outputs, key, output_stride=config.output_stride)


def load_classifier(config: ClassifierConfig, folder: Path) -> Any:
    """Returns the classifier that a run of this stage left in a folder."""
    return restore(folder, constructor(config))


def objective(config: ClassifierConfig, taught: nnx.GraphDef | None = None) -> Objective:
    """Returns the loss of a batch; the context is the state of a teacher, `taught` its structure."""
    policies, normalise = policies_of(config.policy), NORMALIZATIONS[config.pixels]

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        beliefs = None
        if taught is not None:
            teaching = nnx.merge(taught, context)
            beliefs = jax.nn.sigmoid(Logits(normalise)(teaching, batch["images"]))
        outputs = model(normalise(batch["images"]), train=True)
        return classification_loss(outputs, batch["labels"], policies, beliefs), {}

    return loss_of


def predict(
    model: Any, source: Source, config: ClassifierConfig, size: int
) -> tuple[Float[np.ndarray, "m n"], Int[np.ndarray, "m n"]]:
    """Returns the logits and the labels of every observation of every image."""
    run, logits, labels = jit_inference(Logits(NORMALIZATIONS[config.pixels]), model), [], []
    for batch, count in ordered_batches(
        letterboxed(Subset(source, shard_for_process(len(source))), size), config.batch_size
    ):
        logits.append(run(batch["images"])[:count])
        labels.append(batch["labels"][:count])
    every = len(source)
    return all_gather(np.concatenate(logits), every), all_gather(np.concatenate(labels), every)


def aurocs(logits: Float[np.ndarray, "m n"], labels: Int[np.ndarray, "m n"]) -> dict[str, float]:
    """Returns the AUROC of every observation over the images where its label is sure."""
    found = {}
    for k, name in enumerate(OBSERVATIONS):
        sure = (labels[:, k] == 1) | (labels[:, k] == 0)
        found[name] = auroc(logits[sure, k].astype(np.float64), labels[sure, k] == 1)
    return found


def run(
    config: ClassifierConfig,
    *,
    train: Source,
    valid: Source,
    size: int,
    seed: int,
    folder: StageFolder,
    teacher: Path | None = None,
) -> None:
    """Trains the classifier; the best by mean AUROC of the competition's observations is kept.

    Args:
        config: network and training.
        train: images with labels.
        valid: images with sure labels.
        size: the letterbox, pixels.
        seed: of weights and order.
        folder: where it goes.
        teacher: a folder of this stage, trained with uncertain labels ignored, whose predictions
            stand in for them where the policy is `self-trained`.
    """
    model = constructor(config, seed)()
    if config.init:
        start_from(config.init, model, NORMALIZATIONS[config.pixels], head=config.init_head)
    taught, context = None, None
    if teacher is not None:
        taught, context = nnx.split(load_classifier(without_teacher(config), teacher))

    def evaluate(model: Any) -> dict[str, float]:
        found = aurocs(*predict(model, valid, config, size))
        score = mean_of([found[name] for name in COMPETITION_OBSERVATIONS])
        every = mean_of(list(found.values()))
        named = {f"auroc/{name}": value for name, value in found.items() if value == value}
        return {"score": score if score == score else np.nan_to_num(every).item(), **named}

    steps = max(1, round(config.epochs * len(train) / config.batch_size))
    best = fit(
        model,
        shuffled_repeated(letterboxed(train, size), seed, strength=config.augment),
        objective(config, taught),
        optax.adam(config.learning_rate),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=steps,
        every=config.every,
        key=jax.random.key(seed),
        evaluate=evaluate,
        context=context,
    )
    found, labels = predict(load_classifier(config, folder.path), valid, config, size)
    counts = {name: int((labels[:, k] == 1).sum()) for k, name in enumerate(OBSERVATIONS)}
    folder.finish(**best, auroc=aurocs(found, labels), positives=counts, images=len(valid))


def without_teacher(config: ClassifierConfig) -> ClassifierConfig:
    """Returns the settings with which the teacher of a self-trained classifier is trained."""
    return replace(config, policy="ignore")
