"""The pipeline: the stages that one run needs, each in a folder of its own.

`run_pipeline` reads downwards. A stage whose folder is finished is reused; one that was stopped resumes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from chexseg_jax.inference.apply import jit_inference
from chexseg_jax.losses import policies_of
from chexseg_jax.models.spec import RESNET50, NetworkSpec
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.stage_folder import (
    RecordReader,
    StageFolder,
    digest,
    digest_file,
    open_stage_folder,
)
from chexseg_jax.stages import cams as cams_stage
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import evaluation as evaluation_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import pseudo_masks as pseudo_masks_stage
from chexseg_jax.stages import seeds as seeds_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.stages.classifier import ClassifierConfig
from chexseg_jax.stages.irnet import IrnetConfig
from chexseg_jax.stages.segmenter import SegmenterConfig
from chexseg_jax.training.checkpoints import restore, spec_of
from chexseg_jax.training.metrics_log import sending_to, sinks
from chexseg_jax.weights.convert import start_from
from chexseg_jax.weights.sources import WeightsFile, find_weights
from experiments.run.config import Config, PseudoSource
from experiments.run.data import Data

Settings = TypeVar("Settings", ClassifierConfig, IrnetConfig, SegmenterConfig)


@dataclass
class Run:
    """One run's finished stage folders; None for a stage that it did not need."""

    config: Config
    data: Data
    classifier: StageFolder | None = None
    cams: StageFolder | None = None
    seeds: StageFolder | None = None
    irnet: StageFolder | None = None
    pseudo_masks: StageFolder | None = None
    segmenter: StageFolder | None = None
    evaluation: StageFolder | None = None
    teacher: StageFolder | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Name, folder and seconds of every stage, in the order in which they ran or were reused."""

    @property
    def rho(self) -> float:
        """The probability that a training sample has expert masks."""
        return self.config.rho_of(len(self.data.expert_train))

    def stage(
        self,
        module: Any,
        settings: Any,
        inputs: Mapping[str, str],
        work: Callable[[StageFolder], None],
        name: str | None = None,
        role: str = "",
        **weights: WeightsFile | None,
    ) -> StageFolder:
        """Run a stage, or reuse its finished folder; its manifest tells where its weights are from.

        The list of stages tells its role, if it is not the usual one.
        """
        name = name or module.__name__.rpartition(".")[2]
        origins = {key: file.origin for key, file in weights.items() if file}
        version = module.VERSION
        folder = open_stage_folder(self.config.workdir, name, version, settings, inputs, origins)
        started, reused = time.monotonic(), folder.finished
        if not reused:
            with sending_to(*sinks(self.config.wandb)):
                work(folder)
        seconds = time.monotonic() - started
        shown = f"{name} ({role})" if role else name
        row = {"name": shown, "seconds": seconds, "reused": reused, "folder": folder.path.name}
        self.stages.append(row)
        return folder


def run_pipeline(config: Config, data: Data) -> Run:
    """Run the stages that the wanted result, `config.until`, needs."""
    run, until = Run(config, data), config.until
    rho = run.rho
    run.classifier = classifier = make_classifier(run, config.classifier, "classifier")
    if until == "classifier":
        return run
    encoder: Encoder | None = None
    if rho < 1 or until not in ("segmenter", "evaluation"):
        if config.needs_cams:
            run.cams = make_cams(run, classifier)
        if until == "cams":
            return run
        if config.pseudo == "irnet" or until in ("seeds", "irnet"):
            run.seeds = make_seeds(run, made(run.cams))
            if until == "seeds":
                return run
            run.irnet = make_irnet(run, classifier, run.seeds)
            if until == "irnet":
                return run
        if config.pseudo == "teacher":
            encoder = make_encoder(run, classifier)
            make_teacher(run, encoder)
        run.pseudo_masks = make_pseudo_masks(run, config.pseudo)
        if until == "pseudo_masks":
            return run
    encoder = encoder or make_encoder(run, classifier)
    run.segmenter = make_segmenter(run, encoder, run.pseudo_masks, rho)
    if until == "segmenter":
        return run
    run.evaluation = make_evaluation(run, classifier, run.segmenter)
    return run


def located(settings: Settings, init: WeightsFile | None) -> Settings:
    """Return a stage's settings with the local file of its initial weights."""
    return replace(settings, init=str(init.path)) if init else settings


def make_classifier(run: Run, settings: ClassifierConfig, name: str) -> StageFolder:
    """Train a classifier, after the teacher that a self-trained one needs."""
    config, data, teacher = run.config, run.data, None
    if "self-trained" in policies_of(settings.policy):
        teacher = make_classifier(run, settings.for_teacher(), f"{name}-teacher")
    inputs = {"train": data.train.fingerprint, "valid": data.valid.fingerprint}
    if teacher:
        inputs["teacher"] = teacher.fingerprint
    init = find_weights(settings.init, settings.network) if settings.init else None
    if init:
        inputs["init"] = init.sha256
    return run.stage(
        classifier_stage,
        {**asdict(settings), "image_size": config.image_size, "seed": config.seed},
        inputs,
        lambda folder: classifier_stage.run(
            located(settings, init),
            train=data.train,
            valid=data.valid,
            image_size=config.image_size,
            seed=config.seed,
            folder=folder,
            teacher=teacher.path if teacher else None,
            photometry=config.photometry,
        ),
        name,
        init=init,
    )


def make_cams(run: Run, classifier: StageFolder) -> StageFolder:
    """Compute the class activation maps of the weakly labelled images."""
    config, images = run.config, run.data.mapped
    return run.stage(
        cams_stage,
        {"image_size": config.image_size, "kind": config.cams.kind, "scales": config.cams.scales},
        {"classifier": classifier.fingerprint, "images": images.fingerprint},
        lambda folder: cams_stage.run(
            config.cams,
            classifier=restore(classifier.path),
            normalization=spec_of(classifier.path).normalization,
            images=images,
            image_size=config.image_size,
            folder=folder,
        ),
    )


def make_seeds(run: Run, cams: StageFolder) -> StageFolder:
    """Turn maps into CRF seeds."""
    config = run.config
    return run.stage(
        seeds_stage,
        {**asdict(config.seeds), "image_size": config.image_size},
        {"cams": cams.fingerprint},
        lambda folder: seeds_stage.run(
            config.seeds,
            cams=RecordReader(cams, "cams"),
            images=run.data.mapped,
            image_size=config.image_size,
            folder=folder,
        ),
    )


def make_irnet(run: Run, classifier: StageFolder, seeds: StageFolder) -> StageFolder:
    """Train IRNet on seeds."""
    config, named = run.config, run.config.irnet.init
    init = find_weights(named, RESNET50) if named else None
    classifier_spec = config.classifier.network_spec(config.image_size, config.photometry)
    spec = config.irnet.network_spec(classifier_spec)
    return run.stage(
        irnet_stage,
        {**asdict(config.irnet), "network": asdict(spec), "seed": config.seed},
        {
            "seeds": seeds.fingerprint,
            "backbone": init.sha256 if init else classifier.fingerprint,
        },
        lambda folder: irnet_stage.run(
            located(config.irnet, init),
            spec=spec,
            classifier=None if init else restore(classifier.path),
            seeds=RecordReader(seeds, "seeds"),
            images=run.data.mapped,
            seed=config.seed,
            folder=folder,
        ),
        init=init,
    )


def make_pseudo_masks(run: Run, source: PseudoSource) -> StageFolder:
    """Make pseudo-masks of the maps of a source, whose stages the run has made."""
    config, data, settings = run.config, run.data, run.config.pseudo_masks
    classifier, cams = made(run.classifier), run.cams
    network = {"irnet": run.irnet, "cam": None}.get(source, run.teacher)
    # A teacher has learned expert-train by heart: its thresholds are chosen elsewhere.
    experts = data.expert_train if source in ("irnet", "cam") else data.expert_val
    inputs = {"cams": cams.fingerprint} if cams else {"images": data.mapped.fingerprint}
    if network:
        inputs["irnet" if source == "irnet" else "teacher"] = network.fingerprint
    if settings.thresholds == "chosen":
        inputs["experts"] = experts.fingerprint
    normalization = spec_of(classifier.path).normalization

    def maps_of_source() -> pseudo_masks_stage.MapsOf:
        if network is None:
            return pseudo_masks_stage.cam_maps()
        model = restore(network.path)
        if source == "irnet":
            return pseudo_masks_stage.walked_maps(settings, model, normalization)
        return pseudo_masks_stage.teacher_maps(model, normalization)

    def cams_of_images() -> Callable[[Any], Any]:
        if source == "teacher":
            return lambda images: None
        infer = jit_inference(config.cams.maps(normalization), restore(classifier.path))
        return lambda images: infer(images)[0]

    def work(folder: StageFolder) -> None:
        maps, thresholds = maps_of_source(), None
        if settings.thresholds == "chosen":
            thresholds = pseudo_masks_stage.choose(
                settings, maps, cams_of_images(), experts, config.image_size
            )
        elif settings.thresholds == "fixed":
            fixed = settings.cam_threshold if source == "cam" else settings.threshold
            thresholds = np.full(len(PATHOLOGIES), fixed)
        pseudo_masks_stage.run(
            settings,
            maps=maps,
            thresholds=thresholds,
            soft=source == "teacher",
            cams=RecordReader(cams, "cams") if cams else None,
            images=data.mapped,
            image_size=config.image_size,
            folder=folder,
        )

    return run.stage(
        pseudo_masks_stage,
        {**asdict(settings), "image_size": config.image_size, "source": source},
        inputs,
        work,
        f"pseudo_masks-{source}",
    )


def made(folder: StageFolder | None) -> StageFolder:
    """Return the folder of a stage that must have been run.

    Raises:
        ValueError: it was not.
    """
    if folder is None:
        raise ValueError("this needs a stage that the run has not made: leave out --until")
    return folder


@dataclass(frozen=True)
class Encoder:
    """The segmenter's encoder: its specification, a fingerprint of its weights, and their source.

    `weights` is the file that it starts from instead of its training as a classifier.
    """

    spec: NetworkSpec
    fingerprint: str
    load: Callable[[], Any]
    weights: WeightsFile | None = None


def make_encoder(run: Run, classifier: StageFolder) -> Encoder:
    """Return the segmenter's encoder, trained as a classifier first if it is not the run's own."""
    config, start = run.config, run.config.encoder_start
    settings = config.encoder_classifier
    spec = settings.network_spec(config.image_size, config.photometry)
    spec = NetworkSpec(**{**vars(spec), "output_stride": 16})
    if start == "classifier":
        if config.encoder != "classifier":
            classifier = make_classifier(run, settings, f"classifier-{config.encoder}")
        return Encoder(spec, classifier.fingerprint, lambda: restore(classifier.path, spec))

    weights = None if start == "random" else find_weights(start, settings.network)

    def fresh() -> Any:
        model = spec.build(config.segmenter_seed_or_seed)
        if weights:
            start_from(weights.path, model, spec.normalization, head=False)
        return model

    known = weights.sha256 if weights else start
    return Encoder(spec, digest([known, asdict(spec)]), fresh, weights)


def make_segmenter(
    run: Run, encoder: Encoder, pseudo_masks: StageFolder | None, rho: float, role: str = ""
) -> StageFolder:
    """Train the segmenter on expert masks and pseudo-masks; without the latter if rho is 1."""
    config, data = run.config, run.data
    settings, seed = config.segmenter, config.segmenter_seed_or_seed
    if pseudo_masks is None:  # expert masks are the same targets of any kind: one training
        settings = replace(settings, targets="hard")
    spec = settings.network_spec(encoder.spec)
    inputs = {"encoder": encoder.fingerprint, "expert_val": data.expert_val.fingerprint}
    if rho > 0:
        inputs["expert_train"] = data.expert_train.fingerprint
    if pseudo_masks:
        inputs["pseudo_masks"] = pseudo_masks.fingerprint
    teacher = run.teacher if pseudo_masks and config.student == "teacher" else None
    if teacher:
        inputs["teacher"] = teacher.fingerprint
    init = find_weights(settings.init, spec.backbone) if settings.init else None
    if init:
        inputs["init"] = init.sha256
    experts, maps = len(data.expert_train), len(data.mapped)
    steps = segmenter_stage.training_steps(settings, experts, maps, rho)
    return run.stage(
        segmenter_stage,
        {
            **asdict(settings),
            "network": asdict(spec),
            "image_size": config.image_size,
            "training_steps": steps,
            "seed": seed,
            "rho": float(rho),  # 1 and 1.0 are one run
        },
        inputs,
        lambda folder: segmenter_stage.run(
            located(settings, init),
            spec=spec,
            encoder=None if teacher else encoder.load(),
            expert_train=data.expert_train,
            expert_val=data.expert_val,
            pseudo_masks=PseudoMaskSource(pseudo_masks) if pseudo_masks else None,
            images=data.mapped,
            rho=rho,
            seed=seed,
            folder=folder,
            teacher=teacher.path if teacher else None,
        ),
        role=role,
        init=init,
        encoder=encoder.weights,
    )


def make_teacher(run: Run, encoder: Encoder) -> None:
    """Train the teacher: on expert masks alone, then, in further rounds, as a student of itself."""
    config = run.config
    run.teacher = make_segmenter(run, encoder, None, 1.0, "teacher")
    for _ in range(config.rounds - 1):
        masks = make_pseudo_masks(run, config.pseudo)
        run.teacher = make_segmenter(run, encoder, masks, run.rho, "teacher")


def make_evaluation(run: Run, classifier: StageFolder, segmenter: StageFolder) -> StageFolder:
    """Evaluate the segmenter on the test set."""
    config, data = run.config, run.data
    thresholds, normalization = config.evaluation.thresholds, spec_of(classifier.path).normalization
    inputs = {
        "segmenter": segmenter.fingerprint,
        "classifier": classifier.fingerprint,
        "expert_train": data.expert_train.fingerprint,
        "expert_val": data.expert_val.fingerprint,
        "test": data.test.fingerprint,
    }
    teacher = run.teacher
    if teacher:
        inputs["teacher"] = teacher.fingerprint
    if thresholds:
        inputs["thresholds"] = digest_file(thresholds)
    return run.stage(
        evaluation_stage,
        {
            "image_size": config.image_size,
            "gated": config.evaluation.gated,
            "cams": (config.cams.kind, config.cams.scales),
        },
        inputs,
        lambda folder: evaluation_stage.run(
            config.evaluation,
            segmenter=restore(segmenter.path),
            teacher=restore(teacher.path) if teacher else None,
            classifier=restore(classifier.path),
            normalization=normalization,
            cams=config.cams.maps(normalization),
            expert_train=data.expert_train,
            expert_val=data.expert_val,
            test=data.test,
            image_size=config.image_size,
            folder=folder,
        ),
    )
