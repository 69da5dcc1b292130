"""The settings of CheXseg as flags, and the presets that fill them in."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from chexseg_jax.models.pooling import Pooling
from chexseg_jax.models.spec import RESNET18, RESNET50, BackboneSpec
from chexseg_jax.photometry import Photometry
from chexseg_jax.stages.cams import CamsConfig
from chexseg_jax.stages.classifier import ClassifierConfig
from chexseg_jax.stages.evaluation import EvaluationConfig
from chexseg_jax.stages.irnet import IrnetConfig
from chexseg_jax.stages.pseudo_masks import PseudoMasksConfig
from chexseg_jax.stages.seeds import SeedsConfig
from chexseg_jax.stages.segmenter import SegmenterConfig
from chexseg_jax.training.metrics_log import installed
from experiments.run.cluster import Processes

StageName = Literal[
    "classifier", "cams", "seeds", "irnet", "pseudo_masks", "segmenter", "evaluation"
]

PseudoSource = Literal["irnet", "cam", "teacher"]

CHEXSEG_RHO = 0.9
"""The paper's share of samples with expert masks."""
TEACHER_MASKS = 20
"""How many expert masks all masks of a teacher together count as in the mix."""


@dataclass(frozen=True)
class Phantoms:
    """Number and size of the synthetic chests that are made when there is no data."""

    train: int = 2000
    valid: int = 234
    test: int = 200
    short_side: int = 128


@dataclass(frozen=True)
class Config:
    """CheXseg: segment ten findings, from image-level labels and a few expert masks."""

    rho: float | None = None
    """Probability that a training sample has expert masks: 0 weak, 1 full, 0.9 CheXseg. If not given:
    0.9, and with a teacher's masks n / (n + 20), n being the number of images with expert masks."""
    preset: Literal["phantom", "chexpert", "paper"] = "phantom"
    """phantom: minutes on a laptop; chexpert: one GPU or more; paper: the paper's numbers."""
    data_dir: tuple[Path, ...] | None = None
    """Where `python -m datasets` put the data, one folder or more; without it, synthetic chests."""
    workdir: Path = Path("runs")
    """Where every stage keeps its folder; safe to share between runs."""
    until: StageName = "evaluation"
    """The stage whose result is wanted; only the stages that it needs are run."""
    seed: int = 17
    """Of weights, order and mix; the release's."""
    segmenter_seed: int | None = None
    """The same for the segmenter alone, and its choice of pseudo-masks; `--seed` if not given."""
    image_size: int = 320
    """Side of the letterbox that every network sees, pixels; a multiple of 32."""
    views: Literal["all", "frontal"] = "all"
    """Which images of every split to use; an image whose id does not end in `lateral` is frontal."""
    photometry: Photometry = "as-is"
    """What is done to the grey levels of every image: nothing, histogram equalisation, a stretch of the
    1st to the 99th percentile, or that and a gamma that makes the median middle grey."""
    pseudo: PseudoSource = "irnet"
    """Pseudo-masks from IRNet's random walk, from the class activation maps alone, or from a teacher:
    the segmenter of the same expert masks at rho = 1."""
    student: Literal["teacher", "encoder"] = "teacher"
    """What a teacher's student starts from: the teacher, whose training it goes on with, or, as the
    teacher did, the encoder."""
    rounds: int = 1
    """Of a teacher: in each after the first, the student of the one before is the teacher."""
    experts: tuple[int, ...] = ()
    """How many images with expert masks to train on, drawn by patient and seed; all if none is given or
    there are fewer. Only `experiments.table` takes several, and draws the curve over them."""
    weak: int | None = None
    """How many weakly labelled images to use, sampled by the seed; all if not given."""
    maps: int | None = None
    """How many of these get maps and pseudo-masks, sampled by the seed; all if not given. The segmenter
    may be given fewer: `--segmenter.maps`."""
    encoder: Literal["classifier", "resnet18", "resnet50"] = "classifier"
    """The segmenter's encoder: the classifier itself, or a ResNet trained in the same way."""
    encoder_init: str | None = None
    """Weights for that ResNet to start from, as `--classifier.init` is for the classifier."""
    encoder_start: str = "classifier"
    """The encoder's initial weights: of its training as a `classifier`, `random`, `imagenet`,
    hf://OWNER/NAME[@REVISION], or a PyTorch file."""
    wandb: str | None = None
    """A Weights & Biases project to log numbers and overlays to; nothing is sent without it."""
    distributed: bool = False
    """Join the other processes of this run: one a host of a TPU pod, one a task of SLURM or Open MPI."""
    processes: Processes = field(default_factory=Processes)
    phantoms: Phantoms = field(default_factory=Phantoms)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cams: CamsConfig = field(default_factory=CamsConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    irnet: IrnetConfig = field(default_factory=IrnetConfig)
    pseudo_masks: PseudoMasksConfig = field(default_factory=PseudoMasksConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"--rho must lie in [0, 1], got {self.rho}")
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        if any(count < 1 for count in self.experts):
            raise ValueError(f"--experts must be at least 1, got {self.experts}")
        if self.image_size % 32 or self.image_size < 32:
            raise ValueError(f"--image-size must be a multiple of 32, got {self.image_size}")
        if self.processes.count is not None and not self.distributed:
            raise ValueError("--processes has no effect without --distributed")
        if self.wandb and not installed("wandb"):
            raise ValueError("--wandb needs a package: pip install 'chexseg-jax[wandb]'")

    @property
    def segmenter_seed_or_seed(self) -> int:
        """The segmenter's seed."""
        return self.seed if self.segmenter_seed is None else self.segmenter_seed

    def rho_of(self, experts: int) -> float:
        """Return rho for so many images with expert masks to train on."""
        if self.rho is not None:
            return self.rho
        if self.pseudo != "teacher":
            return CHEXSEG_RHO
        return round(experts / (experts + TEACHER_MASKS), 2)

    @property
    def needs_cams(self) -> bool:
        """Whether the wanted stage is made of class activation maps: a teacher's masks are not."""
        teacher = self.pseudo == "teacher" and self.pseudo_masks.gate == 0
        return not teacher or self.until in ("cams", "seeds", "irnet")

    @property
    def warning(self) -> str | None:
        """What makes a run with the preset `paper` another than the paper's, in a line."""
        starts = {"--classifier.init": self.classifier.init, "--encoder-init": self.encoder_init}
        if self.encoder == "classifier" or self.encoder_start != "classifier":
            del starts["--encoder-init"]
        missing = [f"{flag} imagenet" for flag, init in starts.items() if not init]
        if self.preset != "paper" or not missing:
            return None
        return (
            "NOT THE PAPER'S: networks that it starts from ImageNet weights start from random ones "
            f"here; add {' and '.join(missing)}"
        )

    @property
    def encoder_classifier(self) -> ClassifierConfig:
        """How the segmenter's encoder is trained as a classifier."""
        if self.encoder == "classifier":
            return self.classifier
        return replace(self.classifier, network=ENCODERS[self.encoder], init=self.encoder_init)


PAPER = Config(
    preset="paper",
    rho=CHEXSEG_RHO,
    encoder="resnet18",
    encoder_init="imagenet",
    maps=20_000,
    classifier=ClassifierConfig(init="imagenet"),
    irnet=IrnetConfig(init="imagenet"),
    segmenter=SegmenterConfig(maps=100, learning_rate=1e-3, epoch="used", select="common"),
)
"""The paper's numbers, of CheXseg and of expert masks alone; with rho = 0 see `WEAK_ROWS`."""

CHEXPERT = Config(
    preset="chexpert",
    pseudo="teacher",
    photometry="median",
    classifier=ClassifierConfig(
        pooling=Pooling("lse"),
        batch_size=64,
        learning_rate=2e-4,
        schedule="cosine",
        every=1000,
        augment=0.1,
    ),
    cams=CamsConfig(kind="cell-probability", scales=(1.0, 1.5, 2.0), batch_size=64),
    pseudo_masks=PseudoMasksConfig(thresholds="chosen"),
    segmenter=SegmenterConfig(
        batch_size=16,
        epochs=4.0,
        schedule="cosine",
        loss="dice+cross-entropy",
        augment=0.1,
        average=0.99,
        maps=2000,
    ),
)
"""Larger batches and light augmentation, for today's accelerators; the rest as phantoms decided it."""

PHANTOM = Config(
    preset="phantom",
    pseudo="teacher",
    experts=(20,),
    image_size=128,
    classifier=ClassifierConfig(
        network=BackboneSpec(blocks=(3, 4, 2, 1), growth=16, width=16),
        output_stride=16,
        pooling=Pooling("lse"),
        learning_rate=1.5e-3,
        schedule="cosine",
        batch_size=16,
        epochs=10.0,
        every=400,
        augment=0.3,
    ),
    cams=CamsConfig(kind="cell-probability", scales=(1.0, 1.5, 2.0)),
    # A network this small makes broad maps: higher thresholds than the paper's.
    seeds=SeedsConfig(foreground=0.6, background=0.2),
    irnet=IrnetConfig(radius=5, epochs=1.0, augment=0.1, every=200),
    pseudo_masks=PseudoMasksConfig(thresholds="chosen"),
    segmenter=SegmenterConfig(
        width=32,
        rates=(2, 4, 6),
        dropout=0.1,
        learning_rate=2e-3,
        schedule="cosine",
        loss="dice+cross-entropy",
        batch_size=16,
        epochs=3.0,
        augment=0.1,
        every=100,
    ),
)
"""A few minutes on two cores."""

Settings = TypeVar("Settings")
PRESETS = {"phantom": PHANTOM, "chexpert": CHEXPERT, "paper": PAPER}
WEAK_ROWS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"weak_maps": 20_000, "weak_learning_rate": 1e-4}
}
"""What tables and sweeps change, by preset, in rows that are trained on pseudo-masks alone."""
ENCODERS = {"resnet18": RESNET18, "resnet50": RESNET50}


def preset_of(given: list[str]) -> Config:
    """Return the preset that flags ask for; with data it is `chexpert`."""
    name = "phantom"
    if any(a.split("=")[0] in ("--data-dir", "--data_dir") for a in given):
        name = "chexpert"
    for flag, value in zip(given, [*given[1:], ""], strict=False):
        if flag == "--preset" or flag.startswith("--preset="):
            name = flag.partition("=")[2] or value
    return PRESETS.get(name, PHANTOM)


def read_flags(
    kind: type[Settings],
    name: str,
    default: Callable[[Config], Settings],
    description: str,
    arguments: list[str] | None = None,
) -> Settings:
    """Parse a command's flags, on the defaults of the preset that they name."""
    given = sys.argv[1:] if arguments is None else arguments
    return tyro.cli(
        kind,
        prog=f"python -m experiments.{name}",
        default=default(preset_of(given)),
        args=given,
        description=description,
    )


def read_arguments(description: str, arguments: list[str] | None = None) -> Config:
    """Parse the flags of a run."""
    return read_flags(Config, "chexseg", lambda preset: preset, description, arguments)
