"""What trained networks are asked: log odds, maps, boundaries and masks of 8-bit images.

Each question is a small frozen object, so that asking it again, of other weights, compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from chexseg_jax.images import Normalization
from chexseg_jax.losses import finding_logits
from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, OBSERVATIONS
from chexseg_jax.pseudolabels.gradcam import grad_cam
from chexseg_jax.runtime.cpu import compiler_options
from chexseg_jax.runtime.sharding import local_mesh, replicated, shard_local

Images = UInt8[Array, "b h w 1"]


@cache
def _asking() -> Callable[..., Any]:
    def ask(question: Callable[..., Any], structure: Any, state: Any, *arrays: Any) -> Any:
        return question(nnx.merge(structure, state), *arrays)

    return jax.jit(ask, static_argnums=(0, 1), compiler_options=compiler_options())


def jit_inference(question: Callable[..., Any], model: nnx.Module) -> Callable[..., Any]:
    """Returns `question(model, *arrays)` on this process's devices, NumPy in and out.

    Compiled once for each question, network and shape, whatever the weights. The first axis of the
    arrays is split over the devices, so it must be a multiple of their number.
    """
    here, ask = local_mesh(), _asking()
    structure, state = nnx.split(model)
    state = jax.device_put(jax.device_get(state), replicated(here))

    def run(*arrays: Any) -> Any:
        return jax.device_get(ask(question, structure, state, *shard_local(arrays, here)))

    return run


def jit_sharded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of arrays, compiled and split over this process's devices, NumPy in and out."""
    here, compiled = local_mesh(), jax.jit(function)

    def run(*arrays: Any) -> Any:
        return jax.device_get(compiled(*shard_local(arrays, here)))

    return run


@dataclass(frozen=True)
class Logits:
    """A classifier's log odds of the fourteen observations."""

    normalise: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Returns the logits."""
        outputs = model(self.normalise(images)).astype(jnp.float32)
        return finding_logits(outputs, len(OBSERVATIONS))


@dataclass(frozen=True)
class ObservationProbabilities:
    """A classifier's probability of each of the fourteen observations."""

    normalise: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Returns the probabilities."""
        return jax.nn.sigmoid(Logits(self.normalise)(model, images))


@dataclass(frozen=True)
class Cams:
    """A classifier's class activation maps of the ten pathologies, and their log odds."""

    normalise: Normalization

    def __call__(
        self, model: Any, images: Images
    ) -> tuple[Float[Array, "b fh fw k"], Float[Array, "b k"]]:
        """Returns (maps, logits)."""

        def classify(features: Float[Array, "b fh fw c"]) -> Float[Array, "b n"]:
            return finding_logits(model.classify(features), len(OBSERVATIONS))

        features = model.features(self.normalise(images))
        cams, logits = grad_cam(features, classify, OBSERVATION_OF_PATHOLOGY)
        return cams, logits[:, np.asarray(OBSERVATION_OF_PATHOLOGY)].astype(jnp.float32)


@dataclass(frozen=True)
class Boundaries:
    """IRNet's class boundaries."""

    normalise: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b fh fw"]:
        """Returns boundaries on [0, 1], on the grid of stride 4."""
        return model.boundaries(self.normalise(images)).astype(jnp.float32)


@dataclass(frozen=True)
class MaskProbabilities:
    """A segmenter's probability of each pathology at each pixel."""

    normalise: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b h w k"]:
        """Returns probabilities at the images' size."""
        return jax.nn.sigmoid(model(self.normalise(images)).astype(jnp.float32))
