"""The released maps' algorithms in shape: a pass back for each class, dense matrices, image by image.

Two differences in their favour: the CRF is computed on the grid of stride 4, where the release's has
every pixel, and the walk is done for all ten maps at once, where the release repeats it for each.
"""

from typing import Any

import torch

from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, PATHOLOGIES
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import CrfConfig
from chexseg_jax.stages.pseudo_masks import PseudoMasksConfig
from experiments.benchmarks.torch_peers.networks import Calls, classifier, device, pictures
from experiments.benchmarks.workloads import Case

LARGEST = 80
"""Side of the largest grid whose dense walk a CPU finishes in seconds."""


def grad_cam(case: Case) -> Calls:
    """Returns Grad-CAM of one image: one pass back through the network for each pathology."""
    model: Any = classifier(case).eval()
    image = pictures(case)[:1]

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

    return Calls(call, 1)


def crf(case: Case) -> Calls:
    """Returns the CRF of one image: each pathology and threshold by itself, its kernel made anew."""
    config, stride = CrfConfig(), 4
    ys, xs = torch.meshgrid(torch.arange(case.size), torch.arange(case.size), indexing="ij")
    grid = stride * torch.stack([ys, xs], -1).reshape(-1, 2).float().to(device())
    grey = 255 * torch.rand(case.size**2, 1, device=device())
    drawn = torch.rand(2 * len(PATHOLOGIES), case.size**2, device=device()) > 0.7

    def kernel(places: torch.Tensor) -> torch.Tensor:
        similar = torch.exp(-0.5 * torch.cdist(places, places) ** 2)
        degrees = similar.sum(1) ** -0.5
        return degrees[:, None] * similar * degrees[None]

    def refine(label: torch.Tensor) -> torch.Tensor:
        bright = grey * 3**0.5 / config.appearance_contrast
        near = config.smoothness * kernel(grid / config.smoothness_reach)
        alike = kernel(torch.cat([grid / config.appearance_reach, bright], 1))
        both = near + config.appearance * alike
        odds = config.confidence / (1 - config.confidence)
        unary = (2 * label.float() - 1) * torch.log(torch.tensor(odds))
        logits = unary
        for _ in range(config.iterations):
            logits = unary + both @ torch.tanh(logits / 2)
        return logits.sigmoid()

    return Calls(lambda: [refine(label) for label in drawn], 1)


def walk(case: Case) -> Calls:
    """Returns the walk in one image: a dense matrix of all pairs of cells, squared."""
    if device().type == "cpu" and case.size > LARGEST:
        raise ValueError(
            f"a dense walk over {case.size} x {case.size} cells takes minutes on a CPU"
        )
    beta, side = PseudoMasksConfig().beta, case.size
    bounds = torch.rand(side, side, device=device()) ** 4
    maps = torch.rand(len(PATHOLOGIES), side, side, device=device())
    return Calls(lambda: walked(bounds, maps, case.radius, beta, case.steps), 1)


def walked(
    bounds: torch.Tensor, maps: torch.Tensor, radius: int, beta: float, steps: int
) -> torch.Tensor:
    """Returns the maps (k, h, w) of one image after so many steps, a power of two."""
    side, reach = bounds.shape[0], radius - 1
    framed = torch.nn.functional.pad(bounds, (reach, reach, 0, reach), value=1.0)
    cells = torch.arange(side * side, device=bounds.device)
    ys, xs = cells // side, cells % side
    matrix = torch.eye(side * side, device=bounds.device)
    for path in paths(radius):
        crossed = torch.stack([framed[ys + dy, xs + dx + reach] for dy, dx in path]).amax(0)
        dy, dx = path[0]
        inside = (ys + dy < side) & (xs + dx >= 0) & (xs + dx < side)
        there, alike = (cells + dy * side + dx)[inside], (1 - crossed)[inside] ** beta
        matrix[cells[inside], there] = alike
        matrix[there, cells[inside]] = alike
    matrix /= matrix.sum(0, keepdim=True)
    for _ in range(steps.bit_length() - 1):
        matrix = matrix @ matrix
    return ((maps * (1 - bounds)).flatten(1) @ matrix).reshape(maps.shape)
