"""Boundedness as a prior."""

from __future__ import annotations

from torch import Tensor, nn

from fvlight.errors import FvlightError


class Lp(nn.Module):
    """``log P(x) = -sum |x|^p`` over pixels and channels: with a large p a soft limit on how far they go.

    Mahendran & Vedaldi 2015, Sec. 3: p = 6, of images whose mean was subtracted.
    """

    def __init__(self, power: float = 6) -> None:
        super().__init__()
        if not power >= 1:
            raise FvlightError(f"power={power} of a norm: must be at least 1")
        self.power = power

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N,)."""
        return -images.abs().pow(self.power).sum((1, 2, 3))
