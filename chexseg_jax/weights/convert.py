"""Convert weights to and from the names and layouts of PyTorch's implementations, strict both ways.

`name_maps` holds the tables: how our names map to theirs, and what each publisher adds.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

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


WRAPPERS: Final = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
"""Names under which training scripts store a state dict; averaged weights if there are no others."""


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

    A file from which no normalization follows is used with the network's, and a line on stderr says so.

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
    flag = f"--{stage}.normalization"
    if expected is None:
        named = next((n for n, known in NORMALIZATIONS.items() if known == normalization), "given")
        tqdm.write(
            f"{path} does not say how its images were normalized; they are normalized as {named} "
            f"({flag}).",
            sys.stderr,
        )
    if expected is None or expected == normalization:
        return
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
) -> Normalization | None:
    """Load weights with PyTorch's names into a network.

    A prefix that all names share, such as `module.`, is stripped, and a stem for one grey channel is
    spread over three.

    Args:
        source: a file of `torch.save` or of safetensors, or a state dict of arrays.
        model: a network of ours, with values or abstract.
        head: whether to load the classifier's head too. It must be left out if its number of outputs
            differs; then, and where the publisher has no head, the network's own values stay.

    Returns:
        The normalization that the weights expect, None if neither file nor names tell.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; nothing is changed then.
    """
    prefix = f"{source}: " if isinstance(source, Path) else ""
    content, stated = read_checkpoint(source) if isinstance(source, Path) else (source, None)
    paths = {key: path for path, key in torch_names(model).items()}
    heads = {key for key in paths if re.match(r"(classifier|fc)\.", key)}
    named = find_state_dict(content, prefix)
    publisher, tensors = _without_prefix(named, paths.keys() - heads, heads)
    if not (head and publisher.head):
        tensors = {key: tensor for key, tensor in tensors.items() if key not in heads}
        paths = {key: path for key, path in paths.items() if key not in heads}
    if tensors.keys() != paths.keys():
        missing, left_over = paths.keys() - tensors.keys(), tensors.keys() - paths.keys()
        raise ValueError(
            f"{prefix}the weights are not this network's: missing {_listed(missing)}, "
            f"left over {_listed(left_over)}{_hint(tensors, missing)}"
        )
    state = _weights(model)
    loaded, grey = {}, False
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
        shape = state[path].get_value().shape
        if len(shape) == value.ndim == 4 and (shape[2], value.shape[2]) == (3, 1):
            value, grey = np.repeat(value / np.float32(3), 3, 2), True
        if value.shape != shape:
            hint = "; pass head=False to keep the network's own head" if key in heads else ""
            raise ValueError(f"{prefix}{key} has shape {value.shape}, ours has {shape}{hint}")
        loaded[path] = state[path].replace(jnp.asarray(value))
    nnx.update(model, nnx.from_flat_state(loaded))
    # ImageNet's three normalized channels are not what a network for one channel saw.
    implied = None if grey and publisher is not TORCHXRAYVISION else publisher.normalization
    return stated or implied


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
            normalization = _timms_normalization(path.with_name("config.json"))
    else:
        content = read_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: it holds no state dict; save model.state_dict() instead")
    return content, normalization


def find_state_dict(content: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """Return the state dict that a checkpoint is, or holds beside other entries, at any depth.

    Of several the first in `WRAPPERS` is taken; under other names a single one is found too.

    Raises:
        ValueError: its keys are not all text.
    """
    state, depth = content, 0
    while depth < 4 and not _holds_kernels(state):
        nested = {key: v for key, v in state.items() if isinstance(v, Mapping) and v}
        filled = [key for key, value in nested.items() if _holds_kernels(value)]
        known = [key for key in WRAPPERS if key in nested]
        if not known and len(filled) != 1:
            break
        state, depth = nested[(known or filled)[0]], depth + 1
    if not all(isinstance(key, str) for key in (*content, *state)):
        raise ValueError(f"{prefix}it holds no state dict; save model.state_dict() instead")
    return state


def _holds_kernels(state: Mapping[Any, Any]) -> bool:
    """Return whether a dictionary names arrays by text with a dot, as a state dict does."""
    return any(isinstance(v, np.ndarray) and "." in str(key) for key, v in state.items())


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


def _timms_normalization(path: Path) -> Normalization | None:
    """Read the normalization in timm's `config.json` beside its weights, None if there is none."""
    try:
        published = json.loads(path.read_text())["pretrained_cfg"]
        mean, std = (tuple(map(float, published[name])) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return _parse_normalization(json.dumps({"mean": mean, "std": std}), path)


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


def _without_prefix(
    tensors: Mapping[str, Any], body: AbstractSet[str], heads: AbstractSet[str]
) -> tuple[Publisher, dict[str, Any]]:
    """Return `plain_names` of tensors without the prefix that all share, if they are a network's then.

    Args:
        tensors: a state dict.
        body: the network's names without its head's.
        heads: the names of its head.
    """
    found = plain_names(tensors)
    stripped, counters = dict(tensors), re.compile("|".join(BUFFERS))
    while found[1].keys() - heads != body:
        parts = {key.partition(".")[0] for key in stripped if not counters.match(key)}
        if len(parts) != 1 or not all("." in key for key in stripped if not counters.match(key)):
            return plain_names(tensors)
        stripped = {
            key.partition(".")[2]: tensor
            for key, tensor in stripped.items()
            if not counters.match(key)
        }
        found = plain_names(stripped)
    return found


def _hint(tensors: Mapping[str, Any], missing: AbstractSet[str]) -> str:
    """Say which prefix hides the missing names, if one does."""
    first = min(missing, key=len, default="")
    for key in tensors:
        prefix = key.removesuffix(first)
        if missing and prefix != key and all(prefix + name in tensors for name in missing):
            return f"; its names begin with {prefix!r}: save the state dict of that part alone"
    return ""


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


def _listed(keys: Iterable[str]) -> str:
    """List at most eight names, and the number of the others."""
    names = sorted(keys)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
