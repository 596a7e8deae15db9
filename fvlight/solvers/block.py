"""A block of inner steps for a batch of problems: plain torch, no Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.solvers.adam import Adam
from fvlight.solvers.momentum import Momentum
from fvlight.solvers.pool import Status
from fvlight.solvers.stopping import Patience


class Evaluation(NamedTuple):
    """What one look at a batch gives: the score (b,) that is maximised, and the figures (b, k) worth logging."""

    score: Tensor
    figures: Tensor


@dataclass
class Block:
    """The state of a batch, one row per problem.

    Attributes:
        raw: (b, ...) parameters.
        first, second: Adam's moments, or the first alone: momentum.
        steps: (b,) steps taken.
        stopping: state of the stopping rule.
        status: (b,) `Status` of each problem.
        last: the newest evaluation.
    """

    raw: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    stopping: dict[str, Tensor]
    status: Tensor
    last: Evaluation | None = None


def solve_block(
    evaluate: Callable[[Tensor], Evaluation], block: Block, adam: Adam | Momentum, patience: Patience, inner_steps: int
) -> Block:
    """Take up to ``inner_steps`` steps uphill, in place. Problems stop on their own and then stay put exactly.

    A problem stops when patience or its steps run out, or when its score or gradient is not finite (``NAN``; its
    rows are then not to be used). Nothing is read back from the device within a block.
    """
    active, nan = int(Status.ACTIVE), int(Status.NAN)
    for factors in adam.factors(block.steps, inner_steps, block.raw):
        raw = block.raw.detach().requires_grad_()
        with torch.enable_grad():
            evaluation = evaluate(raw)
            (gradient,) = torch.autograd.grad(-evaluation.score.sum(), raw)
        block.last = Evaluation(evaluation.score.detach(), evaluation.figures.detach())
        moving = block.status == active
        finite = block.last.score.isfinite() & gradient.flatten(1).sum(1).isfinite()
        block.status.masked_fill_(moving & ~finite, nan)
        moving &= finite
        weary = patience.update(block.stopping, -block.last.score, moving)
        block.status.masked_fill_(moving & weary, int(Status.CONVERGED))
        adam.step(block.raw, gradient, block.first, block.second, block.steps, moving & ~weary, factors)  # type: ignore[arg-type]
        spent = (block.status == active) & (block.steps >= patience.max_steps)
        block.status.masked_fill_(spent, int(Status.MAX_STEPS))
    return block
