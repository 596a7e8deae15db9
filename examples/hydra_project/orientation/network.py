"""A cell that answers a grating of any orientation, as a network that fvlight knows by name."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from fvlight import InputSpace, Network
from fvlight.zoo.registry import register


class Strongest(nn.Module):
    """A smooth maximum over channels: (N, C, H, W) to (N, 1, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.pow(8).sum(1, keepdim=True).add(1e-12).pow(1 / 8)


def gratings(size: int, orientations: int) -> Tensor:
    """(orientations, 1, size, size): gratings of 6 pixels a cycle in a Gaussian window, of unit norm."""
    axis = torch.arange(size) - (size - 1) / 2
    y, x = axis[:, None], axis[None, :]
    angles = [math.pi * k / orientations for k in range(orientations)]
    waves = torch.stack([torch.cos(2 * math.pi / 6 * (x * math.cos(a) + y * math.sin(a))) for a in angles])
    patches = waves * torch.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2))
    return (patches / patches.flatten(1).norm(dim=1)[:, None, None])[:, None]


@register("orientation_cell")
def orientation_cell(*, weights: str = "default", seed: int = 0, size: int = 21, orientations: int = 6) -> Network:
    filters = nn.Conv2d(1, orientations, size, bias=False)
    filters.weight.data.copy_(gratings(size, orientations))
    layers = OrderedDict(simple=filters, rectified=nn.ReLU(), cell=Strongest())
    return Network(nn.Sequential(layers), "orientation_cell", InputSpace(channels=1, photographic=False))
