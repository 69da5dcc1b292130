"""Inference functions of trained networks: logits, class activation maps, boundaries and masks.

Each function is a small frozen object, so that calling it again with other weights compiles nothing.
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
def _jitted() -> Callable[..., Any]:
    def apply(function: Callable[..., Any], graph: Any, state: Any, *arrays: Any) -> Any:
        return function(nnx.merge(graph, state), *arrays)

    return jax.jit(apply, static_argnums=(0, 1), compiler_options=compiler_options())


def jit_inference(function: Callable[..., Any], model: nnx.Module) -> Callable[..., Any]:
    """Return `function(model, *arrays)` on this process's devices, NumPy in and out.

    Compiled once for each function, network and shape, whatever the weights. The first axis of the
    arrays is sharded over the devices, so it must be a multiple of their number.
    """
    mesh, apply = local_mesh(), _jitted()
    graph, state = nnx.split(model)
    state = jax.device_put(jax.device_get(state), replicated(mesh))

    def run(*arrays: Any) -> Any:
        return jax.device_get(apply(function, graph, state, *shard_local(arrays, mesh)))

    return run


def jit_sharded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays, jitted and sharded over this process's devices, NumPy in and out."""
    mesh, jitted = local_mesh(), jax.jit(function)

    def run(*arrays: Any) -> Any:
        return jax.device_get(jitted(*shard_local(arrays, mesh)))

    return run


@dataclass(frozen=True)
class Logits:
    """A classifier's logits of the fourteen observations."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Return the logits."""
        outputs = model(self.normalize(images)).astype(jnp.float32)
        return finding_logits(outputs, len(OBSERVATIONS))


@dataclass(frozen=True)
class ObservationProbabilities:
    """A classifier's probabilities of the fourteen observations."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Return the probabilities."""
        return jax.nn.sigmoid(Logits(self.normalize)(model, images))


@dataclass(frozen=True)
class Cams:
    """A classifier's class activation maps and logits of the ten pathologies."""

    normalize: Normalization

    def __call__(
        self, model: Any, images: Images
    ) -> tuple[Float[Array, "b fh fw k"], Float[Array, "b k"]]:
        """Return (maps, logits)."""

        def classify(features: Float[Array, "b fh fw c"]) -> Float[Array, "b n"]:
            return finding_logits(model.classify(features), len(OBSERVATIONS))

        features = model.features(self.normalize(images))
        cams, logits = grad_cam(features, classify, OBSERVATION_OF_PATHOLOGY)
        return cams, logits[:, np.asarray(OBSERVATION_OF_PATHOLOGY)].astype(jnp.float32)


@dataclass(frozen=True)
class Boundaries:
    """IRNet's class boundaries."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b fh fw"]:
        """Return boundaries on [0, 1], on the grid of stride 4."""
        return model.boundaries(self.normalize(images)).astype(jnp.float32)


@dataclass(frozen=True)
class MaskProbabilities:
    """A segmenter's probability of each pathology at each pixel."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b h w k"]:
        """Return probabilities at the images' size."""
        return jax.nn.sigmoid(model(self.normalize(images)).astype(jnp.float32))
