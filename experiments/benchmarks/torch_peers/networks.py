"""Training and inference steps in PyTorch: torchvision's DenseNet-121, smp's DeepLabv3+ on ResNet-18.

On a GPU in bfloat16 by autocast, channels last, with a fused Adam; on a CPU in float32. Images are
normalized beforehand, while ours are normalized in the step.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torchvision

from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from experiments.benchmarks.workloads import Case


class TorchRunner:
    """A `Runner` of a function without arguments."""

    def __init__(self, function: Callable[[], Any], images: int) -> None:
        """Take a function, and the number of images that it processes."""
        self.start, self.images = function, images

    def wait(self, started: Any) -> None:
        """Wait for the GPU; calls on a CPU are synchronous."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def torch_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> Any:
    """Return the context of mixed precision on a GPU."""
    if torch.cuda.is_available():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def to_device(model: torch.nn.Module) -> torch.nn.Module:
    """Move a network to the device, in its fastest memory format."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if torch.cuda.is_available():
        return model.to(torch_device(), memory_format=torch.channels_last)
    return model


def random_inputs(case: Case) -> torch.Tensor:
    """Return a batch of random normalized images on the device."""
    images = torch.randn(case.images, 3, case.size, case.size, device=torch_device())
    if torch.cuda.is_available():
        return images.contiguous(memory_format=torch.channels_last)
    return images


def torchvision_densenet() -> torch.nn.Module:
    """Return DenseNet-121 with an output for each of the fourteen observations."""
    return to_device(torchvision.models.densenet121(weights=None, num_classes=len(OBSERVATIONS)))


def smp_deeplab() -> torch.nn.Module:
    """Return DeepLabv3+ with an output for each of the ten pathologies."""
    return to_device(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=len(PATHOLOGIES)))


def classifier_training_step(case: Case, *, compiled: bool) -> TorchRunner:
    """Return the classifier's training step."""
    labels = torch.randint(-1, 2, (case.images, len(OBSERVATIONS)), device=torch_device())
    valid, targets = (labels >= 0).float(), labels.clamp(min=0).float()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return (bce(logits.float(), targets, reduction="none") * valid).sum() / valid.sum()

    return _training_step(case, torchvision_densenet(), loss_of, compiled)


def segmenter_training_step(case: Case, *, compiled: bool) -> TorchRunner:
    """Return the segmenter's training step."""
    shape = (case.images, len(PATHOLOGIES), case.size, case.size)
    masks = (torch.rand(shape, device=torch_device()) > 0.8).float()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        probs = logits.float().sigmoid()
        intersection, areas = (probs * masks).sum((0, 2, 3)), (probs + masks).sum((0, 2, 3))
        return 1 - ((2 * intersection + 1) / (areas + 1)).mean()

    return _training_step(case, smp_deeplab(), loss_of, compiled)


def segmenter_inference_step(case: Case, *, compiled: bool) -> TorchRunner:
    """Return the segmenter's inference on a batch."""
    model, images = smp_deeplab().eval(), random_inputs(case)
    forward = torch.compile(model) if compiled else model

    def call() -> torch.Tensor:
        with torch.inference_mode(), autocast():
            return forward(images).float().sigmoid()

    call()  # compiles, and fails early where it cannot
    return TorchRunner(call, case.images)


def _training_step(
    case: Case,
    model: torch.nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    compiled: bool,
) -> TorchRunner:
    images = random_inputs(case)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())
    forward = torch.compile(model.train()) if compiled else model.train()

    def call() -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        with autocast():
            logits = forward(images)
        loss = loss_of(logits)
        loss.backward()
        adam.step()
        return loss.detach()

    call()  # compiles, and fails early where it cannot
    return TorchRunner(call, case.images)
