"""Smoothness as a prior."""

from __future__ import annotations

from torch import Tensor, nn


class TotalVariation(nn.Module):
    """``log P(x) = -sum |x_p - x_q|`` over neighbouring pixels p, q and channels (anisotropic total variation).

    Up to a constant the logarithm of a Laplace density of pixel differences; in units of the input space.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N,)."""
        rows = (images[..., 1:, :] - images[..., :-1, :]).abs().sum((1, 2, 3))
        columns = (images[..., 1:] - images[..., :-1]).abs().sum((1, 2, 3))
        return -(rows + columns)
