"""Every computation lowers for TPUs and GPUs, which needs neither, in bfloat16."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import export

from chexseg_jax.images import IMAGENET
from chexseg_jax.inference.apply import Boundaries, Cams, Logits, MaskProbabilities
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.spec import BackboneSpec, build_backbone
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.crf import CrfConfig, seeds_from_cams
from chexseg_jax.pseudolabels.random_walk import random_walk
from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.runtime.target import compiling_for
from chexseg_jax.stages import classifier as classifier_stage
from chexseg_jax.stages import irnet as irnet_stage
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.training.checkpoints import split_state
from chexseg_jax.training.step import make_step

SIDE, BATCH, FINDINGS = 32, 2, len(PATHOLOGIES)
DENSE = BackboneSpec(blocks=(1, 1, 1, 1), growth=4, width=8)
RESIDUAL = BackboneSpec("resnet", (1, 1, 1, 1), width=4)


@pytest.fixture(autouse=True)
def accelerator():
    """Build networks as for a TPU."""
    with compiling_for("tpu"):
        yield


def lowered(function, *shapes):
    """Return the StableHLO of a jitted function for both; raise if an operation has no lowering."""
    return export.export(function, platforms=["tpu", "cuda"])(*shapes).mlir_module()


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


IMAGES = shape(BATCH, SIDE, SIDE, 1, dtype=jnp.uint8)


def classifier(network=DENSE):
    return build_backbone(network, 14, jax.random.key(0), output_stride=16)


def irnet():
    return IRNet(classifier(RESIDUAL), rngs=nnx.Rngs(0), dtype=compute_dtype())


def segmenter():
    return DeepLabV3Plus(
        classifier(RESIDUAL),
        outputs=FINDINGS,
        width=8,
        rates=(1, 2, 3),
        dropout=0.5,
        dtype=compute_dtype(),
        rngs=nnx.Rngs(0),
    )


def adam():
    return optax.adam(1e-3)


TRAININGS = {
    "classifier": (
        classifier,
        lambda: classifier_stage.objective(classifier_stage.ClassifierConfig()),
        adam,
        nnx.Param,
        {"labels": shape(BATCH, 14, dtype=jnp.int8)},
    ),
    "irnet": (
        irnet,
        lambda: irnet_stage.objective(3, IMAGENET, displacement=True),
        lambda: irnet_stage.optimizer(irnet_stage.IrnetConfig(), 10),
        irnet_stage.HEADS,
        {"seeds": shape(BATCH, SIDE // 4, SIDE // 4, FINDINGS, dtype=jnp.int8)},
    ),
    "segmenter": (
        segmenter,
        lambda: segmenter_stage.objective(IMAGENET, "dice"),
        adam,
        nnx.Param,
        {
            "masks": shape(BATCH, SIDE, SIDE, FINDINGS, dtype=jnp.uint8),
            "valid": shape(BATCH, FINDINGS, dtype=bool),
        },
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_of_every_training_lowers(name):
    network, objective, optimizer, trained, targets = TRAININGS[name]
    graph, params, frozen = split_state(nnx.eval_shape(network), trained)
    opt_state = jax.eval_shape(optimizer().init, params)
    step = make_step(graph, objective(), optimizer(), jax.random.key(0), trained)
    text = lowered(
        step,
        {
            "params": params,
            "frozen": frozen,
            "opt_state": opt_state,
            "all_finite": shape(dtype=bool),
        },
        {"images": IMAGES, **targets},
        shape(dtype=jnp.int32),
        shape(1, dtype=jnp.int32),
        None,
    )
    assert "bf16" in text and "stablehlo.convolution" in text


@pytest.mark.parametrize(
    ("function", "network"),
    [
        (Logits, classifier),
        (Cams, classifier),
        (Boundaries, irnet),
        (MaskProbabilities, segmenter),
    ],
)
def test_every_inference_function_lowers(function, network):
    structure, state = nnx.split(nnx.eval_shape(network))

    def apply(state, images):
        return function(IMAGENET)(nnx.merge(structure, state), images)

    text = lowered(jax.jit(apply), state, IMAGES)
    assert "bf16" in text and "stablehlo.convolution" in text


def test_seeds_and_the_walk_lower():
    maps = shape(BATCH, 8, 8, FINDINGS)
    make = partial(seeds_from_cams, config=CrfConfig(), foreground=0.3, background=0.05, stride=4)
    images, labels = shape(BATCH, 8, 8, 1), shape(BATCH, FINDINGS, dtype=jnp.int32)
    assert "stablehlo.while" in lowered(jax.jit(make), maps, images, labels)
    walk = partial(random_walk, radius=3, beta=5.0, steps=8)
    assert "stablehlo.while" in lowered(jax.jit(walk), maps, shape(BATCH, 8, 8))
