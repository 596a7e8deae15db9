"""Adam with an axis of problems: every problem counts its own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.solvers.momentum import Momentum


@dataclass(frozen=True)
class Adam:
    """Adam's constants [Kingma & Ba 2015]; the learning rate of [C] is 0.1."""

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise FvlightError(f"solver.lr={self.lr}: the learning rate must be positive")
        if not self.eps > 0:
            raise FvlightError(f"solver.eps={self.eps}: must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise FvlightError(f"solver.betas={list(self.betas)}: both must lie in [0, 1)")

    def step(self, raw: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, moving: Tensor) -> None:
        """One step downhill, in place, for the problems that are still moving.

        Args:
            raw, gradient, first, second: (b, ...) parameters, gradient of the loss, running moments.
            steps: (b,) steps taken by each problem before this one; counted up for those that move.
            moving: (b,) bool.
        """
        beta1, beta2 = self.betas
        steps += moving
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        count = steps.clamp_min(1).double()
        scale = self.lr / (1 - beta1**count)
        correction = (1 - beta2**count).sqrt()
        column = (-1, *[1] * (raw.dim() - 1))
        denominator = second.sqrt().div_(correction.to(raw.dtype).view(column)).add_(self.eps)
        change = first.mul(scale.to(raw.dtype).view(column)).div_(denominator)
        raw.sub_(change.masked_fill_(~moving.view(column), 0))


class ProblemAdam(torch.optim.Optimizer):
    """Holds the moments (of momentum the first alone) for one parameter whose first axis counts problems.

    The steps themselves are taken on rows of it, by `solve_block`; `step` runs a closure that does so, which makes
    a block of inner steps one optimizer step for Lightning.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], adam: Adam | Momentum) -> None:
        super().__init__(parameters, {"lr": adam.lr})
        self.adam = adam
        for group in self.param_groups:
            for p in group["params"]:
                # torch keeps a state called "step" as it is when it loads it, whole numbers and all
                self.state[p] = {
                    "step": torch.zeros(len(p), dtype=torch.int64, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        return None if closure is None else closure()
