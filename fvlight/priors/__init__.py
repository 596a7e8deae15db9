"""Natural-image priors: modules from images (N, C, H, W) to log-likelihoods (N,), up to a constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fvlight.priors.norms import Lp
from fvlight.priors.pixelcnn import PixelCNN
from fvlight.priors.smoothness import TotalVariation


def likelihoods(prior: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(..., C, H, W) to (...): log-likelihoods, where a prior has a network this one computed in ``dtype``."""
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        return prior(images.flatten(0, -4)).view(images.shape[:-3])  # type: ignore[no-any-return]


def identity_of(prior: nn.Module | None) -> str:
    """A prior in a word or two, to be compared when a run is resumed."""
    if prior is None:
        return "none"
    return f"{type(prior).__name__} {getattr(prior, 'identity', '')}".strip()


__all__ = ["Lp", "PixelCNN", "TotalVariation", "identity_of", "likelihoods"]
