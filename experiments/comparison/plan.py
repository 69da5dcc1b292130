"""What every row of a comparison would train on, with what settings, and for how many steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.stages.classifier import ClassifierConfig
from experiments.comparison.compare import Arm
from experiments.run.config import Config
from experiments.run.data import open_data


@dataclass(frozen=True)
class Sizes:
    """Numbers of images; the defaults are CheXpert's training set and the paper's expert masks."""

    train: int = 223_414
    expert_train: int = 147
    expert_val: int = 40


@dataclass(frozen=True)
class Training:
    """One training: its first weights, images, settings and steps."""

    start: str
    images: int
    batch_size: int
    epochs: float
    learning_rate: float
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.images:,} images from {self.start}, {self.steps:,} steps of {self.batch_size} "
            f"({self.epochs:g} epochs), learning rate {self.learning_rate:g}"
        )


@dataclass(frozen=True)
class Resolved:
    """What a row trains: classifiers, IRNet on at most all mapped images, and the segmenter."""

    rho: float
    classifier: Training
    encoder: Training | None
    maps: int
    irnet: Training | None
    pseudo_masks: int
    experts: int
    segmenter: Training


def sizes_of(config: Config) -> Sizes:
    """Return the sizes of prepared data, or CheXpert's without `--data-dir`."""
    if config.data_dir is None:
        return Sizes()
    data = open_data(config)
    return Sizes(len(data.train), len(data.expert_train), len(data.expert_val))


def resolve(config: Config, sizes: Sizes) -> Resolved:
    """Return what a run with these settings trains, on data of these sizes."""

    def fewer(count: int | None, total: int) -> int:
        return total if count is None else min(count, total)

    weak = fewer(config.weak, sizes.train)
    experts = fewer(min(config.experts, default=None), sizes.expert_train)
    maps, settings = fewer(config.maps, weak), config.segmenter
    rho = config.rho_of(experts)
    pseudo = fewer(settings.maps, maps) if rho < 1 else 0
    experts_used = experts if rho > 0 else 0

    def classifier(chosen: ClassifierConfig) -> Training:
        return Training(
            chosen.init or "random weights",
            weak,
            chosen.batch_size,
            chosen.epochs,
            chosen.learning_rate,
            classifier_stage.training_steps(chosen, weak),
        )

    irnet = Training(
        config.irnet.init or "the classifier",
        maps,
        config.irnet.batch_size,
        config.irnet.epochs,
        config.irnet.learning_rate,
        irnet_stage.training_steps(config.irnet, maps),
    )
    own = config.encoder != "classifier" and config.encoder_start == "classifier"
    return Resolved(
        rho,
        classifier(config.classifier),
        classifier(config.encoder_classifier) if own else None,
        maps if rho < 1 else 0,
        irnet if rho < 1 and config.pseudo == "irnet" else None,
        pseudo,
        experts_used,
        Training(
            f"{config.encoder} by {config.encoder_start}",
            pseudo + experts_used,
            settings.batch_size,
            settings.epochs,
            settings.learning_rate,
            segmenter_stage.training_steps(settings, experts, maps, rho),
        ),
    )


def plan(arms: Sequence[Arm], sizes: Sizes) -> str:
    """Format what each arm trains."""
    lines = [f"{sizes.train:,} training images, {sizes.expert_train} + {sizes.expert_val} expert"]
    for arm in arms:
        run, found = arm.config, resolve(arm.config, sizes)
        lines += [f"{arm.name}, rho {found.rho:g}", f"  classifier   {found.classifier}"]
        if found.encoder:
            lines.append(f"  {run.encoder:<11}  {found.encoder}")
        if found.rho < 1:
            maps = f"{found.maps:,} images, {found.pseudo_masks:,} of their pseudo-masks ({run.pseudo})"
            lines.append(f"  maps         {maps}")
        if found.irnet:
            lines.append(f"  irnet        {found.irnet}")
        lines += [
            f"  segmenter    {found.segmenter}",
            f"               {found.experts} expert masks; best by mean IoU of {run.segmenter.select} "
            "pathologies on expert-val",
        ]
        if run.warning:
            lines.append(f"  {run.warning}")
    return "\n".join(lines)
