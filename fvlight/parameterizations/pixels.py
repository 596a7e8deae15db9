"""Photographs pixel by pixel: every number of the image through a sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.graphs.operations import Pair
from fvlight.network import InputSpace

# Half a step between two of the 256 levels of a photograph: clipped images look the same on a screen.
CLIP = 1 / 512


@dataclass(frozen=True)
class PixelParameters:
    """As many parameters as an image has numbers. What `SigmoidPixels` and `Levels` have in common."""

    input_space: InputSpace
    size: Pair
    sd: float

    def __post_init__(self) -> None:
        require(self.size, self.sd)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one problem's parameters, and of its image."""
        return self.input_space.channels, self.size[0], self.size[1]

    def start(self, seed: int) -> Tensor:
        """Parameters (C, H, W) of one problem, drawn from its own seed; float32."""
        generator = torch.Generator().manual_seed(seed)
        return self.sd * torch.randn(self.shape, generator=generator, dtype=torch.float32)

    def _require_images(self, images: Tensor) -> None:
        """An error unless these are finite images of this size."""
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise FvlightError(
                f"images of shape {tuple(images.shape)}: (images, {', '.join(map(str, self.shape))}) is parameterized "
                "here; resize them or give another size"
            )
        if not images.isfinite().all():
            raise FvlightError("the images hold NaN or infinite numbers: they have no parameters")


@dataclass(frozen=True)
class SigmoidPixels(PixelParameters):
    """``rgb = sigmoid(raw)``, each pixel and channel by itself, in the network's input space [R, Sec. 3].

    Args:
        input_space: of the network. Grey has one sigmoid a pixel.
        size: (height, width) of the images.
        sd: standard deviation of the parameters at the start; Lucid's 0.01 is a nearly even grey.
    """

    sd: float = 0.01

    def __call__(self, raw: Tensor) -> Tensor:
        """Parameters (b, C, H, W) to images of the same shape, in input space."""
        return self.input_space.from_rgb(torch.sigmoid(raw))

    def raw_of(self, images: Tensor, clip: float = CLIP) -> Tensor:
        """Parameters (b, C, H, W) of images of the same shape in input space: ``logit(rgb)``.

        Args:
            clip: rgb is first clipped to [clip, 1 - clip], since the logit of black and white is infinite. What is
                clipped has a small slope, ``clip (1 - clip)``; all the rest comes back exactly.

        Raises:
            FvlightError: another size, numbers that are not finite, or outside of [0, 1] by more than ``clip``.
        """
        self._require_images(images)
        rgb = self.input_space.to_rgb(images)
        low, high = rgb.min().item(), rgb.max().item()
        if low < -clip or high > 1 + clip:
            raise FvlightError(
                f"the images hold rgb from {low:.3f} to {high:.3f}, a sigmoid gives 0 to 1: are they in the network's "
                "input space? else clip them"
            )
        return torch.logit(rgb, clip)


def require(size: Pair, sd: float) -> None:
    """An error unless a (height, width) and a standard deviation are possible."""
    if len(size) != 2 or min(size) < 1:
        raise FvlightError(f"size={tuple(size)}: (height, width), 1 pixel or more each")
    if not (sd > 0 and math.isfinite(sd)):
        raise FvlightError(f"sd={sd}: the standard deviation of a start must be positive")
