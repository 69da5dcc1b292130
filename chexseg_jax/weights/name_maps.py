"""Tables of names: ours to PyTorch's, and what each publisher of weights adds to PyTorch's."""

from dataclasses import dataclass
from typing import Final

from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalization

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and replacements; `+` before an index makes it count from one."""

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
    """How the names in one publisher's files differ from the plain ones.

    Attributes:
        mark: a pattern that starts some key of its files and of no other publisher's.
        normalization: of the images that the weights were trained on; None if every user has another.
        renamed: patterns of keys and their replacements.
        dropped: patterns that start the keys to leave out, after renaming.
        head: whether the files hold a classifier's head.
    """

    mark: str
    normalization: Normalization | None
    renamed: Rules = ()
    dropped: tuple[str, ...] = ()
    head: bool = True


TORCHXRAYVISION: Final = Publisher(r"op_threshs$", XRV, dropped=(r"op_threshs$",))
"""Its DenseNets read one grey channel; their operating thresholds are left out."""

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
    # segmentation_models.pytorch; CheXseg's segmenter was trained on `chexpert`'s normalization.
    Publisher(r"decoder\.", None),
    # IRNet: every tensor under up to three names, and constants of the loss.
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
BUFFERS: Final = (r"(.*\.)?num_batches_tracked$", r"n_averaged$")
"""Counters of PyTorch's BatchNorm and of its AveragedModel."""
