"""Smoothness as a prior."""

from __future__ import annotations

from torch import Tensor, nn

from fvlight.errors import FvlightError


class TotalVariation(nn.Module):
    """``log P(x) = -sum |x_p - x_q|^power`` over neighbouring pixels p, q and channels (anisotropic total variation).

    Up to a constant the logarithm of a density of pixel differences: Laplace's for power 1, Gauss's for 2, which is the
    total variation of Mahendran & Vedaldi 2015 at their beta of 2. In units of the input space.
    """

    def __init__(self, power: float = 1) -> None:
        super().__init__()
        if not power >= 1:
            raise FvlightError(f"power={power} of total variation: must be at least 1")
        self.power = power

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N,)."""
        rows = (images[..., 1:, :] - images[..., :-1, :]).abs().pow(self.power).sum((1, 2, 3))
        columns = (images[..., 1:] - images[..., :-1]).abs().pow(self.power).sum((1, 2, 3))
        return -(rows + columns)
