"""Renderings of a surface for SRNet: mask, normals and depth that a surface can have [R, Sec. 3]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.graphs.operations import Pair
from fvlight.network import InputSpace
from fvlight.parameterizations.pixels import require

RENDERED, PREVIOUS = 5, 96  # channels of a rendering; of the frame before it, as SRNet takes it


@dataclass(frozen=True)
class GeometryMaps:
    """Maps (mask, normal x, y, z, depth) of which every parameter gives a possible one.

    A normal is ``(sin t cos p, sin t sin p, cos t)``: the azimuth p is the parameter itself, the polar angle is
    ``t = pi/2 sigmoid(raw)``, so that no normal points away from the viewer (z >= 0). The depth is a sigmoid, 0 to 1.
    A network that also takes the previous frame gets zeros for it, as at the first frame of a film.

    Args:
        input_space: of the network: 5 channels, or 101 with those of the previous frame.
        size: (height, width) of the maps.
        continuous_mask: a mask from -1 to 1 by tanh, a parameter like the others; else it is 1, all surface.
        sd: standard deviation of the parameters at the start.
    """

    input_space: InputSpace
    size: Pair
    continuous_mask: bool = False
    sd: float = 0.01

    def __post_init__(self) -> None:
        require(self.size, self.sd)
        if self.input_space.channels not in (RENDERED, RENDERED + PREVIOUS):
            raise FvlightError(
                f"a network of {self.input_space.channels} input channels takes no geometry maps: they are for SRNet "
                f"({RENDERED} or {RENDERED + PREVIOUS} channels); take pixels or fourier for photographs"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3 or 4, H, W) of one problem's parameters: azimuth, polar angle, depth, and the mask if continuous."""
        return 3 + self.continuous_mask, self.size[0], self.size[1]

    def start(self, seed: int) -> Tensor:
        """Parameters (3 or 4, H, W) of one problem, drawn from its own seed; float32."""
        generator = torch.Generator().manual_seed(seed)
        return self.sd * torch.randn(self.shape, generator=generator, dtype=torch.float32)

    def __call__(self, raw: Tensor) -> Tensor:
        """Parameters (b, 3 or 4, H, W) to maps (b, 5 or 101, H, W)."""
        azimuth, polar, depth = raw[:, 0], math.pi / 2 * torch.sigmoid(raw[:, 1]), torch.sigmoid(raw[:, 2])
        mask = torch.tanh(raw[:, 3]) if self.continuous_mask else torch.ones_like(depth)
        normal = (polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos())
        previous = [torch.zeros_like(depth)] * (self.input_space.channels - RENDERED)
        return torch.stack([mask, *normal, depth, *previous], 1)
