"""Transformation robustness: what drives a unit shall also drive it a little moved, scaled and turned.

Without it activation maximization finds high-frequency patterns that no photograph has [Olah et al. 2017].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.errors import FvlightError


@dataclass(frozen=True)
class Transformations:
    """A random shift, scaling and rotation of each image, in one bilinear interpolation; rims are mirrored.

    Args:
        shift: pixels, either way, in both directions.
        scale: by a factor from 1 / (1 + scale) to 1 + scale, uniform in its logarithm.
        rotation: degrees, either way.
    """

    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "rotation"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise FvlightError(f"robust.{name}={value}: 0, or how far an image is transformed at random")

    def __bool__(self) -> bool:
        return bool(self.shift or self.scale or self.rotation)

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images (b, C, H, W), each transformed by draws from its own seed."""
        # float32 whatever the default is: the draws don't depend on the precision
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = torch.stack([torch.rand(4, generator=generator, dtype=torch.float32) for generator in generators])
        right, down, turn, size = (2 * draws.to(images) - 1).unbind(1)
        height, width = images.shape[-2:]
        factor = (size * math.log1p(self.scale)).exp()
        angle = torch.deg2rad(turn * self.rotation)
        cosine, sine = angle.cos() / factor, angle.sin() / factor
        # From places in the result to places in the image, both from -1 to 1: pixels are square, sides may differ.
        moved = torch.stack([-2 * self.shift * right / width, -2 * self.shift * down / height], 1)
        linear = torch.stack([cosine, -sine * height / width, sine * width / height, cosine], 1).view(-1, 2, 2)
        grid = F.affine_grid(torch.cat([linear, moved[..., None]], 2), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
