"""What is made of trained networks: maps, seeds, walked maps, masks.

Weights are fresh: none of it takes longer or shorter for what they are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from chexseg_jax import random_walk
from chexseg_jax.images import IMAGENET
from chexseg_jax.inference.apply import Cams, MaskProbabilities
from chexseg_jax.models.spec import build_backbone
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import CrfConfig, seeds_from_cams
from chexseg_jax.pseudolabels.random_walk import chebyshev
from chexseg_jax.runtime.cpu import compiler_options, compute_dtype
from chexseg_jax.runtime.sharding import global_mesh, replicated, shard_local
from chexseg_jax.stages.pseudo_masks import PseudoMasksConfig
from chexseg_jax.stages.seeds import STRIDE, SeedsConfig
from experiments.benchmarks.training_workloads import grey, segmenter
from experiments.benchmarks.workloads import Case, Scale, Workload

MAPS = len(PATHOLOGIES)


def asking(case: Case, question: Callable[..., Any], model: nnx.Module, size: int) -> Workload:
    """Returns what `inference.infer` compiles, without the way to and from the device."""
    structure, state = nnx.split(model)
    state = jax.device_put(state, replicated(global_mesh()))

    def ask(state: Any, images: Any) -> Any:
        return question(nnx.merge(structure, state), images)

    arguments = (state, shard_local(grey(case.images, size), global_mesh()))
    return Workload(
        case, jax.jit(ask, compiler_options=compiler_options()), arguments, dtype=compute_dtype()
    )


def localizing(scale: Scale) -> Iterator[Workload]:
    """Gives Grad-CAM of ten pathologies."""
    size = scale.image_size
    case = Case("localize", f"Grad-CAM of {MAPS}, {size} px", scale.batches["localize"], size)
    model = build_backbone(scale.classifier, len(OBSERVATIONS), jax.random.key(0))
    yield asking(case, Cams(IMAGENET), model, size)


def predicting(scale: Scale) -> Iterator[Workload]:
    """Gives the segmenter's masks."""
    size = scale.image_size
    case = Case("predict", f"DeepLabv3+ masks, {size} px", scale.batches["predict"], size)
    yield asking(case, MaskProbabilities(IMAGENET), segmenter(scale.encoder, scale.decoder), size)


def seeding(scale: Scale) -> Iterator[Workload]:
    """Gives the CRF of ten pathologies, at both thresholds.

    By hand, as its loops hide them: for each pair of cells once the distance of three features and its
    exponential, which counts one, and in every iteration the product with twice ten maps; those maps
    read and written in every iteration.
    """
    images, side = scale.batches["seed"], scale.image_size // STRIDE
    config, crf = SeedsConfig(), CrfConfig()

    def seeds(cams: Any, pictures: Any, labels: Any) -> Any:
        thresholds = {"foreground": config.foreground, "background": config.background}
        return seeds_from_cams(cams, pictures, labels, crf, stride=STRIDE, **thresholds)

    pairs, both = float(side) ** 4, 2 * MAPS
    yield Workload(
        Case("seed", f"CRF of {MAPS}, {side} x {side}", images, side, steps=crf.iterations),
        jax.jit(seeds),
        shard_local(
            (
                smooth(images, side),
                grey(images, side).astype(np.float32),
                np.ones((images, MAPS), np.int32),
            ),
            global_mesh(),
        ),
        flops=images * pairs * (10 + 2 * both * crf.iterations),
        moved=images * side**2 * 4.0 * 2 * both * crf.iterations,
    )


def walking(scale: Scale) -> Iterator[Workload]:
    """Gives the random walk of ten maps at every size.

    By hand, as its loops hide them: in each product of the matrix a difference, a multiplication and a
    sum for each neighbour of each cell of each map; and the affinity of each pair read, the maps read
    and written, once a product. Eight steps are eight products, 256 are 90.
    """
    images, beta = scale.batches["walk"], PseudoMasksConfig().beta
    for side, radius, steps in scale.walks:

        def walk(maps: Any, bounds: Any, radius: int = radius, steps: int = steps) -> Any:
            return random_walk(maps, bounds, radius=radius, beta=beta, steps=steps)

        name = f"walk of {MAPS}, {side} x {side}, radius {radius}, {steps} steps"
        cells, pairs = float(images * side**2), len(paths(radius))
        products = len(chebyshev(steps)) - 1
        bounds = np.random.default_rng(4).random((images, side, side), np.float32)
        yield Workload(
            Case("walk", name, images, side, radius, steps),
            jax.jit(walk),
            shard_local((smooth(images, side), bounds**4), global_mesh()),
            flops=3 * cells * 2 * pairs * MAPS * products,
            moved=4 * cells * (pairs + 2 * MAPS) * products,
        )


def smooth(images: int, side: int) -> np.ndarray:
    """Returns a smooth hill for each pathology of each image, its peak at 1."""
    centres = np.random.default_rng(5).uniform(0, side, (2, images, 1, 1, MAPS))
    ys, xs = np.mgrid[:side, :side][..., None, :, :, None]
    apart = (ys - centres[0]) ** 2 + (xs - centres[1]) ** 2
    return np.exp(-apart / (side / 4) ** 2).astype(np.float32)
