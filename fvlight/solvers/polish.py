"""A block of inner steps of L-BFGS for a batch of problems: plain torch, no Trainer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fvlight.solvers.block import Evaluation
from fvlight.solvers.lbfgs import LBFGS, State, Stop
from fvlight.solvers.pool import Status

# What a stop of L-BFGS is to a task: that no lower point was found is all that rounding allows.
STATUS = {
    Stop.ACTIVE: Status.ACTIVE, Stop.GRADIENT: Status.CONVERGED, Stop.CHANGE: Status.CONVERGED,
    Stop.LINE_SEARCH: Status.CONVERGED, Stop.MAX_ITERATIONS: Status.MAX_STEPS,
    Stop.MAX_EVALUATIONS: Status.MAX_STEPS, Stop.NAN: Status.NAN,
}  # fmt: skip


def polish_block(
    evaluate: Callable[[Tensor], Evaluation], state: State, lbfgs: LBFGS, inner_steps: int
) -> tuple[Tensor, Evaluation]:
    """Take up to ``inner_steps`` evaluations uphill; the state (b, ...) is changed in place.

    Returns the `Status` (b,) of the problems and the newest evaluation, which is that of trial points.
    """
    for _ in range(inner_steps):
        points = lbfgs.ask(state).requires_grad_()
        with torch.enable_grad():
            evaluation = evaluate(points)
            (gradient,) = torch.autograd.grad(-evaluation.score.sum(), points)
        lbfgs.tell(state, -evaluation.score.detach(), gradient)
        if not (state["status"] == int(Stop.ACTIVE)).any():
            break
    known = torch.tensor([int(STATUS[stop]) for stop in Stop], dtype=torch.int8)
    status = known[state["status"].cpu().long()]
    return status, Evaluation(evaluation.score.detach(), evaluation.figures.detach())
