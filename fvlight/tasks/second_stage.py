"""L-BFGS for the problems that the first stage is done with, each with its own curvature and line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fvlight.solvers import LBFGS, Evaluation, Status, polish_block
from fvlight.solvers.lbfgs import State


class Polished(NamedTuple):
    """After a block: of the problems ``rows`` (b,) the parameters, evaluations so far, status, newest evaluation."""

    rows: Tensor
    raw: Tensor
    evaluations: Tensor
    status: Tensor
    last: Evaluation


class SecondStage:
    """The state of the problems that have entered it and are not done.

    Attributes:
        search: the solver's state, (b, ...) each.
        rows: (b,) the problems.
    """

    def __init__(self, lbfgs: LBFGS) -> None:
        self.lbfgs = lbfgs
        self.search: State = {}
        self.rows = torch.zeros(0, dtype=torch.int64)

    def block(
        self, rows: Tensor, raw_of: Callable[[Tensor], Tensor], evaluate: Callable[[Tensor, Tensor], Evaluation],
        steps: int,
    ) -> Polished:  # fmt: skip
        """Take up to ``steps`` evaluations of the problems ``rows``, which enter where they are new.

        Args:
            raw_of: problems to their parameters.
            evaluate: parameters and problems to scores.
        """
        new = rows[~torch.isin(rows, self.rows)]
        fresh = self.lbfgs.start(raw_of(new))
        device = fresh["raw"].device  # after a resume the others are elsewhere
        self.search = {name: value.to(device) for name, value in self.search.items()}
        if len(new):
            old = self.search or {name: value[:0] for name, value in fresh.items()}
            self.search = {name: torch.cat([old[name], fresh[name]]) for name in fresh}
            self.rows = torch.cat([self.rows, new])
        inside = torch.isin(self.rows, rows)  # with fewer processes than before some may pause
        rows, state = self.rows[inside], self.search
        if not inside.all():
            state = {name: value[inside.to(device)] for name, value in self.search.items()}
        status, last = polish_block(lambda raw: evaluate(raw, rows), state, self.lbfgs, steps)
        found = Polished(rows, state["raw"], state["evaluations"].cpu(), status, last)
        staying = status == int(Status.ACTIVE)
        if not (inside.all() and staying.all()):
            self.rows = torch.cat([rows[staying], self.rows[~inside]])
            stay, pause = staying.to(device), ~inside.to(device)
            self.search = {name: torch.cat([value[stay], self.search[name][pause]]) for name, value in state.items()}
        return found

    def state(self, raw: Tensor, join: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """For a checkpoint: of all processes, in any order.

        Args:
            raw: (0, ...) parameters of no problem, for their shape.
            join: puts the rows of all processes together.
        """
        search = self.search or self.lbfgs.start(raw)
        return {"search": {name: join(value) for name, value in search.items()}, "search_rows": join(self.rows)}

    def take(self, state: dict[str, Any], owned: Tensor) -> None:
        """Take the rows of owned (problems,) problems; with another memory all begin anew from where they are."""
        self.search, self.rows = {}, self.rows[:0]
        search: State = state.get("search") or {}
        if search and search["history"].shape[2] == self.lbfgs.memory:
            mine = owned[state["search_rows"]]
            self.search = {name: value[mine] for name, value in search.items()}
            self.rows = state["search_rows"][mine]
