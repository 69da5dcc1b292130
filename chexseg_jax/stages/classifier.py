"""Train a classifier of the fourteen observations on image-level labels.

The release validates studies by the maximum logit over their views; here every image counts.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from chexseg_jax.evaluation.metrics import auroc, mean_of
from chexseg_jax.inference.apply import Logits, classifier_outputs, jit_inference
from chexseg_jax.losses import Policy, classification_loss, policies_of
from chexseg_jax.models.pooling import GAP, Pooling
from chexseg_jax.models.spec import NORMALIZATIONS, BackboneSpec, NetworkSpec, NormalizationName
from chexseg_jax.pathologies import COMPETITION_OBSERVATIONS, OBSERVATIONS
from chexseg_jax.photometry import Photometry
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
from chexseg_jax.training.loop import Schedule, adam, fit
from chexseg_jax.training.step import Objective
from chexseg_jax.weights.convert import start_from

VERSION = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier's network and training; the defaults are the paper's (§3.3.1)."""

    network: BackboneSpec = field(default_factory=BackboneSpec)
    policy: Policy | Literal["per-finding"] = "ignore"
    """How uncertain labels are used; `per-finding` is the CheXpert paper's choice."""
    output_stride: int = 32  # pixels per CAM cell: 32, or 16 with a dilated last block
    pooling: Pooling = GAP
    normalization: NormalizationName = "imagenet"
    init: str | None = None
    """Weights to start from: a PyTorch file (torchvision, torchxrayvision, Lightning, MoCo-CXR),
    `imagenet`, or hf://OWNER/NAME[@REVISION]."""
    init_head: bool = False
    """Whether to load that file's head too, if it classifies the same observations."""
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    batch_size: int = 16
    accumulate: int = 1
    """Parts in which a step takes its batch, for want of memory; BatchNorm sees one part at a time."""
    epochs: float = 3.0
    every: int = 300  # steps between validations: the paper's 4,800 images
    augment: float = 0.0  # zoom within this share, shift within half of it
    exposure: float | None = None
    """Random contrast within this share and brightness within half of it; `augment` if not given."""
    gamma: float = 0.0  # random exponent of grey levels, from 2^-gamma to 2^gamma
    average: float = 0.0
    """Decay of a moving average of the weights, which is then the trained network; 0 for none."""

    def network_spec(self, image_size: int, photometry: Photometry = "as-is") -> NetworkSpec:
        """Return the specification of the classifier that these settings train."""
        classes = 3 if "3-class" in policies_of(self.policy) else 1
        return NetworkSpec(
            kind="classifier",
            backbone=self.network,
            outputs=classes * len(OBSERVATIONS),
            output_stride=self.output_stride,
            image_size=image_size,
            normalization=NORMALIZATIONS[self.normalization],
            photometry=photometry,
            pooling=self.pooling,
        )

    def for_teacher(self) -> "ClassifierConfig":
        """Return the settings that train the teacher of a self-trained classifier."""
        return replace(self, policy="ignore")


def objective(config: ClassifierConfig, teacher_graph: nnx.GraphDef | None = None) -> Objective:
    """Return the loss of a batch; a teacher's state comes as the objective's context."""
    policies, normalize = policies_of(config.policy), NORMALIZATIONS[config.normalization]

    def loss_of(model: Any, batch: Any, key: Any, context: Any) -> Any:
        teacher_probs = None
        if teacher_graph is not None:
            teacher = nnx.merge(teacher_graph, context)
            teacher_probs = jax.nn.sigmoid(Logits(normalize)(teacher, batch["images"]))
        outputs = classifier_outputs(model, batch["images"], normalize, train=True)
        return classification_loss(outputs, batch["labels"], policies, teacher_probs), {}

    return loss_of


def predict(
    model: Any, source: Source, spec: NetworkSpec, batch_size: int
) -> tuple[Float[np.ndarray, "m n"], Int[np.ndarray, "m n"]]:
    """Return the logits and the labels of every observation of every image."""
    run, logits, labels = jit_inference(Logits(spec.normalization), model), [], []
    shard = Subset(source, shard_for_process(len(source)))
    for batch, count in ordered_batches(letterboxed(shard, spec.image_size), batch_size):
        logits.append(run(batch["images"])[:count])
        labels.append(batch["labels"][:count])
    total = len(source)
    return all_gather(np.concatenate(logits), total), all_gather(np.concatenate(labels), total)


def aurocs(logits: Float[np.ndarray, "m n"], labels: Int[np.ndarray, "m n"]) -> dict[str, float]:
    """Return the AUROC of every observation over the images where its label is certain."""
    scores = {}
    for k, name in enumerate(OBSERVATIONS):
        certain = (labels[:, k] == 1) | (labels[:, k] == 0)
        scores[name] = auroc(logits[certain, k].astype(np.float64), labels[certain, k] == 1)
    return scores


def training_steps(config: ClassifierConfig, images: int) -> int:
    """Return the optimizer steps of a training."""
    return max(1, round(config.epochs * images / config.batch_size))


def run(
    config: ClassifierConfig,
    *,
    train: Source,
    valid: Source,
    image_size: int,
    seed: int,
    folder: StageFolder,
    teacher: Path | None = None,
    photometry: Photometry = "as-is",
) -> None:
    """Train the classifier; keep the best by mean AUROC of the competition's observations.

    Args:
        config: network and training.
        train: images with labels.
        valid: images with certain labels.
        image_size: side of the letterbox, pixels.
        seed: of weights and order.
        folder: where checkpoints, metrics and the manifest go.
        teacher: the folder of a classifier trained with uncertain labels ignored, whose predictions
            replace them where the policy is `self-trained`.
        photometry: of the sources, recorded with the network.
    """
    spec = config.network_spec(image_size, photometry)
    model = spec.build(seed)
    if config.init:
        start_from(Path(config.init), model, spec.normalization, head=config.init_head)
    teacher_graph, context = None, None
    if teacher is not None:
        teacher_graph, context = nnx.split(restore(teacher))

    def evaluate(model: Any) -> dict[str, float]:
        scores = aurocs(*predict(model, valid, spec, config.batch_size))
        score = mean_of([scores[name] for name in COMPETITION_OBSERVATIONS])
        overall = mean_of(list(scores.values()))
        named = {f"auroc/{name}": value for name, value in scores.items() if value == value}
        return {"score": score if score == score else np.nan_to_num(overall).item(), **named}

    steps = training_steps(config, len(train))
    best = fit(
        model,
        shuffled_repeated(
            letterboxed(train, image_size),
            seed,
            strength=config.augment,
            exposure=config.exposure,
            gamma=config.gamma,
        ),
        objective(config, teacher_graph),
        adam(config.schedule, config.learning_rate, steps),
        folder=folder.path,
        name=folder.stage,
        batch_size=config.batch_size,
        steps=steps,
        every=config.every,
        key=jax.random.key(seed),
        evaluate=evaluate,
        average=config.average,
        accumulate=config.accumulate,
        context=context,
    )
    model = restore(folder.path, spec)
    logits, labels = predict(model, valid, spec, config.batch_size)
    positives = {name: int((labels[:, k] == 1).sum()) for k, name in enumerate(OBSERVATIONS)}
    folder.finish(
        **best,
        network=asdict(spec),
        auroc=aurocs(logits, labels),
        positives=positives,
        images=len(valid),
    )
