"""Weights in and out under the names that PyTorch's implementations use, strict both ways.

One table says how our names become theirs; another what each publisher adds: prefixes, aliases,
buffers, heads for other tasks, and the normalisation that its images had.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalisation
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.models.safetensors import read_safetensors
from chexseg_jax.models.torchfiles import read_torch

Rules = tuple[tuple[str, str], ...]
"""Patterns of our names and what replaces them; `+` before an index counts it from one."""

Route = tuple[Any, ...]
"""The path of a weight in a network."""

DENSENET: Final[Rules] = (
    (r"stem\.", "features.conv0."),
    (r"stem_norm\.", "features.norm0."),
    (r"blocks\.(\d+)\.(\d+)\.", r"features.denseblock+\1.denselayer+\2."),
    (r"transitions\.(\d+)\.", r"features.transition+\1."),
    (r"norm\.", "features.norm5."),
    (r"head\.", "classifier."),
)
RESNET: Final[Rules] = (
    (r"stem\.", "conv1."),
    (r"stem_norm\.", "bn1."),
    (r"layers\.(\d+)\.(\d+)\.convs\.(\d+)\.", r"layer+\1.\2.conv+\3."),
    (r"layers\.(\d+)\.(\d+)\.norms\.(\d+)\.", r"layer+\1.\2.bn+\3."),
    (r"layers\.(\d+)\.(\d+)\.shortcut\.", r"layer+\1.\2.downsample.0."),
    (r"layers\.(\d+)\.(\d+)\.shortcut_norm\.", r"layer+\1.\2.downsample.1."),
    (r"head\.", "fc."),
)
DEEPLAB: Final[Rules] = (
    (r"pyramid\.levels\.0\.conv\.", "decoder.aspp.0.convs.0.0."),
    (r"pyramid\.levels\.0\.norm\.", "decoder.aspp.0.convs.0.1."),
    (r"pyramid\.levels\.(\d+)\.depthwise\.", r"decoder.aspp.0.convs.\1.0.0."),
    (r"pyramid\.levels\.(\d+)\.conv\.", r"decoder.aspp.0.convs.\1.0.1."),
    (r"pyramid\.levels\.(\d+)\.norm\.", r"decoder.aspp.0.convs.\1.1."),
    (r"pyramid\.pool\.conv\.", "decoder.aspp.0.convs.4.1."),
    (r"pyramid\.pool\.norm\.", "decoder.aspp.0.convs.4.2."),
    (r"pyramid\.project\.conv\.", "decoder.aspp.0.project.0."),
    (r"pyramid\.project\.norm\.", "decoder.aspp.0.project.1."),
    (r"refine\.depthwise\.", "decoder.aspp.1.0."),
    (r"refine\.conv\.", "decoder.aspp.1.1."),
    (r"refine\.norm\.", "decoder.aspp.2."),
    (r"low_level\.conv\.", "decoder.block1.0."),
    (r"low_level\.norm\.", "decoder.block1.1."),
    (r"fuse\.depthwise\.", "decoder.block2.0.0."),
    (r"fuse\.conv\.", "decoder.block2.0.1."),
    (r"fuse\.norm\.", "decoder.block2.1."),
    (r"head\.", "segmentation_head.0."),
)
IRNET: Final[Rules] = (
    (r"heads\.edges\.(\d+)\.conv\.", r"fc_edge+\1.0."),
    (r"heads\.edges\.(\d+)\.norm\.", r"fc_edge+\1.1."),
    (r"heads\.edge\.", "fc_edge6."),
    (r"heads\.shifts\.(\d+)\.conv\.", r"fc_dp+\1.0."),
    (r"heads\.shifts\.(\d+)\.norm\.", r"fc_dp+\1.1."),
    (r"heads\.coarse\.conv\.", "fc_dp6.0."),
    (r"heads\.coarse\.norm\.", "fc_dp6.1."),
    (r"heads\.fine\.conv\.", "fc_dp7.0."),
    (r"heads\.fine\.norm\.", "fc_dp7.1."),
    (r"heads\.shift\.", "fc_dp7.3."),
    (r"heads\.mean_shift$", "mean_shift.running_mean"),
)
LEAVES: Final[Rules] = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.(mean|var)$", r".running_\1"),
)


@dataclass(frozen=True)
class Publisher:
    """How one source of weights differs from the plain names.

    Attributes:
        mark: a pattern that begins some key of such a file and of no other.
        normalisation: of the images that the weights were trained on.
        renamed: patterns of keys and their replacements.
        dropped: patterns that begin keys of no use to us, after renaming.
        head: whether the classifier's head is there.
    """

    mark: str
    normalisation: Normalisation
    renamed: Rules = ()
    dropped: tuple[str, ...] = ()
    head: bool = True


TORCHXRAYVISION: Final = Publisher(r"op_threshs$", XRV, dropped=(r"op_threshs$",))
"""Its DenseNets read one grey channel and carry thresholds of operation, which we do not use."""

PUBLISHERS: Final = (
    # CheXseg's classifier, from PyTorch Lightning.
    Publisher(r"model\.model\.", IMAGENET, ((r"^model\.model\.", ""),)),
    # MoCo-CXR: a ResNet under a projection head, beside a second encoder and a queue.
    Publisher(
        r"module\.encoder_q\.",
        CHEXPERT,
        ((r"^module\.encoder_q\.", ""),),
        (r"fc\.[02]\.", r"module\.encoder_k\.", r"module\.queue"),
        head=False,
    ),
    # CheXseg's segmenter, from segmentation_models.pytorch.
    Publisher(r"decoder\.", CHEXPERT),
    # IRNet: every tensor up to three times, and what the loss needs.
    Publisher(
        r"fc_edge6\.",
        IMAGENET,
        dropped=(
            r"stage[1-5]\.",
            r"backbone\.",
            r"(edge|dp)_layers\.",
            r"fc_dp7\.4\.",
            r"path_indices\d+$",
            r"disp_target$",
        ),
    ),
    TORCHXRAYVISION,
    # torchvision, whose older DenseNets write `norm.1` for `norm1`.
    Publisher(r"", IMAGENET, ((r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),)),
)
RULES: Final[tuple[tuple[type[nnx.Module], Rules], ...]] = (
    (DenseNet, DENSENET),
    (ResNet, RESNET),
    (DeepLabV3Plus, DEEPLAB),
    (IRNet, IRNET),
)
BUFFERS: Final = (r"(.*\.)?num_batches_tracked$",)


def load_torch(
    source: Path | Mapping[str, Any], model: nnx.Module, *, head: bool = True
) -> Normalisation:
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
    found = read_state(source) if isinstance(source, Path) else source
    inner = found.get("state_dict")
    publisher, given = plain(inner if isinstance(inner, Mapping) else found)
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
        value = to_ours(np.asarray(given[key], np.float32))
        if publisher is TORCHXRAYVISION and key == "features.conv0.weight":
            value = over_three_channels(value)
        shape = state[path].get_value().shape
        if value.shape != shape:
            hint = "; pass head=False to keep the network's own head" if key in heads else ""
            raise ValueError(f"{name}{key} has shape {value.shape}, ours has {shape}{hint}")
        filled[path] = state[path].replace(jnp.asarray(value))
    nnx.update(model, nnx.from_flat_state(filled))
    return publisher.normalisation


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a network's weights under PyTorch's names and in its layout."""
    state = weights_of(model)
    return {
        key: to_theirs(np.asarray(state[path].get_value())) for path, key in names_of(model).items()
    }


def read_state(path: Path) -> Mapping[str, Any]:
    """Returns the state dict in a file of either kind."""
    found = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path}: it holds no state dict; save model.state_dict() instead")
    return found


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
