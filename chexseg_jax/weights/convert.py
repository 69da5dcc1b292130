"""Convert weights to and from the names and layouts of PyTorch's implementations, strict both ways.

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

VariablePath = tuple[Any, ...]
"""The path of a variable in a network."""

RULES: Final[tuple[tuple[type[nnx.Module], Rules], ...]] = (
    (DenseNet, DENSENET),
    (ResNet, RESNET),
    (DeepLabV3Plus, DEEPLAB),
    (IRNet, IRNET),
)


class WeightsError(ValueError):
    """A file of weights that does not fit the network or its normalization."""


def start_from(
    path: Path,
    model: nnx.Module,
    normalization: Normalization,
    *,
    head: bool = True,
    stage: str = "classifier",
) -> None:
    """Load initial weights from a PyTorch file that expects the network's own normalization.

    Args:
        path: as for `load_torch`.
        model: the network.
        normalization: of its images.
        head: as for `load_torch`.
        stage: the stage whose flag sets the normalization, for the error message.

    Raises:
        WeightsError: the weights expect another normalization, or are another network's.
    """
    try:
        expected = load_torch(path, model, head=head)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if expected == normalization:
        return
    flag = f"--{stage}.normalization"
    for name, known in NORMALIZATIONS.items():
        if known == expected:
            raise WeightsError(
                f"{path}: these weights expect images normalized as {name}; set {flag}={name}"
            )
    raise WeightsError(
        f"{path}: these weights expect images normalized by mean {expected.mean} and standard "
        f"deviation {expected.std}, which {flag} does not offer"
    )


def load_torch(
    source: Path | Mapping[str, Any], model: nnx.Module, *, head: bool = True
) -> Normalization:
    """Load weights with PyTorch's names into a network.

    Args:
        source: a file of `torch.save` or of safetensors, or a state dict of arrays.
        model: a network of ours, with values or abstract.
        head: whether to load the classifier's head too. It must be left out if its number of outputs
            differs; then, and where the publisher has no head, the network's own values stay.

    Returns:
        The normalization that the weights expect.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; nothing is changed then.
    """
    prefix = f"{source}: " if isinstance(source, Path) else ""
    content, stated = read_checkpoint(source) if isinstance(source, Path) else (source, None)
    publisher, tensors = plain_names(find_state_dict(content, prefix))
    paths = {key: path for path, key in torch_names(model).items()}
    heads = {key for key in paths if re.match(r"(classifier|fc)\.", key)}
    if not (head and publisher.head):
        tensors = {key: tensor for key, tensor in tensors.items() if key not in heads}
        paths = {key: path for key, path in paths.items() if key not in heads}
    if tensors.keys() != paths.keys():
        missing, left_over = paths.keys() - tensors.keys(), tensors.keys() - paths.keys()
        raise ValueError(
            f"{prefix}the weights are not this network's: missing {_listed(missing)}, "
            f"left over {_listed(left_over)}"
        )
    state = _weights(model)
    loaded = {}
    for key, path in paths.items():
        tensor = tensors[key]
        if not isinstance(tensor, np.ndarray) or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{prefix}{key} is no array of real numbers")
        with np.errstate(over="ignore"):
            value = _outputs_last(np.asarray(tensor, np.float32))
        if not np.isfinite(value).all():
            raise ValueError(
                f"{prefix}{key} has values that are not finite; take another checkpoint"
            )
        if publisher is TORCHXRAYVISION and key == "features.conv0.weight":
            value = _for_three_channels(value)
        shape = state[path].get_value().shape
        if value.shape != shape:
            hint = "; pass head=False to keep the network's own head" if key in heads else ""
            raise ValueError(f"{prefix}{key} has shape {value.shape}, ours has {shape}{hint}")
        loaded[path] = state[path].replace(jnp.asarray(value))
    nnx.update(model, nnx.from_flat_state(loaded))
    return stated or publisher.normalization


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return a network's weights with PyTorch's names and layouts."""
    state = _weights(model)
    return {
        key: _outputs_first(np.asarray(state[path].get_value()))
        for path, key in torch_names(model).items()
    }


def save_safetensors(
    path: Path, state: Mapping[str, np.ndarray], normalization: Normalization
) -> None:
    """Write `to_torch`'s tensors as safetensors, the normalization they expect in the metadata."""
    write_safetensors(path, state, {"normalization": json.dumps(asdict(normalization))})


def read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Normalization | None]:
    """Read a file of either kind, and the normalization if it states one.

    Raises:
        ValueError: the file is damaged, or holds no state dict.
    """
    normalization = None
    if path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
        if "normalization" in metadata:
            normalization = _parse_normalization(metadata["normalization"], path)
    else:
        content = read_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: it holds no state dict; save model.state_dict() instead")
    return content, normalization


def find_state_dict(content: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """Return the state dict that a checkpoint is, or holds beside other entries.

    Raises:
        ValueError: its keys are not all text.
    """
    nested = content.get("state_dict")
    state = nested if isinstance(nested, Mapping) else content
    if not all(isinstance(key, str) for key in (*content, *state)):
        raise ValueError(f"{prefix}it holds no state dict; save model.state_dict() instead")
    return state


def _parse_normalization(text: str, path: Path) -> Normalization:
    """Parse the metadata that `save_safetensors` writes."""
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
        f"{path}: its normalization is not a mean and a standard deviation of three channels"
    )


def plain_names(tensors: Mapping[str, Any]) -> tuple[Publisher, dict[str, Any]]:
    """Return the publisher of tensors, and the tensors with plain names, without its additions."""
    publisher = next(
        p for p in PUBLISHERS if p.mark == "" or any(re.match(p.mark, key) for key in tensors)
    )
    dropped = re.compile("|".join((*BUFFERS, *publisher.dropped)))
    renamed = {}
    for key, tensor in tensors.items():
        for pattern, replacement in publisher.renamed:
            key = re.sub(pattern, replacement, key)
        if not dropped.match(key):
            renamed[key] = tensor
    return publisher, renamed


def _weights(model: nnx.Module) -> dict[VariablePath, Any]:
    """Return a network's parameters and running statistics by path."""
    return dict(nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def torch_names(model: nnx.Module) -> dict[VariablePath, str]:
    """Return PyTorch's name for every weight of a network, by our path.

    The head of a backbone inside a segmenter or an IRNet is not used and has no name.

    Raises:
        ValueError: the network is of a type without a table of names.
    """
    names = {}
    for path in _weights(model):
        ours = ".".join(map(str, path))
        if not ours.startswith("backbone.head."):
            names[path] = _torch_name(ours, model)
    return names


def _torch_name(ours: str, model: Any) -> str:
    if isinstance(model, DeepLabV3Plus | IRNet) and ours.startswith("backbone."):
        is_resnet = isinstance(model.backbone, ResNet)
        irnet = "resnet50." if is_resnet else "densenet."
        prefix = "encoder." if isinstance(model, DeepLabV3Plus) else irnet
        return prefix + _torch_name(ours.removeprefix("backbone."), model.backbone)
    rules = next((rules for kind, rules in RULES if isinstance(model, kind)), ())
    matches = ((re.match(pattern, ours), replacement) for pattern, replacement in rules)
    match, replacement = next(((m, r) for m, r in matches if m), (None, ""))
    if match is None:
        raise ValueError(f"{ours} of {type(model).__name__} has no name in PyTorch")
    theirs = match.expand(replacement) + ours[match.end() :]
    for pattern, leaf in LEAVES:
        theirs = re.sub(pattern, leaf, theirs)
    return re.sub(r"\+(\d+)", lambda index: str(int(index[1]) + 1), theirs)


def _outputs_last(tensor: np.ndarray) -> np.ndarray:
    """Transpose a kernel of PyTorch's: OIHW to HWIO, (out, in) to (in, out)."""
    return np.ascontiguousarray(np.transpose(tensor, {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim)))


def _outputs_first(tensor: np.ndarray) -> np.ndarray:
    """Transpose a kernel of ours: HWIO to OIHW, (in, out) to (out, in)."""
    return np.ascontiguousarray(np.transpose(tensor, {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim)))


def _for_three_channels(kernel: np.ndarray) -> np.ndarray:
    """Spread a stem's kernel for one grey channel over three equal ones."""
    return np.repeat(kernel / np.float32(3), 3, 2) if kernel.shape[2] == 1 else kernel


def _listed(keys: Iterable[str]) -> str:
    """List at most eight names, and the number of the others."""
    names = sorted(keys)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
