"""One texture per problem, looked at through a window at every place [C, Sec. 4.4]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.graphs.operations import Pair
from fvlight.parameterizations.spectral import precondition, spectral_filter


def window_mask(size: Pair, sigma: tuple[float, float]) -> Tensor:
    """A soft window ``exp(-(r / sigma)^4)`` (height, width) about the centre of a crop; float64.

    Args:
        size: of the crop, pixels.
        sigma: (height, width), pixels; of unequal ones r is measured in each.
    """
    axes = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / s for n, s in zip(size, sigma, strict=True))
    y, x = axes
    return torch.exp(-((y[:, None] ** 2 + x[None, :] ** 2) ** 2))


class Texture:
    """Textures of side ``2 RF - 1`` and the windowed crops of one receptive field's size, all scaled together.

    The root mean square of the norms of a texture's crops, windows applied, is ``norm`` [C, authors' code].

    Args:
        norm: in the units of the network's input space.
        shape: (channels, height, width) of a crop: the receptive field.
        sigma_ratio: the receptive field's side over the window's sigma; the paper says about 2.5, the code 2.4.
        every_place: also the crop at the last row and column; the authors' code leaves it out, (RF - 1)² are left.
        preconditioned: filter the gradients with respect to the crops by 1/sqrt(f), as the authors do.
    """

    def __init__(
        self, norm: float, shape: tuple[int, int, int], *, sigma_ratio: float = 2.4, every_place: bool = False,
        preconditioned: bool = True,
    ) -> None:  # fmt: skip
        if not norm > 0:
            raise FvlightError(f"norm={norm}: the norm of a crop must be positive")
        if not sigma_ratio > 0:
            raise FvlightError(f"sigma_ratio={sigma_ratio}: the receptive field's side over sigma must be positive")
        channels, height, width = shape
        self.norm, self.crop = float(norm), (height, width)
        self.shape = (channels, 2 * height - 1, 2 * width - 1)
        self.places = (height, width) if every_place else (max(height - 1, 1), max(width - 1, 1))
        self.mask = window_mask(self.crop, (height / sigma_ratio, width / sigma_ratio)).float()
        self._gain = spectral_filter(height, width).float() if preconditioned else None

    def stride(self, crops: int) -> int:
        """Every so many-th place in height and in width leaves about that many crops."""
        return math.ceil(math.sqrt(self.places[0] * self.places[1] / crops))

    def start(self, seed: int) -> Tensor:
        """Raw parameters (C, 2 H - 1, 2 W - 1) of one problem: white noise from its own seed; float32."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def textures(self, raw: Tensor) -> Tensor:
        """Raw parameters (b, C, S, S') to textures of the same shape, at their scale."""
        # The squared norm of every crop at once: the squared texture, summed over channels, under the squared window.
        energy = raw.square().sum(1, keepdim=True)
        norms = F.conv2d(energy, self._to(self.mask, raw).square()[None, None])[..., : self.places[0], : self.places[1]]
        return raw * (self.norm / norms.mean((2, 3), keepdim=True).sqrt())

    def crops(self, textures: Tensor, rows: slice = slice(None), step: int = 1, first: Pair = (0, 0)) -> Tensor:
        """The windowed crops (b, k, C, H, W) of textures (b, C, S, S'), row by row.

        Args:
            rows: only those that begin in these rows of the texture.
            step, first: only every so many-th place, from this one on.
        """
        windows = textures.unfold(2, self.crop[0], 1).unfold(3, self.crop[1], 1)  # a view: (b, C, P, Q, H, W)
        windows = windows[:, :, first[0] : self.places[0] : step, first[1] : self.places[1] : step][:, :, rows]
        crops = (windows * self._to(self.mask, textures)).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        return crops if self._gain is None else precondition(crops, self._to(self._gain, textures))

    @staticmethod
    def _to(constant: Tensor, like: Tensor) -> Tensor:
        return constant.to(like.device, like.dtype)
