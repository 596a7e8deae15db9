"""L-BFGS for many problems at once as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.solvers.lbfgs import LBFGS, Stop, moving_rows


class BatchedLBFGS(torch.optim.Optimizer):
    """L-BFGS for parameters whose first axis counts independent problems, in any training script.

    ``step(closure)`` calls a closure that returns the losses (b,) of all problems with their graph; the optimizer
    takes the gradients itself. No problem's path depends on the others, and one that has stopped stays put. ::

        x = torch.nn.Parameter(torch.randn(100, 2))
        optimizer = BatchedLBFGS([x])
        while not optimizer.finished:
            losses = optimizer.step(lambda: (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2)
        print(losses, [Stop(status).label for status in optimizer.status.tolist()])

    After a step the parameters are at the last points accepted, never at trials. The next step goes on from there,
    also when parameters and optimizer have been saved and loaded. A problem whose parameters were changed in between
    starts anew. The losses must be a function of the parameters: no dropout, no new batch of data.

    Args:
        parameters: one or several, (b, ...) each, of one dtype and device.
        lbfgs: constants.
        max_iter: iterations per step; a problem that has taken them waits for the others.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lbfgs: LBFGS | None = None, max_iter: int = 20) -> None:
        if max_iter < 1:
            raise FvlightError(f"solver.max_iter={max_iter}: must be at least 1")
        super().__init__(parameters, {"max_iter": max_iter})
        if len(self.param_groups) > 1:
            raise FvlightError(f"{len(self.param_groups)} groups of parameters: L-BFGS takes one, as a list")
        self.lbfgs = lbfgs or LBFGS()
        self.parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        if len(lengths := {len(p) for p in self.parameters}) > 1:
            raise FvlightError(f"parameters with first axes of {sorted(lengths)}: it must be one axis of problems")

    @property
    def status(self) -> Tensor:
        """(b,) the `Stop` of each problem."""
        first = self.parameters[0]
        if state := self.state[first]:
            return state["status"]
        return torch.full((len(first),), int(Stop.ACTIVE), dtype=torch.int8, device=first.device)

    @property
    def finished(self) -> bool:
        """Whether every problem has stopped."""
        return bool((self.status != int(Stop.ACTIVE)).all())

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take up to ``max_iter`` iterations with each problem; returns the losses (b,) reached."""
        state = self._current_state()
        until = state["iterations"] + self.param_groups[0]["max_iter"]
        while (moving := moving_rows(state, state["iterations"] < until)).any():
            self._place(self.lbfgs.ask(state, moving))
            with torch.enable_grad():
                losses = closure()
                if losses.shape != moving.shape:
                    raise FvlightError(
                        f"losses of shape {tuple(losses.shape)}: the closure must return one per problem, "
                        f"{tuple(moving.shape)}, not their sum or mean"
                    )
                gradients = torch.autograd.grad(losses.sum(), self.parameters, materialize_grads=True)
            self.lbfgs.tell(state, losses.detach(), _flat(gradients), moving)
        self._place(state["raw"])
        return state["value"].to(self.parameters[0].dtype)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch casts states to the parameter's dtype, which would round the line search's float64 and the counts.
        for key, state in state_dict["state"].items():
            p = self.parameters[key]
            self.state[p] = {name: value.detach().clone().to(p.device) for name, value in state.items()}

    def _current_state(self) -> dict[str, Tensor]:
        """The solver's state, fresh for problems whose parameters are not where it left them."""
        state, raw = self.state[self.parameters[0]], _flat(self.parameters)
        if not state:
            state.update(self.lbfgs.start(raw))
        elif len(changed := (raw != state["raw"]).any(1).nonzero()[:, 0]):
            for name, value in self.lbfgs.start(raw[changed]).items():
                state[name][changed] = value
        return state

    def _place(self, flat: Tensor) -> None:
        """Write rows (b, d) into the parameters."""
        parts = flat.split([math.prod(p.shape[1:]) for p in self.parameters], 1)
        for p, part in zip(self.parameters, parts, strict=True):
            p.copy_(part.view_as(p))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten(1) for tensor in tensors], 1)
