"""Trained networks outside their run: a folder to hand on, and three lines to use it.

A folder holds `config.json`, which says all that is needed to use the weights; `checkpoint`, an Orbax
checkpoint of parameters and statistics that restores onto any number of devices; `model.safetensors`,
the same under PyTorch's names, as smp and torchvision have them; and `function.jax`, a serialised
`jax.export` of the whole function, 8-bit frames in, probabilities out, that needs only the packages jax
and flatbuffers:

    function = jax.export.deserialize(bytearray(pathlib.Path("function.jax").read_bytes()))
    probabilities = function.call(frames)
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

from chexseg_jax.images import Normalization
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
from chexseg_jax.weights.convert import to_torch
from chexseg_jax.weights.safetensors import save_safetensors

FORMAT: Final = 1
PLATFORMS: Final = ("cpu", "cuda", "tpu")

Question = Callable[[Any, Any], Any]
QUESTIONS: Final[Mapping[Kind, Callable[[Normalization], Question]]] = {
    "segmenter": MaskProbabilities,
    "classifier": ObservationProbabilities,
    "irnet": Boundaries,
}


class ExportError(ValueError):
    """A folder that is no export, or not the one asked for."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A trained network, and all that was exported with it.

    Called with 8-bit frames (`images.letterbox`), it gives what its kind gives: a segmenter
    probabilities `b s s 10` of `PATHOLOGIES`, a classifier probabilities `b 14` of `OBSERVATIONS`,
    IRNet boundaries on the grid of stride 4, all as float32 on [0, 1]. Frames are split over this
    process's devices; another number of them compiles anew.
    """

    model: Any
    description: NetworkSpec
    config: Mapping[str, Any]
    """`config.json`: also `thresholds`, `gates`, `metrics`, `versions` and where it comes from."""

    @property
    def image_size(self) -> int:
        """The side of a frame, pixels."""
        return self.description.image_size

    @property
    def normalise(self) -> Normalization:
        """What the weights expect of pixels; frames are normalised by the call itself."""
        return self.description.normalisation

    @property
    def thresholds(self) -> Float[np.ndarray, "k"]:
        """The probability above which a pixel counts, a pathology each, in the order of `PATHOLOGIES`.

        Raises:
            ExportError: the network has none, being no segmenter.
        """
        if "thresholds" not in self.config:
            raise ExportError(f"a network of kind {self.description.kind} has no thresholds")
        return np.array([self.config["thresholds"][name] for name in PATHOLOGIES])

    @cached_property
    def _asked(self) -> Callable[..., Any]:
        return jit_inference(QUESTIONS[self.description.kind](self.normalise), self.model)

    def __call__(self, images: UInt8[np.ndarray, "b s s 1"]) -> Float[np.ndarray, "b *o"]:
        """Returns what the network gives for any number of frames.

        Raises:
            ExportError: the frames have another side than `image_size`.
        """
        if images.shape[1:] != (self.image_size, self.image_size, 1):
            side = self.image_size
            raise ExportError(
                f"frames must be b x {side} x {side} x 1, got {images.shape}: use images.letterbox"
            )
        missing = -len(images) % jax.local_device_count()
        return self._asked(np.pad(images, ((0, missing), *[(0, 0)] * 3)))[: len(images)]


def export(
    model: Any, description: NetworkSpec, folder: Path, *, dtype: Any = jnp.float32, **stated: Any
) -> None:
    """Writes a network in every form into a folder that is there and empty.

    Args:
        model: the network.
        description: which it is.
        folder: where to.
        dtype: of the numbers at rest. With bfloat16 the files are half as large, the weights are
            rounded to eight bits once, and every form holds the same rounded weights; arithmetic is
            what it is for float32 weights.
        stated: what else `config.json` is to say, such as `thresholds` by pathology.
    """
    _structure, *trees = to_pure_dicts(model)
    trees = [jax.tree.map(lambda v: np.asarray(v).astype(dtype), tree) for tree in trees]
    rounded = merge_state(model, *(jax.tree.map(_widened, tree) for tree in trees))
    write_tree(folder / "checkpoint", {"parameters": trees[0], "statistics": trees[1]})
    state = {name: value.astype(dtype) for name, value in to_torch(rounded).items()}
    pixels = json.dumps(asdict(description.normalisation))
    save_safetensors(folder / "model.safetensors", state, {"normalisation": pixels})
    (folder / "function.jax").write_bytes(serialise(rounded, description))
    config = {"format": FORMAT, "dtype": np.dtype(dtype).name, **asdict(description), **stated}
    write_json(folder / "config.json", config)


def serialise(model: Any, description: NetworkSpec) -> bytearray:
    """Returns the network's function with its weights inside, for any number of frames."""
    question = QUESTIONS[description.kind](description.normalisation)
    side = description.image_size
    (batch,) = jax.export.symbolic_shape("b")
    frames = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.uint8)
    function = jax.jit(partial(question, model))
    return jax.export.export(function, platforms=PLATFORMS)(frames).serialize()


def load(folder: Path | str, kind: Kind) -> ExportedNetwork:
    """Returns an exported network of a kind, in float32, on this process's devices.

    Raises:
        ExportError: the folder is no export, or another kind's.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        known = {name: config[name] for name in NetworkSpec.__dataclass_fields__}
        description = NetworkSpec.read(known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder}: no export ({type(error).__name__}: {error!s:.200}); make one with "
            "python -m experiments.export"
        ) from None
    if description.kind != kind:
        raise ExportError(f"{folder}: it holds a network of kind {description.kind}, not {kind}")
    model = nnx.eval_shape(description.construct)
    _, parameters, statistics = to_pure_dicts(model)
    targets = {"parameters": parameters, "statistics": statistics}
    kept = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, config["dtype"]), targets)
    found = read_tree(folder / "checkpoint", kept, replicated(local_mesh()))
    wide = jax.tree.map(_widened, found)
    return ExportedNetwork(
        merge_state(model, wide["parameters"], wide["statistics"]), description, config
    )


def _widened(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def load_segmenter(folder: Path | str) -> ExportedNetwork:
    """Returns the segmenter in a folder of `experiments.export`: frames to probabilities.

    Raises:
        ExportError: the folder is no export, or another kind's.
    """
    return load(folder, "segmenter")


def load_classifier(folder: Path | str) -> ExportedNetwork:
    """Returns the classifier in a folder of `experiments.export`, as `load_segmenter` does."""
    return load(folder, "classifier")


def load_irnet(folder: Path | str) -> ExportedNetwork:
    """Returns the IRNet in a folder of `experiments.export`, as `load_segmenter` does."""
    return load(folder, "irnet")
