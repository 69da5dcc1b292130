"""PyTorch counterparts of the benchmark's rows, for `experiments.benchmark --against torch`.

No other package of the project imports torch, and this one only on demand. The networks are
torchvision's and segmentation_models.pytorch's. CAMs, CRF, walk and IRNet's loss follow the algorithms
of the released code: a backward pass for each class, a dense affinity matrix squared repeatedly.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Final

import jax

from experiments.benchmarks.roofline import Cost
from experiments.benchmarks.timing import Runner
from experiments.benchmarks.workloads import Case

PACKAGES: Final = {
    "torch": "torch",
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
}
"""Packages to install, by module."""


def missing_packages() -> str | None:
    """Return a message about packages that are not installed, None if all are."""
    absent = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if not absent:
        return None
    return f"--against torch needs {', '.join(absent)}: pip install {' '.join(PACKAGES.values())}."


def disable_preallocation() -> None:
    """Leave GPU memory for PyTorch; call it before JAX uses a GPU."""
    import torch

    if torch.cuda.is_available():
        jax.config.update("jax_pjrt_client_create_options", {"preallocate": False})


def counterparts(case: Case) -> dict[str, Callable[[], Runner]]:
    """Return the constructors of a row's counterparts: eager and, for networks alone, compiled."""
    from experiments.benchmarks.torch_peers import irnet, networks, pseudolabels

    eager: dict[str, Callable[[Case], Runner]] = {
        "cams": pseudolabels.grad_cam_runner,
        "seeds": pseudolabels.crf_runner,
        "random_walk": pseudolabels.random_walk_runner,
        "irnet": irnet.irnet_training_step,
    }
    if case.row in eager:
        return {"torch": partial(eager[case.row], case)}
    make = {
        "classifier": networks.classifier_training_step,
        "segmenter": networks.segmenter_training_step,
        "predict": networks.segmenter_inference_step,
    }[case.row]
    return {
        "torch": partial(make, case, compiled=False),
        "torch.compile": partial(make, case, compiled=True),
    }


def gpu_memory_cost() -> Cost:
    """Return PyTorch's peak GPU memory since the last call."""
    import torch

    if not torch.cuda.is_available():
        return Cost()
    allocated = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return Cost(memory=allocated)
