"""Semi-supervised chest X-ray segmentation in JAX: the ten public names.

Each is imported when it is first asked for, so that a process which only reads masks starts at once.
Everything else can be reached by module, and is promised to nobody.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chexseg_jax.evaluation.metrics import iou as iou
    from chexseg_jax.inference.export import load_segmenter as load_segmenter
    from chexseg_jax.models.deeplab import DeepLabV3Plus as DeepLabV3Plus
    from chexseg_jax.models.densenet import DenseNet as DenseNet
    from chexseg_jax.models.irnet import IRNet as IRNet
    from chexseg_jax.models.resnet import ResNet as ResNet
    from chexseg_jax.pathologies import PATHOLOGIES as PATHOLOGIES
    from chexseg_jax.pseudolabels.gradcam import grad_cam as grad_cam
    from chexseg_jax.pseudolabels.random_walk import random_walk as random_walk
    from chexseg_jax.training.data import mix as mix

_HOMES = {
    "PATHOLOGIES": "pathologies",
    "DenseNet": "models.densenet",
    "ResNet": "models.resnet",
    "IRNet": "models.irnet",
    "DeepLabV3Plus": "models.deeplab",
    "grad_cam": "pseudolabels.gradcam",
    "random_walk": "pseudolabels.random_walk",
    "mix": "training.data",
    "iou": "evaluation.metrics",
    "load_segmenter": "inference.export",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
