"""Images of fixed norm."""

from __future__ import annotations

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.parameterizations.spectral import precondition, spectral_filter


class NormSphere:
    """``image = norm * raw / |raw|``, each image by itself; ``raw`` starts as white noise [C, authors' code].

    Args:
        norm: L2 norm of every image, in the units of the network's input space.
        shape: (channels, height, width) of an image.
        preconditioned: filter the gradient with respect to the image by 1/sqrt(f), before it passes through the
            normalisation, as the authors do.
    """

    def __init__(self, norm: float, shape: tuple[int, int, int], preconditioned: bool = True) -> None:
        if not norm > 0:
            raise FvlightError(f"norm={norm}: the norm of an image must be positive")
        self.norm, self.shape = float(norm), tuple(shape)
        self._gain = spectral_filter(*shape[1:]) if preconditioned else None

    def start(self, images: int, seed: int) -> Tensor:
        """Raw parameters (images, C, H, W) of one problem, drawn from its own seed; float32."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(images, *self.shape, generator=generator)

    def __call__(self, raw: Tensor) -> Tensor:
        """Raw parameters (..., C, H, W) to images of the same shape."""
        norms = torch.linalg.vector_norm(raw, dim=(-3, -2, -1), keepdim=True)
        images = raw * (self.norm / norms)
        if self._gain is None:
            return images
        if self._gain.device != raw.device or self._gain.dtype != raw.dtype:
            self._gain = self._gain.to(raw.device, raw.dtype)
        return precondition(images, self._gain)
