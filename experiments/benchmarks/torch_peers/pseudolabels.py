"""The released algorithms for CAMs, CRF and random walk: loops over classes, dense matrices, one image.

Two differences favor them: the CRF runs on the grid of stride 4, the release's on every pixel; and the
walk propagates all ten maps at once, while the release repeats it for each.
"""

from typing import Any

import torch

from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, PATHOLOGIES
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import CrfConfig
from chexseg_jax.stages.pseudo_masks import PseudoMasksConfig
from chexseg_jax.stages.seeds import STRIDE
from experiments.benchmarks.torch_peers.networks import (
    TorchRunner,
    random_inputs,
    torch_device,
    torchvision_densenet,
)
from experiments.benchmarks.workloads import Case

MAX_SIDE = 80
"""The side of the largest grid whose dense walk a CPU finishes in seconds."""


def grad_cam_runner(case: Case) -> TorchRunner:
    """Return Grad-CAM of one image, with a backward pass for each pathology."""
    model: Any = torchvision_densenet().eval()
    image = random_inputs(case)[:1]

    def call() -> torch.Tensor:
        maps = []
        features = model.features(image)
        features.retain_grad()
        logits = model.classifier(torch.relu(features).mean((2, 3)))
        for k in OBSERVATION_OF_PATHOLOGY:
            model.zero_grad()
            features.grad = None
            logits[0, k].backward(retain_graph=True)
            weights = features.grad.mean((2, 3), keepdim=True)
            maps.append(torch.relu((weights * features).sum(1)).detach())
        return torch.cat(maps)

    return TorchRunner(call, 1)


def crf_runner(case: Case) -> TorchRunner:
    """Return the CRF of one image, with new kernels for each pathology and threshold."""
    config, device = CrfConfig(), torch_device()
    ys, xs = torch.meshgrid(torch.arange(case.size), torch.arange(case.size), indexing="ij")
    grid = STRIDE * torch.stack([ys, xs], -1).reshape(-1, 2).float().to(device)
    gray = 255 * torch.rand(case.size**2, 1, device=device)
    masks = torch.rand(2 * len(PATHOLOGIES), case.size**2, device=device) > 0.7

    def kernel(features: torch.Tensor) -> torch.Tensor:
        gaussian = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        norms = gaussian.sum(1) ** -0.5
        return norms[:, None] * gaussian * norms[None]

    def refine(mask: torch.Tensor) -> torch.Tensor:
        intensity = gray * 3**0.5 / config.appearance_contrast
        smoothness = config.smoothness * kernel(grid / config.smoothness_reach)
        bilateral = torch.cat([grid / config.appearance_reach, intensity], 1)
        kernels = smoothness + config.appearance * kernel(bilateral)
        odds = config.confidence / (1 - config.confidence)
        unary = (2 * mask.float() - 1) * torch.log(torch.tensor(odds))
        logits = unary
        for _ in range(config.iterations):
            logits = unary + kernels @ torch.tanh(logits / 2)
        return logits.sigmoid()

    return TorchRunner(lambda: [refine(mask) for mask in masks], 1)


def random_walk_runner(case: Case) -> TorchRunner:
    """Return the walk in one image, as powers of the dense transition matrix."""
    device, side = torch_device(), case.size
    if device.type == "cpu" and side > MAX_SIDE:
        raise ValueError(f"a dense walk over {side} x {side} cells takes minutes on a CPU")
    beta = PseudoMasksConfig().beta
    boundaries = torch.rand(side, side, device=device) ** 4
    maps = torch.rand(len(PATHOLOGIES), side, side, device=device)
    return TorchRunner(
        lambda: dense_random_walk(boundaries, maps, case.radius, beta, case.steps), 1
    )


def dense_random_walk(
    boundaries: torch.Tensor, maps: torch.Tensor, radius: int, beta: float, steps: int
) -> torch.Tensor:
    """Propagate the maps (k, h, w) of one image by `steps` steps, a power of two."""
    side, reach = boundaries.shape[0], radius - 1
    padded = torch.nn.functional.pad(boundaries, (reach, reach, 0, reach), value=1.0)
    cells = torch.arange(side * side, device=boundaries.device)
    ys, xs = cells // side, cells % side
    matrix = torch.eye(side * side, device=boundaries.device)
    for path in paths(radius):
        maximum = torch.stack([padded[ys + dy, xs + dx + reach] for dy, dx in path]).amax(0)
        dy, dx = path[0]
        inside = (ys + dy < side) & (xs + dx >= 0) & (xs + dx < side)
        neighbors, affinity = (cells + dy * side + dx)[inside], (1 - maximum)[inside] ** beta
        matrix[cells[inside], neighbors] = affinity
        matrix[neighbors, cells[inside]] = affinity
    matrix /= matrix.sum(0, keepdim=True)
    for _ in range(steps.bit_length() - 1):
        matrix = matrix @ matrix
    return ((maps * (1 - boundaries)).flatten(1) @ matrix).reshape(maps.shape)
