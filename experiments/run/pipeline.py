"""The seven stages in order, each with its inputs and its folder."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from chexseg_jax.losses import policies_of
from chexseg_jax.models.spec import NORMALIZATIONS
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.stage_folder import (
    Records,
    StageFolder,
    digest,
    digest_file,
    open_stage_folder,
)
from chexseg_jax.stages import cams as localize_stage
from chexseg_jax.stages import classifier as classify_stage
from chexseg_jax.stages import evaluation as evaluate_stage
from chexseg_jax.stages import irnet as relate_stage
from chexseg_jax.stages import pseudo_masks as label_stage
from chexseg_jax.stages import seeds as seed_stage
from chexseg_jax.stages import segmenter as segment_stage
from chexseg_jax.training.metrics_log import sending_to, sinks
from chexseg_jax.weights.convert import start_from
from experiments.run.config import Config
from experiments.run.data import Data


def _described(settings: classify_stage.ClassifierConfig) -> dict[str, Any]:
    """Returns which network a backbone is: its checkpoint is to be opened without the run."""
    kept = ("network", "policy", "output_stride", "pixels")
    return {name: asdict(settings)[name] for name in kept}


class Run:
    """The stages of one run, in order; each property is a stage's finished folder."""

    def __init__(self, config: Config, data: Data) -> None:
        """Runs nothing yet."""
        self.config, self.data = config, data
        self.rows: list[dict[str, Any]] = []
        self.sinks = sinks(config.wandb)

    def _stage(
        self,
        module: Any,
        settings: Any,
        inputs: Mapping[str, str],
        work: Callable[[StageFolder], None],
        name: str | None = None,
    ) -> StageFolder:
        """Returns a stage's folder, finished now or before."""
        name = name or module.__name__.rpartition(".")[2]
        folder = open_stage_folder(self.config.workdir, name, module.VERSION, settings, inputs)
        started, reused = time.monotonic(), folder.finished
        if not reused:
            with sending_to(*self.sinks):
                work(folder)
        seconds = time.monotonic() - started
        self.rows.append(
            {"name": name, "seconds": seconds, "reused": reused, "folder": folder.path.name}
        )
        return folder

    @cached_property
    def normalise(self) -> Any:
        """What the classifier's weights expect of pixels."""
        return NORMALIZATIONS[self.config.classify.pixels]

    def _classified(self, settings: classify_stage.ClassifierConfig, name: str) -> StageFolder:
        """Trains one classifier, and before it the teacher that a self-trained one needs."""
        taught = "self-trained" in policies_of(settings.policy)
        teacher = (
            self._classified(classify_stage.without_teacher(settings), f"{name}-teacher")
            if taught
            else None
        )
        return self._stage(
            classify_stage,
            {**asdict(settings), **self._scalars},
            {
                "train": self.data.train.fingerprint,
                "valid": self.data.valid.fingerprint,
                **({"teacher": teacher.fingerprint} if teacher else {}),
                **({"init": digest_file(settings.init)} if settings.init else {}),
            },
            lambda folder: classify_stage.run(
                settings,
                train=self.data.train,
                valid=self.data.valid,
                size=self.config.image_size,
                seed=self.config.seed,
                folder=folder,
                teacher=teacher.path if teacher else None,
            ),
            name,
        )

    @property
    def _scalars(self) -> dict[str, Any]:
        """What every stage depends on."""
        return {"image_size": self.config.image_size, "seed": self.config.seed}

    @cached_property
    def classify(self) -> StageFolder:
        """Images and weak labels to a classifier."""
        return self._classified(self.config.classify, "classify")

    @cached_property
    def classifier(self) -> Any:
        """The classifier."""
        return classify_stage.load_classifier(self.config.classify, self.classify.path)

    @cached_property
    def localize(self) -> StageFolder:
        """The classifier to maps."""
        return self._stage(
            localize_stage,
            {"image_size": self.config.image_size},
            {"classifier": self.classify.fingerprint, "images": self.data.train.fingerprint},
            lambda folder: localize_stage.run(
                self.config.localize,
                classifier=self.classifier,
                normalise=self.normalise,
                images=self.data.train,
                size=self.config.image_size,
                folder=folder,
            ),
        )

    @cached_property
    def seed(self) -> StageFolder:
        """Maps and images to seeds."""
        return self._stage(
            seed_stage,
            {**asdict(self.config.seeds), "image_size": self.config.image_size},
            {"cams": self.localize.fingerprint},
            lambda folder: seed_stage.run(
                self.config.seeds,
                cams=Records(self.localize, "cams"),
                images=self.data.train,
                size=self.config.image_size,
                folder=folder,
            ),
        )

    @property
    def related(self) -> tuple[Callable[[], Any], Any]:
        """What makes IRNet's backbone, and what that backbone expects of pixels."""
        settings = self.config.relate
        if settings.init:
            return relate_stage.constructor(), NORMALIZATIONS[settings.pixels]
        return classify_stage.constructor(self.config.classify), self.normalise

    @cached_property
    def relate(self) -> StageFolder:
        """Seeds and images to IRNet."""
        init = self.config.relate.init
        return self._stage(
            relate_stage,
            {
                **asdict(self.config.relate),
                **self._scalars,
                "backbone": None if init else _described(self.config.classify),
            },
            {
                "seeds": self.seed.fingerprint,
                "backbone": digest_file(init) if init else self.classify.fingerprint,
            },
            lambda folder: relate_stage.run(
                self.config.relate,
                backbone=relate_stage.constructor()() if init else self.classifier,
                normalise=self.related[1],
                seeds=Records(self.seed, "seeds"),
                images=self.data.train,
                size=self.config.image_size,
                seed=self.config.seed,
                folder=folder,
            ),
        )

    def labelled(self, kind: Literal["irnet", "cam"]) -> StageFolder:
        """Maps, and IRNet if it is to help, to pseudo-masks."""
        inputs = {"cams": self.localize.fingerprint}
        if kind == "irnet":
            inputs["irnet"] = self.relate.fingerprint

        def work(folder: StageFolder) -> None:
            irnet = None
            if kind == "irnet":
                irnet = relate_stage.load_irnet(self.relate.path, self.related[0])
            label_stage.run(
                self.config.label,
                irnet=irnet,
                normalise=self.related[1],
                cams=Records(self.localize, "cams"),
                images=self.data.train,
                size=self.config.image_size,
                folder=folder,
            )

        settings = {**asdict(self.config.label), "image_size": self.config.image_size}
        return self._stage(label_stage, settings, inputs, work, f"label-{kind}")

    @cached_property
    def label(self) -> StageFolder:
        """The pseudo-masks that the segmenter learns from."""
        return self.labelled(self.config.pseudo)

    @cached_property
    def encoder(self) -> tuple[str, Callable[[], Any]]:
        """The segmenter's encoder: a fingerprint, and what makes it as its training finds it."""
        start, trained = self.config.encoder_start, self.config.encoder_classify
        settings = replace(trained, output_stride=16)
        if start == "classifier":
            own = trained is self.config.classify
            folder = (
                self.classify
                if own
                else self._classified(trained, f"classify-{self.config.encoder}")
            )
            return folder.fingerprint, lambda: classify_stage.load_classifier(settings, folder.path)

        def fresh() -> Any:
            model = classify_stage.constructor(settings, self.config.of_segmenter)()
            if isinstance(start, Path):
                start_from(start, model, self.normalise, head=False)
            return model

        weights = digest_file(start) if isinstance(start, Path) else start
        return digest([weights, asdict(trained.network), trained.pixels]), fresh

    @cached_property
    def segment(self) -> StageFolder:
        """Expert masks, pseudo-masks and rho to a segmenter."""
        fingerprint, started = self.encoder
        init, seed = self.config.segment.init, self.config.of_segmenter
        return self._stage(
            segment_stage,
            {
                **asdict(self.config.segment),
                **self._scalars,
                "seed": seed,
                "rho": float(self.config.rho),  # 1 and 1.0 are one run
                "backbone": _described(self.config.encoder_classify),
            },
            {
                "encoder": fingerprint,
                "pseudo": self.label.fingerprint,
                "expert_train": self.data.expert_train.fingerprint,
                "expert_val": self.data.expert_val.fingerprint,
                **({"init": digest_file(init)} if init else {}),
            },
            lambda folder: segment_stage.run(
                self.config.segment,
                backbone=started(),
                normalise=self.normalise,
                expert_train=self.data.expert_train,
                expert_val=self.data.expert_val,
                pseudo=PseudoMaskSource(self.label),
                images=self.data.train,
                rho=self.config.rho,
                size=self.config.image_size,
                seed=seed,
                folder=folder,
            ),
        )

    @cached_property
    def segmenter(self) -> Any:
        """The segmenter."""
        settings = replace(self.config.encoder_classify, output_stride=16)
        backbone = classify_stage.constructor(settings)
        return segment_stage.restore_segmenter(self.config.segment, backbone, self.segment.path)

    @cached_property
    def evaluate(self) -> StageFolder:
        """The segmenter on the test set."""
        thresholds = self.config.evaluate.thresholds
        return self._stage(
            evaluate_stage,
            {"image_size": self.config.image_size, "gated": self.config.evaluate.gated},
            {
                "segmenter": self.segment.fingerprint,
                "test": self.data.test.fingerprint,
                **({"thresholds": digest_file(thresholds)} if thresholds else {}),
            },
            lambda folder: evaluate_stage.run(
                self.config.evaluate,
                segmenter=self.segmenter,
                classifier=self.classifier,
                normalise=self.normalise,
                expert_train=self.data.expert_train,
                expert_val=self.data.expert_val,
                test=self.data.test,
                size=self.config.image_size,
                folder=folder,
            ),
        )
