"""Inference functions of trained networks: logits, class activation maps, boundaries and masks.

Each function is a small frozen object, so that calling it again with other weights compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from chexseg_jax.images import Normalization, content_fractions, content_mask
from chexseg_jax.losses import finding_logits
from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, OBSERVATIONS
from chexseg_jax.pseudolabels.gradcam import grad_cam, normalize_cams
from chexseg_jax.runtime.cpu import compiler_options
from chexseg_jax.runtime.sharding import local_mesh, replicated, shard_local
from chexseg_jax.runtime.target import target_platform
from chexseg_jax.training.data import check_divides

Images = UInt8[Array, "b h w 1"]
PATHOLOGY_OUTPUTS = np.asarray(OBSERVATION_OF_PATHOLOGY)


def jitted_apply() -> jax.stages.Wrapped:
    """Return what `jit_inference` calls with (function, graph, state, *arrays)."""
    return _jitted_apply(target_platform())


@cache
def _jitted_apply(platform: str) -> jax.stages.Wrapped:
    def apply(function: Callable[..., Any], graph: Any, state: Any, *arrays: Any) -> Any:
        return function(nnx.merge(graph, state), *arrays)

    return jax.jit(apply, static_argnums=(0, 1), compiler_options=compiler_options())


def jit_inference(function: Callable[..., Any], model: nnx.Module) -> Callable[..., Any]:
    """Return `function(model, *arrays)` on this process's devices, NumPy in and out.

    Compiled once for each function, network and shape, whatever the weights. The first axis of the
    arrays is sharded over the devices; the function raises BatchError if it is no multiple of them.
    """
    mesh, apply = local_mesh(), jitted_apply()
    graph, state = nnx.split(model)
    state = jax.device_put(jax.device_get(state), replicated(mesh))

    def run(*arrays: Any) -> Any:
        return jax.device_get(apply(function, graph, state, *_shard(arrays, mesh)))

    return run


def jit_sharded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays, jitted and sharded as `jit_inference` does, NumPy in and out."""
    mesh, jitted = local_mesh(), jax.jit(function)

    def run(*arrays: Any) -> Any:
        return jax.device_get(jitted(*_shard(arrays, mesh)))

    return run


def _shard(arrays: tuple[Any, ...], mesh: Mesh) -> tuple[Any, ...]:
    check_divides(len(arrays[0]), mesh.size)
    return shard_local(arrays, mesh)


def classifier_outputs(
    model: Any, images: Images, normalize: Normalization, *, train: bool = False
) -> Float[Array, "b m"]:
    """Return the outputs of a classifier's head, pooled without the letterbox's padding."""
    features = model.features(normalize(images), train=train)
    content = content_fractions(content_mask(images), *features.shape[1:3])
    return model.classify(features, content)


@dataclass(frozen=True)
class Logits:
    """A classifier's logits of the fourteen observations."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Return the logits."""
        outputs = classifier_outputs(model, images, self.normalize).astype(jnp.float32)
        return finding_logits(outputs, len(OBSERVATIONS))


@dataclass(frozen=True)
class ObservationProbabilities:
    """A classifier's probabilities of the fourteen observations."""

    normalize: Normalization

    def __call__(self, model: Any, images: Images) -> Float[Array, "b n"]:
        """Return the probabilities."""
        return jax.nn.sigmoid(Logits(self.normalize)(model, images))


CamKind = Literal["grad-cam", "cell-probability"]
"""Grad-CAM, as in the paper, or the probability that the head gives each cell by itself."""
STRIDE = 32
"""Sides of scaled images are multiples of this, so that cells divide them."""


@dataclass(frozen=True)
class Cams:
    """A classifier's class activation maps and logits of the ten pathologies.

    Maps of several scales are averaged on the finest grid. Cells of padding are zero, and each map is
    divided by its maximum.
    """

    normalize: Normalization
    kind: CamKind = "grad-cam"
    scales: tuple[float, ...] = (1.0,)
    """Sides of the classified images, in sides of the letterbox; the logits are of the first."""

    def __call__(
        self, model: Any, images: Images
    ) -> tuple[Float[Array, "b fh fw k"], Float[Array, "b k"]]:
        """Return (maps, logits)."""
        content = content_mask(images)
        results = [self._of_scale(model, images, content, scale) for scale in self.scales]
        maps = [cams for cams, _, _ in results]
        shape = max(cams.shape for cams in maps)
        mean = sum(jax.image.resize(cams, shape, "linear") for cams in maps)
        weights = max((weights for _, _, weights in results), key=lambda array: array.shape)
        return normalize_cams(mean * (weights > 0)[..., None]), results[0][1]

    def _of_scale(
        self, model: Any, images: Images, content: Bool[Array, "b h w"], scale: float
    ) -> tuple[Float[Array, "b fh fw k"], Float[Array, "b k"], Float[Array, "b fh fw"]]:
        """Return maps, logits and the fraction of each cell that is content."""
        sides = tuple(max(1, round(n * scale / STRIDE)) * STRIDE for n in images.shape[1:3])
        pixels = self.normalize(images)
        if sides != images.shape[1:3]:
            pixels = jax.image.resize(pixels, (len(images), *sides, 3), "linear")
            content = jax.image.resize(content.astype(jnp.float32), (len(images), *sides), "linear")
            content = content > 0.5
        features = model.features(pixels)
        weights = content_fractions(content, *features.shape[1:3])

        def classify(features: Float[Array, "b fh fw c"]) -> Float[Array, "b n"]:
            return finding_logits(model.classify(features, weights), len(OBSERVATIONS))

        if self.kind == "grad-cam":
            cams, logits = grad_cam(features, classify, OBSERVATION_OF_PATHOLOGY)
            cams = normalize_cams(cams * (weights > 0)[..., None])
        else:
            logits, cells = classify(features), model.cell_logits(features).astype(jnp.float32)
            flat = finding_logits(cells.reshape(-1, cells.shape[-1]), len(OBSERVATIONS))
            cams = jax.nn.sigmoid(flat).reshape(*cells.shape[:3], -1)[..., PATHOLOGY_OUTPUTS]
        return cams, logits[:, PATHOLOGY_OUTPUTS].astype(jnp.float32), weights


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
