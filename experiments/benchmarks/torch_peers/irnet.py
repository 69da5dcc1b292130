"""IRNet's training in PyTorch: paths gathered by index, with all pairs of all pathologies in memory."""

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
from experiments.benchmarks.torch_peers.networks import (
    TorchRunner,
    autocast,
    random_inputs,
    to_device,
    torch_device,
)
from experiments.benchmarks.workloads import Case

CHANNELS = (64, 256, 512, 1024, 2048)


class TorchBranch(nn.Module):
    """A 1 x 1 convolution, group norm, upsampling and ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)
        )

    def forward(self, features: torch.Tensor, size: Any) -> torch.Tensor:
        """Return the branch's features at a size."""
        upsampled = nn.functional.interpolate(self.layers(features), size, mode="bilinear")
        return torch.relu(upsampled)


class TorchHeads(nn.Module):
    """IRNet's boundary and displacement heads."""

    def __init__(self) -> None:
        super().__init__()
        widths = DISPLACEMENT_WIDTHS
        self.edges = nn.ModuleList(TorchBranch(c, EDGE_WIDTH, EDGE_GROUPS) for c in CHANNELS)
        self.edge = nn.Conv2d(5 * EDGE_WIDTH, 1, 1)
        sizes = zip(CHANNELS, widths, DISPLACEMENT_GROUPS, strict=True)
        self.displacements = nn.ModuleList(TorchBranch(*size) for size in sizes)
        self.coarse = TorchBranch(sum(widths[2:]), 256, 16)
        self.fine = TorchBranch(sum(widths[:2]) + 256, 256, 16)
        self.displacement = nn.Conv2d(256, 2, 1, bias=False)

    def forward(self, stages: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boundary logits and displacements."""
        grid, half = stages[1].shape[2:], stages[2].shape[2:]
        edges = [branch(stage, grid) for branch, stage in zip(self.edges, stages, strict=True)]
        branches = zip(self.displacements, stages, (grid, grid, half, half, half), strict=True)
        features = [branch(stage, size) for branch, stage, size in branches]
        coarse = self.coarse(torch.cat(features[2:], 1), grid)
        fine = self.fine(torch.cat([*features[:2], coarse], 1), grid)
        return self.edge(torch.cat(edges, 1)), self.displacement(fine)


def frozen_resnet50() -> Any:
    """Return a frozen ResNet-50 of output stride 16."""
    model = torchvision.models.resnet50(weights=None).eval().requires_grad_(False)
    first: Any = model.layer4[0]
    first.conv2.stride = first.downsample[0].stride = (1, 1)
    return to_device(model)


def resnet_stages(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the features of the five stages."""
    features = [model.maxpool(torch.relu(model.bn1(model.conv1(images))))]
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        features.append(layer(features[-1]))
    return features


def irnet_loss(
    edge: torch.Tensor, displacement: torch.Tensor, labels: torch.Tensor, radius: int
) -> torch.Tensor:
    """Return IRNet's loss, averaged over the pathologies; labels are (b, k, h, w)."""
    height, width = edge.shape[2:]
    reach = radius - 1
    ys = torch.arange(height - reach, device=edge.device)[:, None]
    xs = torch.arange(reach, width - reach, device=edge.device)[None]
    origin = (ys * width + xs).flatten()
    boundaries, flow, flat_labels = (
        edge.sigmoid().flatten(1),
        displacement.flatten(2),
        labels.flatten(2),
    )
    paths_by_length: dict[int, list[Any]] = {}
    for path in paths(radius):
        paths_by_length.setdefault(len(path), []).append(path)
    affinities, ends, offsets = [], [], []
    for group in paths_by_length.values():
        steps = torch.tensor([[dy * width + dx for dy, dx in p] for p in group], device=edge.device)
        index = steps[:, :, None] + origin[None, None]
        affinities.append(1 - boundaries[:, index].amax(2))
        ends.append(index[:, 0])
        offsets += [path[0] for path in group]
    affinity, end = torch.cat(affinities, 1)[:, None], torch.cat(ends)
    source, target = flat_labels[:, :, None, origin], flat_labels[:, :, end]
    foreground, background = (source == 1) & (target == 1), (source == 0) & (target == 0)
    differ = ((source == 1) & (target == 0)) | ((source == 0) & (target == 1))
    moved = flow[:, :, None, origin] - flow[:, :, end]
    offset = torch.tensor(offsets, device=edge.device).T[None, :, :, None]

    def mean(cost: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        return (cost * pairs).sum((0, 2, 3)) / (pairs.sum((0, 2, 3)) + 1e-5)

    same_cost, differ_cost = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    same = (mean(same_cost, background) + mean(same_cost, foreground)) / 2
    off_target, motion = (moved - offset).abs().mean(1)[:, None], moved.abs().mean(1)[:, None]
    displaced = mean(off_target, foreground) + mean(motion, background)
    return ((same + mean(differ_cost, differ) + displaced) / 2).mean()


def irnet_training_step(case: Case) -> TorchRunner:
    """Return IRNet's training step."""
    model, heads, images = frozen_resnet50(), to_device(TorchHeads()), random_inputs(case)
    sgd = torch.optim.SGD(heads.parameters(), lr=0.1, weight_decay=1e-4)
    shape = (case.images, len(PATHOLOGIES), case.size // 4, case.size // 4)
    labels = torch.randint(-1, 2, shape, device=torch_device())

    def call() -> torch.Tensor:
        sgd.zero_grad(set_to_none=True)
        with autocast():
            with torch.no_grad():
                stages = resnet_stages(model, images)
            edge, displacement = heads(stages)
        loss = irnet_loss(edge.float(), displacement.float(), labels, case.radius)
        loss.backward()
        sgd.step()
        return loss.detach()

    return TorchRunner(call, case.images)
