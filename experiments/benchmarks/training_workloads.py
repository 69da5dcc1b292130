"""The steps of the three trainings: the loop's own, with each stage's loss, optimiser and precision."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from chexseg_jax.images import IMAGENET
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.spec import BackboneSpec, build_backbone
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.runtime.sharding import global_mesh, replicated, shard_global_batch
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.training.step import Batch, Objective, init_state, make_step
from experiments.benchmarks.workloads import Case, Scale, Workload


def training(
    case: Case,
    model: nnx.Module,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    trained: nnx.filterlib.Filter = nnx.Param,
) -> Workload:
    """Returns a training's step on one batch, again and again, its state replaced each time."""
    over = global_mesh()
    structure, state = init_state(model, optimiser, trained)
    state = jax.tree.map(jnp.copy, jax.device_put(state, replicated(over)))
    advance = make_step(structure, objective, optimiser, jax.random.key(0), trained)
    asks = np.zeros(jax.local_device_count(), np.int32)
    arguments = (
        state,
        shard_global_batch(batch, over),
        np.int32(0),
        shard_global_batch(asks, over),
        None,
    )
    return Workload(case, advance, arguments, learns=True, dtype=compute_dtype())


def grey(images: int, size: int) -> np.ndarray:
    """Returns images of noise."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (images, size, size, 1), dtype=np.uint8)


def blobs(images: int, side: int, count: int = len(PATHOLOGIES)) -> np.ndarray:
    """Returns a disc for each pathology in each image, at a place of its own."""
    generator = np.random.default_rng(1)
    centres = generator.uniform(0.2, 0.8, (2, images, 1, 1, count)) * side
    radii = generator.uniform(0.1, 0.3, (images, 1, 1, count)) * side
    ys, xs = np.mgrid[:side, :side][..., None, :, :, None]
    return (ys - centres[0]) ** 2 + (xs - centres[1]) ** 2 < radii**2


def classifying(scale: Scale) -> Iterator[Workload]:
    """Gives the classifier's training."""
    images, size = scale.batches["classify"], scale.image_size
    config = classifier_stage.ClassifierConfig(network=scale.classifier)
    labels = np.random.default_rng(2).integers(-2, 2, (images, len(OBSERVATIONS)), dtype=np.int8)
    yield training(
        Case("classify", f"{_name(scale.classifier)} training, {size} px", images, size),
        classifier_stage.constructor(config)(),
        classifier_stage.objective(config),
        optax.adam(config.learning_rate),
        {"images": grey(images, size), "labels": labels},
    )


def relating(scale: Scale) -> Iterator[Workload]:
    """Gives IRNet's training on the release's backbone, and on the classifier."""
    images, size, radius = scale.batches["relate"], scale.irnet_size, scale.radius
    config = irnet_stage.IrnetConfig(radius=radius)
    inside = blobs(images, size // 4).astype(np.int8)
    seeds = np.where(np.random.default_rng(3).random(inside.shape) < 0.2, np.int8(-1), inside)
    for network, stride in {scale.irnet: 16, scale.classifier: 32}.items():
        key = jax.random.key(0)
        backbone = build_backbone(network, 14, key, output_stride=stride, dilated=False)
        name = f"IRNet training on {_name(network)}, radius {radius}, {size} px"
        yield training(
            Case("relate", name, images, size, radius, peer=network == scale.irnet),
            IRNet(backbone, rngs=nnx.Rngs(0), dtype=compute_dtype()),
            irnet_stage.objective(radius, IMAGENET),
            irnet_stage.descent(config, 1000),
            {"images": grey(images, size), "seeds": seeds},
            irnet_stage.HEADS,
        )


def segmenting(scale: Scale) -> Iterator[Workload]:
    """Gives the segmenter's training on the release's encoder, and on the classifier."""
    images, size = scale.batches["segment"], scale.image_size
    config = segmenter_stage.SegmenterConfig(width=scale.decoder)
    known = np.ones((images, len(PATHOLOGIES)), bool)
    masks = blobs(images, size).astype(np.uint8)
    for network in dict.fromkeys((scale.encoder, scale.classifier)):
        name = f"DeepLabv3+ {_name(network)} training, {size} px"
        yield training(
            Case("segment", name, images, size, peer=network == scale.encoder),
            segmenter(network, scale.decoder),
            segmenter_stage.objective(IMAGENET),
            optax.adam(config.learning_rate),
            {"images": grey(images, size), "masks": masks, "known": known},
        )


def segmenter(network: BackboneSpec, width: int) -> DeepLabV3Plus:
    """Returns a segmenter with fresh weights, its encoder at output stride 16."""
    encoder = build_backbone(network, len(OBSERVATIONS), jax.random.key(0), output_stride=16)
    return DeepLabV3Plus(encoder, width=width, dtype=compute_dtype(), rngs=nnx.Rngs(0))


def _name(network: BackboneSpec) -> str:
    """Returns the usual name: the layers with weights are counted, the head among them."""
    layer = 3 if network.bottleneck else 2
    count = layer * sum(network.blocks) + (2 + 3 if network.kind == "densenet" else 2)
    return f"{'DenseNet' if network.kind == 'densenet' else 'ResNet'}-{count}"
