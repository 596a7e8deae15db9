"""Pixels as they are, in the 256 levels of a photograph about a network's zero."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fvlight.parameterizations.pixels import PixelParameters
from fvlight.parameterizations.spectral import spectral_filter

LEVELS = 255


@dataclass(frozen=True)
class Levels(PixelParameters):
    """Levels from about -128 to 128 as parameters, nothing bounds them [Mahendran & Vedaldi 2015; FeatureVis].

    For networks on 0 to 255 without a division these are the input itself; all others are brought to that scale, so
    that step sizes and priors mean the same. 0 is the network's mean colour, mid-grey where it subtracts none.

    Args:
        input_space: of the network.
        size: (height, width) of the images.
        sd: standard deviation of the parameters at the start.
        preconditioned: the levels are the parameters filtered by `spectral_filter`, 1/sqrt(f). Nothing is lost, and a
            step changes large shapes, about which a network's maps say little, as readily as fine noise.
    """

    sd: float = 10.0
    preconditioned: bool = False

    def __call__(self, raw: Tensor) -> Tensor:
        """Parameters (b, C, H, W) to images of the same shape, in input space."""
        slope, zero = self._scale(raw)
        return (self._filtered(raw, self._gain) if self.preconditioned else raw) / slope + zero

    def raw_of(self, images: Tensor) -> Tensor:
        """Parameters (b, C, H, W) of images of the same shape in input space, whatever their numbers.

        Raises:
            FvlightError: another size, numbers that are not finite.
        """
        self._require_images(images)
        levels = self.of(images)
        return self._filtered(levels, 1 / self._gain) if self.preconditioned else levels

    def of(self, images: Tensor) -> Tensor:
        """The levels of images (b, C, H, W), with a gradient."""
        slope, zero = self._scale(images)
        return (images - zero) * slope

    @cached_property
    def _gain(self) -> Tensor:
        """(H, W // 2 + 1), float64."""
        return spectral_filter(*self.size)

    def _filtered(self, levels: Tensor, gain: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(levels) * gain.to(levels), s=self.size)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels per unit of the input, and the input of level 0; (C or 1, 1, 1)."""
        space = self.input_space
        std = torch.as_tensor(space.std, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
        return std * (LEVELS / space.scale), (0 if any(space.mean) else space.scale / 2) / std
