"""Smoother gradients: the authors' preconditioning by 1/sqrt(f)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def spectral_filter(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """The filter ``F = 1 / max(1, sqrt f)`` over the frequencies of `torch.fft.rfft2`, scaled to mean 1.

    ``f = sqrt(ty² + tx²)`` with ``t_i = min(i, n - i)``, in cycles per image; the mean is taken over the full
    (height, width) plane, as in the authors' code. Returns (height, width // 2 + 1), float64.
    """
    ty = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64, device=device)
    tx = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64, device=device)
    full = (ty[:, None] ** 2 + tx[None, :] ** 2).pow(0.25).clamp_min(1).reciprocal()
    return (full / full.mean())[:, : width // 2 + 1]


class _Precondition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(gain)
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gain,) = ctx.saved_tensors
        spectrum = torch.fft.rfft2(gradient) * gain
        return torch.fft.irfft2(spectrum, s=gradient.shape[-2:]), None


def precondition(images: Tensor, gain: Tensor) -> Tensor:
    """The images as they are; gradients that flow back are filtered per channel: ``Re ifft2(fft2(g) F)``.

    Args:
        images: (..., H, W).
        gain: (H, W // 2 + 1) from `spectral_filter`, in the images' number type.
    """
    return _Precondition.apply(images, gain)  # type: ignore[no-any-return]
