"""Exported networks: a folder with everything that inference needs, and its use in three lines.

A folder holds `config.json`, the network's specification and metadata; `checkpoint`, an Orbax checkpoint
of parameters and statistics that restores onto any number of devices; `model.safetensors`, the same
under PyTorch's names, as smp and torchvision have them; and `function.jax`, a serialized `jax.export` of
the whole function, 8-bit images to probabilities, for CPU, CUDA and TPU, which needs only the packages
jax and flatbuffers:

    function = jax.export.deserialize(bytearray(pathlib.Path("function.jax").read_bytes()))
    probabilities = function.call(images)
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from chexseg_jax.images import Normalization, letterbox
from chexseg_jax.inference.apply import (
    Boundaries,
    MaskProbabilities,
    ObservationProbabilities,
    jit_inference,
)
from chexseg_jax.models.spec import Kind, NetworkSpec
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.sharding import local_mesh, replicated
from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.training.checkpoints import merge_state, read_tree, to_pure_dicts, write_tree
from chexseg_jax.weights.convert import save_safetensors, to_torch

FORMAT: Final = 2
PLATFORMS: Final = ("cpu", "cuda", "tpu")

InferenceFunction = Callable[[Any, Any], Any]
FUNCTIONS: Final[Mapping[Kind, Callable[[Normalization], InferenceFunction]]] = {
    "segmenter": MaskProbabilities,
    "classifier": ObservationProbabilities,
    "irnet": Boundaries,
}


class ExportError(ValueError):
    """A folder that is no export, or of another kind of network."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A trained network and its metadata.

    Called with 8-bit images of its `letterbox`, a segmenter returns probabilities
    `b s s 10` of `PATHOLOGIES`, a classifier probabilities `b 14` of `OBSERVATIONS`, IRNet boundaries on
    the grid of stride 4, all as float32 on [0, 1]. Images are sharded over this process's devices;
    another number of them compiles anew.
    """

    model: Any
    spec: NetworkSpec
    config: Mapping[str, Any]
    """`config.json`: also `thresholds`, `gates`, `metrics`, `versions` and the training's settings."""

    @property
    def image_size(self) -> int:
        """The side of a letterboxed image, pixels."""
        return self.spec.image_size

    def letterbox(self, image: UInt8[np.ndarray, "h w 1"]) -> UInt8[np.ndarray, "s s 1"]:
        """Letterbox an image of any size as the training's were, by its photometry too."""
        return letterbox(image, self.image_size, self.spec.photometry)

    @property
    def thresholds(self) -> Float[np.ndarray, "k"]:
        """The probability above which a pixel belongs to a mask, in the order of `PATHOLOGIES`.

        NaN, above which no pixel lies, if no threshold found the pathology.

        Raises:
            ExportError: the network is no segmenter and has none.
        """
        if "thresholds" not in self.config:
            raise ExportError(f"a network of kind {self.spec.kind} has no thresholds")
        thresholds = [self.config["thresholds"][name] for name in PATHOLOGIES]
        return np.array(thresholds, np.float64)  # null becomes NaN

    @cached_property
    def _infer(self) -> Callable[..., Any]:
        return jit_inference(FUNCTIONS[self.spec.kind](self.spec.normalization), self.model)

    def __call__(self, images: UInt8[np.ndarray, "b s s 1"]) -> Float[np.ndarray, "b *o"]:
        """Apply the network to any number of images.

        Raises:
            ExportError: the images have another side than `image_size`.
        """
        if images.shape[1:] != (self.image_size, self.image_size, 1):
            side = self.image_size
            raise ExportError(
                f"frames must be b x {side} x {side} x 1, got {images.shape}: use its `letterbox`"
            )
        missing = -len(images) % jax.local_device_count()
        return self._infer(np.pad(images, ((0, missing), *[(0, 0)] * 3)))[: len(images)]


def export(
    model: Any, spec: NetworkSpec, folder: Path, *, dtype: Any = jnp.float32, **metadata: Any
) -> None:
    """Write a network in every form into an empty folder.

    Args:
        model: the network.
        spec: its specification.
        folder: an empty folder.
        dtype: of the stored weights. With bfloat16 the files are half as large, the weights are
            rounded once, every form holds the same rounded weights, and arithmetic is as before.
        metadata: further entries of `config.json`, such as `thresholds` by pathology.
    """
    _, *trees = to_pure_dicts(model)
    trees = [jax.tree.map(lambda v: np.asarray(v).astype(dtype), tree) for tree in trees]
    rounded = merge_state(model, *(jax.tree.map(_float32, tree) for tree in trees))
    write_tree(folder / "checkpoint", {"parameters": trees[0], "statistics": trees[1]})
    state = {name: value.astype(dtype) for name, value in to_torch(rounded).items()}
    save_safetensors(folder / "model.safetensors", state, spec.normalization)
    (folder / "function.jax").write_bytes(serialize(rounded, spec))
    config = {"format": FORMAT, "dtype": np.dtype(dtype).name, **asdict(spec), **metadata}
    write_json(folder / "config.json", config)


def serialize(model: Any, spec: NetworkSpec) -> bytearray:
    """Return the serialized function with its weights inside, for any number of images."""
    function = FUNCTIONS[spec.kind](spec.normalization)
    side = spec.image_size
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.uint8)
    jitted = jax.jit(partial(function, model))
    return jax.export.export(jitted, platforms=PLATFORMS)(images).serialize()


def load(folder: Path | str, kind: Kind) -> ExportedNetwork:
    """Load an exported network, in float32, onto this process's devices.

    Raises:
        ExportError: the folder is no export, or of another kind of network.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        spec = NetworkSpec.from_json(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{folder}: no export ({type(error).__name__}: {error!s:.200}); make one with "
            "python -m experiments.export"
        ) from None
    if spec.kind != kind:
        raise ExportError(f"{folder}: it holds a network of kind {spec.kind}, not {kind}")
    model = nnx.eval_shape(spec.build)
    _, parameters, statistics = to_pure_dicts(model)
    targets = {"parameters": parameters, "statistics": statistics}
    stored = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, config["dtype"]), targets)
    tree = read_tree(folder / "checkpoint", stored, replicated(local_mesh()))
    tree = jax.tree.map(_float32, tree)
    return ExportedNetwork(merge_state(model, tree["parameters"], tree["statistics"]), spec, config)


def _float32(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def load_segmenter(folder: Path | str) -> ExportedNetwork:
    """Load a segmenter from a folder of `experiments.export`: images to probabilities.

    Raises:
        ExportError: the folder is no export, or of another kind of network.
    """
    return load(folder, "segmenter")


def load_classifier(folder: Path | str) -> ExportedNetwork:
    """Load a classifier from a folder of `experiments.export`, as `load_segmenter` does."""
    return load(folder, "classifier")


def load_irnet(folder: Path | str) -> ExportedNetwork:
    """Load an IRNet from a folder of `experiments.export`, as `load_segmenter` does."""
    return load(folder, "irnet")
