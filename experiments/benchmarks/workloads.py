"""Benchmark workloads: what each row runs, and at which sizes on which kind of device.

Trainings are the loop's own step with the stage's loss, optimizer and precision, on one batch again and
again. Weights are random: they do not change the speed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, UInt8

from chexseg_jax.images import IMAGENET
from chexseg_jax.inference.apply import Cams, MaskProbabilities
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.spec import DENSENET121, RESNET18, RESNET50, BackboneSpec, build_backbone
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import seeds_from_cams
from chexseg_jax.pseudolabels.random_walk import chebyshev, random_walk
from chexseg_jax.runtime.cpu import compiler_options, compute_dtype
from chexseg_jax.runtime.sharding import global_mesh, replicated, shard_global_batch, shard_local
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.stages.pseudo_masks import PseudoMasksConfig
from chexseg_jax.stages.seeds import STRIDE, SeedsConfig
from chexseg_jax.training.step import Batch, Objective, init_state, make_step
from experiments.benchmarks.roofline import Cost

RowName = Literal[
    "classifier",
    "cams",
    "seeds",
    "irnet",
    "random_walk",
    "segmenter",
    "predict",
    "loader",
    "end_to_end",
]
ROWS: Final[tuple[RowName, ...]] = get_args(RowName)
MAPS: Final = len(PATHOLOGIES)


class WalkSize(NamedTuple):
    """The sizes of one random walk."""

    side: int
    radius: int
    steps: int


@dataclass(frozen=True)
class Scale:
    """The sizes of all rows on a kind of device."""

    batches: dict[RowName, int]
    image_size: int = 320
    irnet_size: int = 512  # side of IRNet's training images
    radius: int = 10  # of IRNet's pairs
    walks: tuple[WalkSize, ...] = (
        WalkSize(80, 3, 8),
        WalkSize(80, 5, 256),
        WalkSize(128, 5, 256),
    )
    classifier: BackboneSpec = DENSENET121
    encoder: BackboneSpec = RESNET18  # of the segmenter, as in the paper's code
    irnet: BackboneSpec = RESNET50  # IRNet's backbone, as in the paper's code
    decoder: int = 256  # channels of the segmenter's decoder
    loader_images: int = 4096  # read in one repeat of the loader, at most
    end_to_end_images: tuple[int, int] = (512, 2560)  # of the short and the long run
    phantoms: int = 64  # different images that `loader` and `end_to_end` read

    def with_batch(self, batch: int | None) -> "Scale":
        """Return these sizes with another batch size in every row, unless it is None."""
        return self if batch is None else replace(self, batches=dict.fromkeys(ROWS, batch))


ACCELERATOR: Final = Scale(dict(zip(ROWS, (128, 128, 16, 16, 64, 64, 64, 128, 128), strict=True)))
CPU: Final = Scale(
    dict(zip(ROWS, (8, 8, 2, 2, 4, 8, 8, 8, 4), strict=True)),
    irnet_size=256,
    loader_images=1024,
    end_to_end_images=(4, 12),
)
"""Smaller batches, and smaller images for IRNet."""

TINY: Final = BackboneSpec(blocks=(1, 1, 1, 1), growth=8, width=8)
QUICK: Final = Scale(
    dict.fromkeys(ROWS, 8),
    image_size=64,
    irnet_size=64,
    radius=3,
    walks=(WalkSize(16, 3, 8),),
    classifier=TINY,
    encoder=TINY,
    irnet=TINY,
    decoder=8,
    loader_images=64,
    end_to_end_images=(8, 16),
    phantoms=8,
)
"""Everything in seconds: to test the command, not to measure."""


@dataclass(frozen=True)
class Case:
    """One row's sizes, as far as a PyTorch counterpart needs them."""

    row: RowName
    title: str
    images: int  # in a batch
    size: int  # side of the images or of the grid
    radius: int = 0
    steps: int = 0
    has_peer: bool = True


@dataclass(frozen=True)
class Workload:
    """A jitted function as a stage calls it, and its arguments on the devices."""

    case: Case
    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]
    is_training: bool = False  # the first argument is donated, and replaced by the first result
    dtype: DTypeLike = jnp.float32  # of most products
    flops: float | None = None  # of a call, where XLA does not count loops
    bytes_moved: float | None = None  # likewise


def training_step(
    case: Case,
    model: nnx.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    trained: nnx.filterlib.Filter = nnx.Param,
) -> Workload:
    """Return the training step of a model on one batch."""
    mesh = global_mesh()
    graph, state = init_state(model, optimizer, trained)
    state = jax.tree.map(jnp.copy, jax.device_put(state, replicated(mesh)))
    step = make_step(graph, objective, optimizer, jax.random.key(0), trained)
    signals = shard_global_batch(np.zeros(jax.local_device_count(), np.int32), mesh)
    arguments = (state, shard_global_batch(batch, mesh), np.int32(0), signals, None)
    return Workload(case, step, arguments, is_training=True, dtype=compute_dtype())


def inference_step(case: Case, apply: Callable[..., Any], model: nnx.Module) -> Workload:
    """Return what `jit_inference` compiles, without the transfers from and to the host."""
    graph, state = nnx.split(model)
    state = jax.device_put(state, replicated(global_mesh()))

    def run(state: Any, images: Any) -> Any:
        return apply(nnx.merge(graph, state), images)

    function = jax.jit(run, compiler_options=compiler_options())
    images = shard_local(random_images(case.images, case.size), global_mesh())
    return Workload(case, function, (state, images), dtype=compute_dtype())


def classifier_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield the classifier's training step."""
    images, size = scale.batches["classifier"], scale.image_size
    config = classifier_stage.ClassifierConfig(network=scale.classifier)
    labels = np.random.default_rng(2).integers(-2, 2, (images, len(OBSERVATIONS)), dtype=np.int8)
    yield training_step(
        Case("classifier", f"{network_name(scale.classifier)} training, {size} px", images, size),
        config.network_spec(size).build(),
        classifier_stage.objective(config),
        optax.adam(config.learning_rate),
        {"images": random_images(images, size), "labels": labels},
    )


def cams_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield Grad-CAM of ten pathologies."""
    size = scale.image_size
    case = Case("cams", f"Grad-CAM of {MAPS}, {size} px", scale.batches["cams"], size)
    model = build_backbone(scale.classifier, len(OBSERVATIONS), jax.random.key(0))
    yield inference_step(case, Cams(IMAGENET), model)


def seeds_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield the CRF of ten pathologies at both thresholds."""
    images, side = scale.batches["seeds"], scale.image_size // STRIDE
    config = SeedsConfig()
    seeds = partial(
        seeds_from_cams,
        config=config.crf,
        foreground=config.foreground,
        background=config.background,
        stride=STRIDE,
    )
    iterations = config.crf.iterations
    cost = crf_cost(images, side, iterations)
    arguments = (
        smooth_maps(images, side),
        random_images(images, side).astype(np.float32),
        np.ones((images, MAPS), np.int32),
    )
    yield Workload(
        Case("seeds", f"CRF of {MAPS}, {side} x {side}", images, side, steps=iterations),
        jax.jit(seeds),
        shard_local(arguments, global_mesh()),
        flops=cost.flops,
        bytes_moved=cost.bytes_moved,
    )


def crf_cost(images: int, side: int, iterations: int) -> Cost:
    """Return the operations and bytes of the CRF of ten pathologies at both thresholds.

    Operations, for each pair of cells: once the distance of three features and an exponential (counted
    as one), and in every iteration the product with twice ten maps. Bytes: those maps read and written
    in every iteration.
    """
    pairs, maps = float(side) ** 4, 2 * MAPS
    return Cost(
        flops=images * pairs * (10 + 2 * maps * iterations),
        bytes_moved=images * side**2 * 4.0 * 2 * maps * iterations,
    )


def irnet_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield IRNet's training step on the classifier, and on the release's backbone as there.

    The release trains the displacement head too, and so does the PyTorch counterpart.
    """
    images, size, radius = scale.batches["irnet"], scale.irnet_size, scale.radius
    optimizer = irnet_stage.optimizer(irnet_stage.IrnetConfig(), 1000)
    foreground = disc_masks(images, size // 4).astype(np.int8)
    ignored = np.random.default_rng(3).random(foreground.shape) < 0.2
    seeds = np.where(ignored, np.int8(-1), foreground)
    for network, stride in {scale.irnet: 16, scale.classifier: 32}.items():
        key = jax.random.key(0)
        backbone = build_backbone(network, 14, key, output_stride=stride, dilated=False)
        as_released = network == scale.irnet
        heads = "IRNet with displacements" if as_released else "IRNet"
        title = f"{heads} training on {network_name(network)}, radius {radius}, {size} px"
        yield training_step(
            Case("irnet", title, images, size, radius, has_peer=as_released),
            IRNet(backbone, rngs=nnx.Rngs(0), dtype=compute_dtype()),
            irnet_stage.objective(radius, IMAGENET, displacement=as_released),
            optimizer,
            {"images": random_images(images, size), "seeds": seeds},
            irnet_stage.HEADS if as_released else irnet_stage.BOUNDARY_HEAD,
        )


def random_walk_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield the random walk of ten maps at every size."""
    images, beta = scale.batches["random_walk"], PseudoMasksConfig().beta
    for side, radius, steps in scale.walks:
        walk = partial(random_walk, radius=radius, beta=beta, steps=steps)
        title = f"walk of {MAPS}, {side} x {side}, radius {radius}, {steps} steps"
        cost = walk_cost(images, side, radius, steps)
        boundaries = np.random.default_rng(4).random((images, side, side), np.float32) ** 4
        yield Workload(
            Case("random_walk", title, images, side, radius, steps),
            jax.jit(walk),
            shard_local((smooth_maps(images, side), boundaries), global_mesh()),
            flops=cost.flops,
            bytes_moved=cost.bytes_moved,
        )


def walk_cost(images: int, side: int, radius: int, steps: int) -> Cost:
    """Return the operations and bytes of the random walk of ten maps.

    Operations, in each product with the matrix: a difference, a product and a sum for each neighbour of
    each cell of each map. Bytes: each pair's affinity read, and the maps read and written, once a
    product. Eight steps are eight products, 256 are 90.
    """
    cells, pairs = float(images * side**2), len(paths(radius))
    products = len(chebyshev(steps)) - 1
    return Cost(
        flops=3 * cells * 2 * pairs * MAPS * products,
        bytes_moved=4 * cells * (pairs + 2 * MAPS) * products,
    )


def segmenter_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield the segmenter's training step on the release's encoder and on the classifier."""
    images, size = scale.batches["segmenter"], scale.image_size
    config = segmenter_stage.SegmenterConfig(width=scale.decoder)
    batch = {
        "images": random_images(images, size),
        "masks": disc_masks(images, size) * np.uint8(255),
        "valid": np.ones((images, MAPS), bool),
    }
    for network in dict.fromkeys((scale.encoder, scale.classifier)):
        title = f"DeepLabv3+ {network_name(network)} training, {size} px"
        yield training_step(
            Case("segmenter", title, images, size, has_peer=network == scale.encoder),
            deeplab(network, scale.decoder),
            segmenter_stage.objective(IMAGENET, config.loss),
            optax.adam(config.learning_rate),
            batch,
        )


def predict_workloads(scale: Scale) -> Iterator[Workload]:
    """Yield the segmenter's inference."""
    size = scale.image_size
    case = Case("predict", f"DeepLabv3+ masks, {size} px", scale.batches["predict"], size)
    yield inference_step(case, MaskProbabilities(IMAGENET), deeplab(scale.encoder, scale.decoder))


WORKLOADS: Final[dict[RowName, Callable[[Scale], Iterator[Workload]]]] = {
    "classifier": classifier_workloads,
    "cams": cams_workloads,
    "seeds": seeds_workloads,
    "irnet": irnet_workloads,
    "random_walk": random_walk_workloads,
    "segmenter": segmenter_workloads,
    "predict": predict_workloads,
}
"""The workloads of the rows on a device; `loader` and `end_to_end` read files instead."""


def deeplab(network: BackboneSpec, width: int) -> DeepLabV3Plus:
    """Build a segmenter with random weights and an encoder of output stride 16."""
    encoder = build_backbone(network, len(OBSERVATIONS), jax.random.key(0), output_stride=16)
    return DeepLabV3Plus(encoder, width=width, dtype=compute_dtype(), rngs=nnx.Rngs(0))


def network_name(network: BackboneSpec) -> str:
    """Return a network's usual name, which counts its layers with weights and its head."""
    per_block = 3 if network.bottleneck else 2
    layers = per_block * sum(network.blocks) + (5 if network.kind == "densenet" else 2)
    return f"{'DenseNet' if network.kind == 'densenet' else 'ResNet'}-{layers}"


def random_images(images: int, size: int) -> UInt8[np.ndarray, "b s s 1"]:
    """Return images of noise."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (images, size, size, 1), dtype=np.uint8)


def disc_masks(images: int, side: int) -> Bool[np.ndarray, "b s s k"]:
    """Return a disc at a random place for each pathology of each image."""
    generator = np.random.default_rng(1)
    centers = generator.uniform(0.2, 0.8, (2, images, 1, 1, MAPS)) * side
    radii = generator.uniform(0.1, 0.3, (images, 1, 1, MAPS)) * side
    ys, xs = np.mgrid[:side, :side][..., None, :, :, None]
    return (ys - centers[0]) ** 2 + (xs - centers[1]) ** 2 < radii**2


def smooth_maps(images: int, side: int) -> Float[np.ndarray, "b s s k"]:
    """Return a smooth map with a peak of 1 for each pathology of each image."""
    centers = np.random.default_rng(5).uniform(0, side, (2, images, 1, 1, MAPS))
    ys, xs = np.mgrid[:side, :side][..., None, :, :, None]
    squares = (ys - centers[0]) ** 2 + (xs - centers[1]) ** 2
    return np.exp(-squares / (side / 4) ** 2).astype(np.float32)
