"""IRNet's training in PyTorch: every path gathered by index, every pair of every pathology stored."""

from typing import Any

import torch
import torchvision
from torch import nn

from chexseg_jax.models.irnet import (
    DISPLACEMENT_GROUPS,
    DISPLACEMENT_WIDTHS,
    EDGE_GROUPS,
    EDGE_WIDTH,
)
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.affinity import paths
from experiments.benchmarks.torch_peers.networks import Calls, device, pictures, placed, precision
from experiments.benchmarks.workloads import Case

CHANNELS = (64, 256, 512, 1024, 2048)


class Branch(nn.Module):
    """A 1 x 1 convolution, group norm, enlargement, ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)
        )

    def forward(self, maps: torch.Tensor, size: Any) -> torch.Tensor:
        """Returns the branch's maps at a size."""
        larger = nn.functional.interpolate(self.layers(maps), size, mode="bilinear")
        return torch.relu(larger)


class Heads(nn.Module):
    """IRNet's two heads."""

    def __init__(self) -> None:
        super().__init__()
        widths = DISPLACEMENT_WIDTHS
        self.edges = nn.ModuleList(Branch(c, EDGE_WIDTH, EDGE_GROUPS) for c in CHANNELS)
        self.edge = nn.Conv2d(5 * EDGE_WIDTH, 1, 1)
        sizes = zip(CHANNELS, widths, DISPLACEMENT_GROUPS, strict=True)
        self.shifts = nn.ModuleList(Branch(*some) for some in sizes)
        self.coarse = Branch(sum(widths[2:]), 256, 16)
        self.fine = Branch(sum(widths[:2]) + 256, 256, 16)
        self.shift = nn.Conv2d(256, 2, 1, bias=False)

    def forward(self, stages: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns boundary logits and displacements."""
        grid, half = stages[1].shape[2:], stages[2].shape[2:]
        edges = [edge(stage, grid) for edge, stage in zip(self.edges, stages, strict=True)]
        grids = (grid, grid, half, half, half)
        shifts = [f(stage, g) for f, stage, g in zip(self.shifts, stages, grids, strict=True)]
        coarse = self.coarse(torch.cat(shifts[2:], 1), grid)
        fine = self.fine(torch.cat([*shifts[:2], coarse], 1), grid)
        return self.edge(torch.cat(edges, 1)), self.shift(fine)


def backbone() -> Any:
    """Returns a frozen ResNet-50 whose last stage keeps the grid of the one before."""
    model = torchvision.models.resnet50(weights=None).eval().requires_grad_(False)
    first: Any = model.layer4[0]
    first.conv2.stride = first.downsample[0].stride = (1, 1)
    return placed(model)


def stages_of(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Returns the maps of the five stages."""
    maps = [model.maxpool(torch.relu(model.bn1(model.conv1(images))))]
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps.append(layer(maps[-1]))
    return maps


def pair_loss(
    edge: torch.Tensor, shift: torch.Tensor, labels: torch.Tensor, radius: int
) -> torch.Tensor:
    """Returns IRNet's loss, the mean over the pathologies; labels are (b, k, h, w)."""
    height, width = edge.shape[2:]
    reach = radius - 1
    ys = torch.arange(height - reach, device=edge.device)[:, None]
    xs = torch.arange(reach, width - reach, device=edge.device)[None]
    origin = (ys * width + xs).flatten()
    flat, shifts, marks = edge.sigmoid().flatten(1), shift.flatten(2), labels.flatten(2)
    groups: dict[int, list[Any]] = {}
    for path in paths(radius):
        groups.setdefault(len(path), []).append(path)
    alike, ends, steps = [], [], []
    for some in groups.values():
        moves = torch.tensor([[dy * width + dx for dy, dx in p] for p in some], device=edge.device)
        index = moves[:, :, None] + origin[None, None]
        alike.append(1 - flat[:, index].amax(2))
        ends.append(index[:, 0])
        steps += [path[0] for path in some]
    affinity, end = torch.cat(alike, 1)[:, None], torch.cat(ends)
    here, there = marks[:, :, None, origin], marks[:, :, end]
    disease, ground = (here == 1) & (there == 1), (here == 0) & (there == 0)
    differ = ((here == 1) & (there == 0)) | ((here == 0) & (there == 1))
    moved = shifts[:, :, None, origin] - shifts[:, :, end]
    target = torch.tensor(steps, device=edge.device).T[None, :, :, None]

    def mean(cost: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        return (cost * pairs).sum((0, 2, 3)) / (pairs.sum((0, 2, 3)) + 1e-5)

    same, other = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    likeness = (mean(same, ground) + mean(same, disease)) / 2 + mean(other, differ)
    off, still = (moved - target).abs().mean(1)[:, None], moved.abs().mean(1)[:, None]
    return ((likeness + mean(off, disease) + mean(still, ground)) / 2).mean()


def irnet(case: Case) -> Calls:
    """Returns a step of IRNet's training."""
    model, heads, images = backbone(), placed(Heads()), pictures(case)
    sgd = torch.optim.SGD(heads.parameters(), lr=0.1, weight_decay=1e-4)
    side = case.size // 4
    labels = torch.randint(-1, 2, (case.images, len(PATHOLOGIES), side, side), device=device())

    def call() -> torch.Tensor:
        sgd.zero_grad(set_to_none=True)
        with precision():
            with torch.no_grad():
                stages = stages_of(model, images)
            edge, shift = heads(stages)
        loss = pair_loss(edge.float(), shift.float(), labels, case.radius)
        loss.backward()
        sgd.step()
        return loss.detach()

    return Calls(call, case.images)
