"""Convert weights to and from the names of PyTorch's implementations, strict both ways.

`name_maps` holds the tables: how our names map to theirs, and what each publisher adds.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from flax import nnx

from chexseg_jax.images import Normalization
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.models.spec import NORMALIZATIONS
from chexseg_jax.weights.name_maps import (
    BUFFERS,
    DEEPLAB,
    DENSENET,
    IRNET,
    LEAVES,
    PUBLISHERS,
    RESNET,
    TORCHXRAYVISION,
    Publisher,
    Rules,
)
from chexseg_jax.weights.safetensors import read_safetensors, write_safetensors
from chexseg_jax.weights.torch_checkpoint import read_torch

Route = tuple[Any, ...]
"""The path of a weight in a network."""

RULES: Final[tuple[tuple[type[nnx.Module], Rules], ...]] = (
    (DenseNet, DENSENET),
    (ResNet, RESNET),
    (DeepLabV3Plus, DEEPLAB),
    (IRNet, IRNET),
)


def load_torch(
    source: Path | Mapping[str, Any], model: nnx.Module, *, head: bool = True
) -> Normalization:
    """Fills a network with weights of PyTorch's names.

    Args:
        source: a file of `torch.save` or of safetensors, or a state dict of arrays.
        model: a network of ours, drawn or abstract.
        head: whether to take the classifier's head too. A head for other outputs cannot be taken,
            and then keeps the values it has, as it does where the publisher has none.

    Returns:
        The normalisation that the weights expect.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; nothing is changed then.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    found, stated = read_state(source) if isinstance(source, Path) else (source, None)
    publisher, given = plain(inner_of(found, name))
    wanted = {key: path for path, key in names_of(model).items()}
    heads = {key for key in wanted if re.match(r"(classifier|fc)\.", key)}
    if not (head and publisher.head):
        given = {key: tensor for key, tensor in given.items() if key not in heads}
        wanted = {key: path for key, path in wanted.items() if key not in heads}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"{name}the weights are not this network's: missing "
            f"{listed(wanted.keys() - given.keys())}, left over {listed(given.keys() - wanted.keys())}"
        )
    state = weights_of(model)
    filled = {}
    for key, path in wanted.items():
        if not isinstance(given[key], np.ndarray) or not is_real(given[key].dtype):
            raise ValueError(f"{name}{key} is no array of real numbers")
        with np.errstate(over="ignore"):
            value = to_ours(np.asarray(given[key], np.float32))
        if not np.isfinite(value).all():
            raise ValueError(f"{name}{key} has values that are not finite; take another checkpoint")
        if publisher is TORCHXRAYVISION and key == "features.conv0.weight":
            value = over_three_channels(value)
        shape = state[path].get_value().shape
        if value.shape != shape:
            hint = "; pass head=False to keep the network's own head" if key in heads else ""
            raise ValueError(f"{name}{key} has shape {value.shape}, ours has {shape}{hint}")
        filled[path] = state[path].replace(jnp.asarray(value))
    nnx.update(model, nnx.from_flat_state(filled))
    return stated or publisher.normalization


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a network's weights under PyTorch's names and in its layout."""
    state = weights_of(model)
    return {
        key: to_theirs(np.asarray(state[path].get_value())) for path, key in names_of(model).items()
    }


def save_safetensors(
    path: Path, state: Mapping[str, np.ndarray], normalization: Normalization
) -> None:
    """Write `to_torch`'s tensors as safetensors, the normalization they expect in the metadata."""
    write_safetensors(path, state, {"normalization": json.dumps(asdict(normalization))})


def read_state(path: Path) -> tuple[Mapping[str, Any], Normalization | None]:
    """Returns the state dict in a file of either kind, and the normalisation if the file says."""
    stated = None
    if path.suffix == ".safetensors":
        found, metadata = read_safetensors(path)
        if "normalization" in metadata:
            stated = stated_in(metadata["normalization"], path)
    else:
        found = read_torch(path)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path}: it holds no state dict; save model.state_dict() instead")
    return found, stated


def inner_of(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the state dict that a checkpoint holds among other things, or is."""
    inner = found.get("state_dict")
    state = inner if isinstance(inner, Mapping) else found
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"{name}it holds no state dict; save model.state_dict() instead")
    return state


def stated_in(text: str, path: Path) -> Normalization:
    """Returns the normalisation that `save_safetensors` noted."""
    try:
        match json.loads(text):
            case {
                "mean": [float(), float(), float()] as mean,
                "std": [float(), float(), float()] as std,
            } if np.isfinite([*mean, *std]).all() and min(std) > 0:
                return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    except (ValueError, RecursionError):
        pass
    raise ValueError(
        f"{path}: its normalization is no mean and standard deviation of three channels"
    )


def plain(tensors: Mapping[str, Any]) -> tuple[Publisher, dict[str, Any]]:
    """Returns who published tensors, and the tensors under plain names, without additions."""
    publisher = next(
        p for p in PUBLISHERS if p.mark == "" or any(re.match(p.mark, k) for k in tensors)
    )
    dropped = re.compile("|".join((*BUFFERS, *publisher.dropped)))
    renamed = {}
    for key, tensor in tensors.items():
        for pattern, replacement in publisher.renamed:
            key = re.sub(pattern, replacement, key)
        if not dropped.match(key):
            renamed[key] = tensor
    return publisher, renamed


def weights_of(model: nnx.Module) -> dict[Route, Any]:
    """Returns a network's parameters and running statistics by path."""
    return dict(nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def names_of(model: nnx.Module) -> dict[Route, str]:
    """Returns PyTorch's name for every weight of a network, by our path.

    A backbone's own head has no part in a segmenter or an IRNet, and no name there.
    """
    names = {}
    for path in weights_of(model):
        ours = ".".join(map(str, path))
        if not ours.startswith("backbone.head."):
            names[path] = name_of(ours, model)
    return names


def name_of(ours: str, model: Any) -> str:
    """Returns PyTorch's name for one weight of a network.

    Raises:
        ValueError: the network is none of ours.
    """
    if isinstance(model, DeepLabV3Plus | IRNet) and ours.startswith("backbone."):
        is_resnet = isinstance(model.backbone, ResNet)
        irnet = "resnet50." if is_resnet else "densenet."
        prefix = "encoder." if isinstance(model, DeepLabV3Plus) else irnet
        return prefix + name_of(ours.removeprefix("backbone."), model.backbone)
    rules = next((rules for kind, rules in RULES if isinstance(model, kind)), ())
    matches = ((re.match(pattern, ours), replacement) for pattern, replacement in rules)
    match, replacement = next(((m, r) for m, r in matches if m), (None, ""))
    if match is None:
        raise ValueError(f"{ours} of {type(model).__name__} has no name in PyTorch")
    theirs = match.expand(replacement) + ours[match.end() :]
    for pattern, leaf in LEAVES:
        theirs = re.sub(pattern, leaf, theirs)
    return re.sub(r"\+(\d+)", lambda index: str(int(index[1]) + 1), theirs)


def to_ours(tensor: np.ndarray) -> np.ndarray:
    """Returns a kernel with its outputs last: OIHW as HWIO, (out, in) as (in, out)."""
    return np.ascontiguousarray(np.transpose(tensor, {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim)))


def to_theirs(tensor: np.ndarray) -> np.ndarray:
    """Returns a kernel with its outputs first."""
    return np.ascontiguousarray(np.transpose(tensor, {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim)))


def over_three_channels(kernel: np.ndarray) -> np.ndarray:
    """Returns a grey stem's kernel for three equal channels, which it sees as one."""
    return np.repeat(kernel / np.float32(3), 3, 2) if kernel.shape[2] == 1 else kernel


def is_real(dtype: np.dtype) -> bool:
    """Returns whether numbers are floating, bfloat16 included."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def listed(keys: Iterable[str]) -> str:
    """Returns at most eight names, and how many more there are."""
    names = sorted(keys)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more


class WeightsError(ValueError):
    """A file of weights that does not fit."""


def start_from(
    path: Path,
    model: nnx.Module,
    normalization: Normalization,
    *,
    head: bool = True,
    stage: str = "classifier",
) -> None:
    """Fills a network from a PyTorch file, whose weights must expect pixels as they will come.

    Raises:
        WeightsError: they expect another normalisation, or are another network's.
    """
    try:
        wanted = load_torch(path, model, head=head)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if wanted != normalization:
        name = next(name for name, known in NORMALIZATIONS.items() if known == wanted)
        raise WeightsError(
            f"{path}: these weights expect pixels normalised as {name}; "
            f"set --{stage}.normalization={name}"
        )
