"""Gradient descent with momentum and an axis of problems."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fvlight.errors import FvlightError


@dataclass(frozen=True)
class Momentum:
    """``s = momentum s - lr g, x = x + s``; with ``lr`` 1 the steps of FeatureVis's reconstruction, and of
    `torch.optim.SGD` in any case.
    """

    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise FvlightError(f"solver.lr={self.lr}: the learning rate must be positive")
        if not 0 <= self.momentum < 1:
            raise FvlightError(f"solver.momentum={self.momentum}: must lie in [0, 1)")

    def factors(self, steps: Tensor, count: int, raw: Tensor) -> list[None]:
        """There are none."""
        return [None] * count

    def step(
        self, raw: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, moving: Tensor,
        factors: None = None,
    ) -> None:  # fmt: skip
        """One step downhill, in place; arguments as in `Adam.step`: ``first`` holds -s / lr, ``second`` nothing."""
        steps += moving
        first.mul_(self.momentum).add_(gradient)
        raw.sub_((self.lr * first).masked_fill_(~moving.view(-1, *[1] * (raw.dim() - 1)), 0))
