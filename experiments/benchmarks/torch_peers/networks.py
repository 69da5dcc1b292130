"""PyTorch's trainings and masks: torchvision's DenseNet-121, smp's DeepLabv3+ on ResNet-18.

On a GPU in bfloat16 by autocast, channels last, with a fused Adam; float32 on a CPU. Images are there
already, normalised, which ours are not.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torchvision

from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from experiments.benchmarks.workloads import Case


def device() -> torch.device:
    """Returns the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Calls:
    """A `Runner` of a function without arguments, of so many images."""

    def __init__(self, function: Callable[[], Any], images: int) -> None:
        """Takes the function."""
        self.start, self.images = function, images

    def wait(self, started: Any) -> None:
        """Waits for the GPU; a CPU is done when the call is."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def precision() -> Any:
    """Returns the context in which networks compute."""
    if torch.cuda.is_available():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def placed(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a network on the device, as it is fastest there."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if torch.cuda.is_available():
        return model.to(device(), memory_format=torch.channels_last)
    return model


def pictures(case: Case) -> torch.Tensor:
    """Returns normalised images on the device."""
    images = torch.randn(case.images, 3, case.size, case.size, device=device())
    if torch.cuda.is_available():
        return images.contiguous(memory_format=torch.channels_last)
    return images


def classifier(case: Case) -> torch.nn.Module:
    """Returns DenseNet-121 of the fourteen observations."""
    return placed(torchvision.models.densenet121(weights=None, num_classes=len(OBSERVATIONS)))


def segmenter() -> torch.nn.Module:
    """Returns DeepLabv3+ of the ten pathologies."""
    return placed(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=len(PATHOLOGIES)))


def classify(case: Case, *, compiled: bool) -> Calls:
    """Returns a step of the classifier's training."""
    labels = torch.randint(-1, 2, (case.images, len(OBSERVATIONS)), device=device())
    known, targets = (labels >= 0).float(), labels.clamp(min=0).float()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return (bce(logits.float(), targets, reduction="none") * known).sum() / known.sum()

    return _training(case, classifier(case), loss_of, compiled)


def segment(case: Case, *, compiled: bool) -> Calls:
    """Returns a step of the segmenter's training."""
    shape = (case.images, len(PATHOLOGIES), case.size, case.size)
    masks = (torch.rand(shape, device=device()) > 0.8).float()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        probabilities = logits.float().sigmoid()
        shared, sizes = (
            (probabilities * masks).sum((0, 2, 3)),
            (probabilities + masks).sum((0, 2, 3)),
        )
        return 1 - ((2 * shared + 1) / (sizes + 1)).mean()

    return _training(case, segmenter(), loss_of, compiled)


def predict(case: Case, *, compiled: bool) -> Calls:
    """Returns the segmenter's masks of a batch."""
    model, images = segmenter().eval(), pictures(case)
    run = torch.compile(model) if compiled else model

    def call() -> torch.Tensor:
        with torch.inference_mode(), precision():
            return run(images).float().sigmoid()

    call()
    return Calls(call, case.images)


def _training(
    case: Case,
    model: torch.nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    compiled: bool,
) -> Calls:
    images = pictures(case)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())
    run = torch.compile(model.train()) if compiled else model.train()

    def call() -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        with precision():
            logits = run(images)
        loss = loss_of(logits)
        loss.backward()
        adam.step()
        return loss.detach()

    call()  # compiles, and fails here if it cannot
    return Calls(call, case.images)
