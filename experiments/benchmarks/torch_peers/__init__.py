"""PyTorch's counterparts of the rows, for `experiments.benchmark --against torch`.

The only modules of the project that import torch, and only once a benchmark asks for it. Networks are
torchvision's and segmentation_models.pytorch's. The maps' algorithms have the released ones' shape and
are written here: a pass back for each class, a dense affinity matrix squared again and again.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import jax

from experiments.benchmarks.roofline import Cost
from experiments.benchmarks.timing import Runner
from experiments.benchmarks.workloads import Case

PACKAGES = {"torch": "torch", "torchvision": "torchvision"} | {
    "segmentation_models_pytorch": "segmentation-models-pytorch"
}
"""What is imported, and what is installed."""


def missing() -> str | None:
    """Returns a sentence about packages that are not installed, None if all are."""
    absent = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if not absent:
        return None
    return f"--against torch needs {', '.join(absent)}: pip install {' '.join(PACKAGES.values())}."


def share_memory() -> None:
    """Keeps JAX, before it has touched a GPU, from taking the memory that PyTorch will want."""
    import torch

    if torch.cuda.is_available():
        jax.config.update("jax_pjrt_client_create_options", {"preallocate": False})


def counterparts(case: Case) -> dict[str, Callable[[], Runner]]:
    """Returns what makes the counterparts of a row: eager and, for networks alone, compiled."""
    from experiments.benchmarks.torch_peers import maps, networks, pairs

    kinds: dict[str, Callable[[Case], Runner]] = {
        "localize": maps.grad_cam,
        "seed": maps.crf,
        "walk": maps.walk,
        "relate": pairs.irnet,
    }
    if case.row in kinds:
        return {"torch": partial(kinds[case.row], case)}
    made = {"classify": networks.classify, "segment": networks.segment, "predict": networks.predict}
    make = made[case.row]
    return {
        "torch": partial(make, case, compiled=False),
        "torch.compile": partial(make, case, compiled=True),
    }


def cost() -> Cost:
    """Returns the most memory that PyTorch has held on a GPU since it was last asked."""
    import torch

    if not torch.cuda.is_available():
        return Cost(None, None, None)
    held = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return Cost(None, None, held)
