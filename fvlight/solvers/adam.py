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

    def step(
        self, raw: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, moving: Tensor,
        factors: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """One step downhill, in place, for the problems that are still moving.

        Args:
            raw, gradient, first, second: (b, ...) parameters, gradient of the loss, running moments.
            steps: (b,) steps taken by each problem before this one; counted up for those that move.
            moving: (b,) bool.
            factors: of this step, where they are known.
        """
        beta1, beta2 = self.betas
        scale, correction = factors or self.factors(steps, 1, raw)[0]
        steps += moving
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        change = first.mul(scale).div_(second.sqrt().div_(correction).add_(self.eps))
        raw.sub_(change.masked_fill_(~moving.view(scale.shape), 0))

    def factors(self, steps: Tensor, count: int, raw: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each of the next ``count`` steps the rate over the first moment's bias, and the root of the second's.

        Of problems that go on moving; (b, 1, ...) for parameters ``raw`` (b, ...). All at once they cost no more than
        those of one step.
        """
        following = (steps + torch.arange(1, count + 1, device=steps.device)[:, None]).double()
        scale = self.lr / (1 - self.betas[0] ** following)
        correction = (1 - self.betas[1] ** following).sqrt()
        shape = (count, -1, *[1] * (raw.dim() - 1))
        return list(zip(scale.to(raw.dtype).view(shape), correction.to(raw.dtype).view(shape), strict=True))


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
