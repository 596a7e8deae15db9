"""When a problem is done: no new minimum of its smoothed loss for a while, or too many steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlight.errors import FvlightError


@dataclass(frozen=True)
class Patience:
    """The authors' rule [C, code]: stop at more than ``patience`` steps without a new minimum of the loss's average.

    Args:
        max_steps: at most so many steps per problem.
        patience: steps without a new minimum.
        decay: of the exponential average, which starts at the first loss.
    """

    max_steps: int = 1000
    patience: int = 100
    decay: float = 0.9

    def __post_init__(self) -> None:
        for name in ("max_steps", "patience"):
            if getattr(self, name) < 1:
                raise FvlightError(f"solver.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.decay < 1:
            raise FvlightError(f"solver.decay={self.decay}: must lie in [0, 1)")

    def start(self, problems: int) -> dict[str, Tensor]:
        """Fresh state for so many problems: ``average``, ``best`` (float64) and ``since`` (int64), each (b,)."""
        return {
            "average": torch.full((problems,), math.nan, dtype=torch.float64),
            "best": torch.full((problems,), math.inf, dtype=torch.float64),
            "since": torch.zeros(problems, dtype=torch.int64),
        }

    def update(self, state: dict[str, Tensor], loss: Tensor, moving: Tensor) -> Tensor:
        """Take in the losses (b,) of the moving problems; returns (b,) bool: patience has run out."""
        loss, average = loss.double(), state["average"]
        new = torch.where(average.isnan(), loss, self.decay * average + (1 - self.decay) * loss)
        better = new < state["best"]
        since = torch.where(better, 0, state["since"] + 1)
        state["average"] = torch.where(moving, new, average)
        state["best"] = torch.where(moving & better, new, state["best"])
        state["since"] = torch.where(moving, since, state["since"])
        return state["since"] > self.patience
