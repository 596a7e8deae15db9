"""How alike two images look: structural similarity and peak signal-to-noise ratio (torchmetrics)."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (t,) of images (t, C, H, W) in [0, 1]."""
    window = min(11, *(side - (side + 1) % 2 for side in first.shape[-2:]))  # odd, and inside the image
    found = structural_similarity_index_measure(
        first.clamp(0, 1), second.clamp(0, 1), data_range=1.0, kernel_size=window, reduction="none",
        gaussian_kernel=window == 11,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found.double()


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (t,) in decibels of images (t, C, H, W) in [0, 1]; infinite where they are equal."""
    return peak_signal_noise_ratio(
        first.clamp(0, 1), second.clamp(0, 1), data_range=1.0, reduction="none", dim=(1, 2, 3)
    ).double()
