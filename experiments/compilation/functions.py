"""Every function that a run compiles, with abstract arguments: shapes, types and the run's shardings.

Steps are the loop's own, with the stage's loss, optimizer and trained variables, over all devices of the
slice: batches are sharded, states are replicated. Inference functions are those that `jit_inference` and
`jit_sharded` compile, over the devices of one process. No weights are made.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chexseg_jax.inference.apply import (
    Boundaries,
    Logits,
    MaskProbabilities,
    ObservationProbabilities,
    jitted_apply,
)
from chexseg_jax.losses import policies_of
from chexseg_jax.models.spec import NetworkSpec
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.sharding import replicated
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import pseudo_masks as pseudo_masks_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.stages.classifier import ClassifierConfig
from chexseg_jax.stages.evaluation import ProbableCams
from chexseg_jax.stages.pseudo_masks import TeacherMaps
from chexseg_jax.stages.seeds import STRIDE, crf_seeds
from chexseg_jax.training.checkpoints import abstract, split_state
from chexseg_jax.training.data import check_divides
from chexseg_jax.training.loop import adam, check_accumulate
from chexseg_jax.training.step import Objective, init_state, make_step
from experiments.benchmarks.roofline import Cost
from experiments.benchmarks.workloads import crf_cost, walk_cost
from experiments.compilation.slices import Slice
from experiments.run.config import Config, StageName

SCHEDULE: Final = 1000
"""Steps of a training; they set the learning rates, which do not change what is compiled."""
Rows = Mapping[str, tuple[tuple[int, ...], Any]]
"""The shape of one example and its type, by name."""


@dataclass(frozen=True)
class PipelineFunction:
    """A function that a stage compiles."""

    stage: StageName
    name: str
    batch: int
    """The batch size that the settings ask for, on all of its devices together."""
    devices: int
    lower: Callable[[int], jax.stages.Lowered]
    """Lower it for a batch size; raises BatchError if that does not divide over the devices."""
    flag: str
    """The flag of its batch size."""
    is_training: bool = False
    cost: Callable[[int], Cost] | None = None
    """Operations and bytes of a batch on all devices, where XLA does not count loops."""
    accumulate: int = 1
    """Parts in which a training step takes its batch."""
    has_loops: bool = False
    """Whether XLA's counts leave out the repetitions of loops."""


def functions_of(config: Config, target: Slice) -> Iterator[PipelineFunction]:
    """Yield the functions of all stages, whichever of them the settings need."""
    networks = Networks(config)
    yield from classifier_functions(config, target, networks)
    yield from maps_functions(config, target, networks)
    yield from irnet_functions(config, target, networks)
    yield from pseudo_mask_functions(config, target, networks)
    yield from segmenter_functions(config, target, networks)
    yield from evaluation_functions(config, target, networks)


@dataclass(frozen=True)
class Networks:
    """The networks of a run and the shapes that go between them."""

    config: Config

    @property
    def classifier(self) -> NetworkSpec:
        """The classifier."""
        return self.config.classifier.network_spec(self.config.image_size, self.config.photometry)

    @property
    def irnet(self) -> NetworkSpec:
        """The IRNet."""
        return self.config.irnet.network_spec(self.classifier)

    @property
    def segmenter(self) -> NetworkSpec:
        """The segmenter, and its teacher."""
        encoder = self.config.encoder_classifier
        spec = encoder.network_spec(self.config.image_size, self.config.photometry)
        return self.config.segmenter.network_spec(spec)

    @property
    def images(self) -> Rows:
        """Images in the letterbox."""
        return {"images": ((self.config.image_size, self.config.image_size, 1), jnp.uint8)}

    def cams(self, dtype: Any) -> Rows:
        """Return the class activation maps, of the type in which they are stored or passed on."""
        return {"cams": (self._cams_shape, dtype)}

    @cached_property
    def _cams_shape(self) -> tuple[int, ...]:
        spec = self.classifier
        images = jax.ShapeDtypeStruct((1, *self.images["images"][0]), jnp.uint8)
        maps = self.config.cams.maps(spec.normalization)
        cams, _ = nnx.eval_shape(lambda pixels: maps(spec.build(), pixels), images)
        return tuple(cams.shape[1:])


def classifier_functions(
    config: Config, target: Slice, networks: Networks
) -> Iterator[PipelineFunction]:
    """Yield the step and the validation of the classifier, and of an encoder that is not it."""
    if "self-trained" in policies_of(config.classifier.policy):
        yield from _classifier(config.classifier.for_teacher(), networks, target, ", teacher")
    yield from _classifier(config.classifier, networks, target, "")
    if config.encoder != "classifier" and config.encoder_start == "classifier":
        yield from _classifier(config.encoder_classifier, networks, target, f", {config.encoder}")


def _classifier(
    settings: ClassifierConfig, networks: Networks, target: Slice, label: str
) -> Iterator[PipelineFunction]:
    spec = settings.network_spec(networks.config.image_size, networks.config.photometry)
    teacher_graph, context = None, None
    if "self-trained" in policies_of(settings.policy):
        teacher = settings.for_teacher().network_spec(networks.config.image_size)
        teacher_graph, context = nnx.split(nnx.eval_shape(teacher.build))
    yield training(
        "classifier",
        f"training step{label}",
        spec,
        target,
        classifier_stage.objective(settings, teacher_graph),
        adam(settings.schedule, settings.learning_rate, SCHEDULE),
        settings,
        {**networks.images, "labels": ((len(OBSERVATIONS),), jnp.int8)},
        context=context,
        average=settings.average,
    )
    yield inference(
        "classifier",
        f"validation{label}",
        spec,
        target,
        Logits(spec.normalization),
        settings.batch_size,
        networks.images,
    )


def maps_functions(config: Config, target: Slice, networks: Networks) -> Iterator[PipelineFunction]:
    """Yield the class activation maps, and the CRF that makes seeds of them."""
    spec = networks.classifier
    maps = config.cams.maps(spec.normalization)
    batch = config.cams.batch_size
    yield inference("cams", "class activation maps", spec, target, maps, batch, networks.images)
    side = config.image_size // STRIDE
    yield arrays_only(
        "seeds",
        "CRF",
        target,
        partial(crf_seeds, config=config.seeds),
        config.seeds.batch_size,
        {
            **networks.cams(jnp.float16),
            **networks.images,
            "labels": ((len(PATHOLOGIES),), jnp.int8),
        },
        cost=lambda batch: crf_cost(batch, side, config.seeds.crf.iterations),
    )


def irnet_functions(
    config: Config, target: Slice, networks: Networks
) -> Iterator[PipelineFunction]:
    """Yield IRNet's step."""
    spec, side = networks.irnet, config.image_size // STRIDE
    yield training(
        "irnet",
        "training step",
        spec,
        target,
        irnet_stage.objective(
            config.irnet.radius, spec.normalization, displacement=config.irnet.displacement
        ),
        irnet_stage.optimizer(config.irnet, SCHEDULE),
        config.irnet,
        {**networks.images, "seeds": ((side, side, len(PATHOLOGIES)), jnp.int8)},
        trained=irnet_stage.trained(config.irnet),
        has_loops=True,
    )


def pseudo_mask_functions(
    config: Config, target: Slice, networks: Networks
) -> Iterator[PipelineFunction]:
    """Yield the maps of every source of pseudo-masks."""
    settings, normalization = config.pseudo_masks, networks.classifier.normalization
    batch, side = settings.batch_size, config.image_size // STRIDE
    boundaries = {"boundaries": ((side, side), jnp.float32)}
    cams, images = networks.cams(jnp.float32), networks.images
    stage: StageName = "pseudo_masks"
    if settings.thresholds == "chosen":
        maps = config.cams.maps(normalization)
        name = "maps of images with expert masks"
        yield inference(stage, name, networks.classifier, target, maps, batch, images)
    yield arrays_only(
        stage, "maps", target, pseudo_masks_stage.upsampled, batch, {**cams, **images}
    )
    yield inference(
        stage, "boundaries", networks.irnet, target, Boundaries(normalization), batch, images
    )
    yield arrays_only(
        stage,
        "random walk",
        target,
        pseudo_masks_stage.walk(settings),
        batch,
        {**cams, **boundaries, **images},
        cost=lambda batch: walk_cost(batch, side, settings.radius, settings.steps),
    )
    yield inference(
        stage,
        "teacher's masks",
        networks.segmenter,
        target,
        TeacherMaps(normalization),
        batch,
        images,
    )


def segmenter_functions(
    config: Config, target: Slice, networks: Networks
) -> Iterator[PipelineFunction]:
    """Yield the step and the validation of the segmenter."""
    spec, side = networks.segmenter, config.image_size
    yield training(
        "segmenter",
        "training step",
        spec,
        target,
        segmenter_stage.objective(
            spec.normalization, config.segmenter.loss, config.segmenter.targets
        ),
        adam(config.segmenter.schedule, config.segmenter.learning_rate, SCHEDULE),
        config.segmenter,
        {
            **networks.images,
            "masks": ((side, side, len(PATHOLOGIES)), jnp.uint8),
            "valid": ((len(PATHOLOGIES),), jnp.bool_),
        },
        average=config.segmenter.average,
    )
    masks, batch = MaskProbabilities(spec.normalization), config.segmenter.batch_size
    yield inference("segmenter", "validation", spec, target, masks, batch, networks.images)


def evaluation_functions(
    config: Config, target: Slice, networks: Networks
) -> Iterator[PipelineFunction]:
    """Yield the masks, maps and probabilities that are evaluated."""
    classifier, images = networks.classifier, networks.images
    normalization, batch = classifier.normalization, config.evaluation.batch_size
    stage: StageName = "evaluation"
    masks, cams = MaskProbabilities(normalization), ProbableCams(config.cams.maps(normalization))
    yield inference(stage, "masks", networks.segmenter, target, masks, batch, images)
    yield inference(stage, "maps", classifier, target, cams, batch, images)
    probabilities = ObservationProbabilities(normalization)
    yield inference(stage, "probabilities", classifier, target, probabilities, batch, images)


def training(
    stage: StageName,
    name: str,
    spec: NetworkSpec,
    target: Slice,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    settings: Any,
    rows: Rows,
    *,
    trained: nnx.filterlib.Filter = nnx.Param,
    context: Any = None,
    average: float = 0.0,
    has_loops: bool = False,
) -> PipelineFunction:
    """Return the training step of a network; the settings hold its batch size and its parts."""
    mesh, accumulate = target.training, settings.accumulate
    whole = replicated(mesh)

    def lower(batch: int) -> jax.stages.Lowered:
        check_divides(batch, mesh.size)
        check_accumulate(stage, batch // mesh.size, accumulate)
        graph, _, _ = split_state(nnx.eval_shape(spec.build), trained)
        state = jax.eval_shape(lambda: init_state(spec.build(), optimizer, trained, average)[1])
        key = jax.random.key(0)
        step = make_step(graph, objective, optimizer, key, trained, accumulate, average)
        return step.lower(
            abstract(state, whole),
            abstract_rows(rows, batch, mesh),
            np.int32(0),
            abstract_rows({"signals": ((), jnp.int32)}, mesh.size, mesh)["signals"],
            abstract(context, whole),
        )

    return PipelineFunction(
        stage,
        name,
        settings.batch_size,
        mesh.size,
        lower,
        batch_flag(stage),
        is_training=True,
        accumulate=accumulate,
        has_loops=has_loops or accumulate > 1,
    )


def inference(
    stage: StageName,
    name: str,
    spec: NetworkSpec,
    target: Slice,
    function: Callable[..., Any],
    batch: int,
    rows: Rows,
) -> PipelineFunction:
    """Return an inference function of a network."""
    mesh = target.inference

    def lower(batch: int) -> jax.stages.Lowered:
        check_divides(batch, mesh.size)
        graph, state = nnx.split(nnx.eval_shape(spec.build))
        arrays = abstract_rows(rows, batch, mesh).values()
        return jitted_apply().lower(function, graph, abstract(state, replicated(mesh)), *arrays)

    return PipelineFunction(stage, name, batch, mesh.size, lower, batch_flag(stage))


def arrays_only(
    stage: StageName,
    name: str,
    target: Slice,
    function: Callable[..., Any],
    batch: int,
    rows: Rows,
    cost: Callable[[int], Cost] | None = None,
) -> PipelineFunction:
    """Return an inference function without a network."""
    mesh = target.inference

    def lower(batch: int) -> jax.stages.Lowered:
        check_divides(batch, mesh.size)
        return jax.jit(function).lower(*abstract_rows(rows, batch, mesh).values())

    return PipelineFunction(stage, name, batch, mesh.size, lower, batch_flag(stage), cost=cost)


def abstract_rows(rows: Rows, batch: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a batch of examples, sharded over a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in rows.items()
    }


def batch_flag(stage: StageName) -> str:
    """Return the flag of a stage's batch size."""
    return f"--{stage.replace('_', '-')}.batch-size"
