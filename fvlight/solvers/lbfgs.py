"""L-BFGS with an axis of problems: every problem has its own curvature, line search and stopping.

Liu & Nocedal 1989, *On the limited memory BFGS method*; the direction in the compact form of Byrd, Nocedal &
Schnabel 1994, *Representations of quasi-Newton matrices*, Theorem 2.2, which reads the history twice and does the rest
on matrices of the size of the memory. Rules of starting, skipping and stopping are those of L-BFGS-B 3.0
(``scipy.optimize.minimize``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.errors import FvlightError
from fvlight.solvers.line_search import Line, Rules, advance, begin

State = dict[str, Tensor]


class Stop(IntEnum):
    """Why a problem stopped."""

    ACTIVE = 0  # it has not
    GRADIENT = 1  # the gradient is small
    CHANGE = 2  # the last step changed the value too little
    MAX_ITERATIONS = 3
    MAX_EVALUATIONS = 4
    LINE_SEARCH = 5  # no lower value was found along the gradient
    NAN = 6  # the value or the gradient was not finite

    @property
    def label(self) -> str:
        """As written in results."""
        return "interrupted" if self is Stop.ACTIVE else self.name.lower()


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS's constants; the defaults are SciPy's, save ``decrease`` and the limits. It minimises.

    An inner step is one evaluation: `ask` says where, `tell` takes what was found there. Between two of them, all
    there is stands in a dictionary of tensors (b, ...) that may be saved, loaded and indexed by rows, also in the
    middle of a line search.

    Args:
        memory: pairs of steps and gradient changes that each problem keeps.
        decrease, curvature: constants c1 < c2 of the strong Wolfe conditions [Nocedal & Wright 2006, 3.7].
        gtol: stop at a gradient whose largest entry is at most so large,
        gtol_relative: or at most so many times as large as that at the start.
        ftol: stop when a step lowers the value f by at most ftol · max(|f before|, |f after|, 1).
        max_iterations, max_evaluations: at most so many steps accepted, points looked at, per problem.
        max_trials: at most so many points in one line search.
        bracket: a line search whose bracket is relatively so narrow ends where the value has decreased sufficiently
            even if the slope is steep: networks have kinks, at which it can't be otherwise.
    """

    memory: int = 10
    decrease: float = 1e-4
    curvature: float = 0.9
    gtol: float = 1e-5
    gtol_relative: float = 0.0
    ftol: float = 2.2e-9
    max_iterations: int = 1000
    max_evaluations: int = 1250
    max_trials: int = 20
    bracket: float = 0.1

    def __post_init__(self) -> None:
        for name in ("memory", "max_iterations", "max_evaluations", "max_trials"):
            if getattr(self, name) < 1:
                raise FvlightError(f"solver.{name}={getattr(self, name)}: must be at least 1")
        for name in ("gtol", "gtol_relative", "ftol", "bracket"):
            if not getattr(self, name) >= 0:
                raise FvlightError(f"solver.{name}={getattr(self, name)}: must not be negative")
        if not 0 < self.decrease < self.curvature < 1:
            raise FvlightError(
                f"solver.decrease={self.decrease}, solver.curvature={self.curvature}: "
                "must be 0 < decrease < curvature < 1, for example 1e-4 and 0.9"
            )

    @property
    def _rules(self) -> Rules:
        return Rules(self.decrease, self.curvature, self.bracket, self.max_trials)

    def start(self, raw: Tensor) -> State:
        """The state of b problems that begin at ``raw`` (b, ...).

        ``raw`` is the point reached so far and never a mere trial; ``value`` (b,) float64 and ``gradient`` (b, ...)
        belong to it. ``iterations`` and ``evaluations`` (b,) count, ``status`` (b,) is a `Stop`. The rest is
        ``direction`` (b, ...), ``search`` (b, 16) float64: a `Line`, ``history`` (b, 2, m, d): steps and gradient
        changes, ``gram`` (b, 2, m, m) float64: their inner products, ``pairs`` (b,): how many there have been, and
        ``first_gradient`` (b,) float64. The history takes 2m times the memory of ``raw``.
        """
        if not raw.dim() or not raw.is_floating_point():
            raise FvlightError(f"parameters of {raw.dtype}, shape {tuple(raw.shape)}: L-BFGS needs real ones (b, ...)")
        b, d, m = len(raw), math.prod(raw.shape[1:]), self.memory
        count = torch.zeros(b, dtype=torch.int64, device=raw.device)
        zeros = torch.zeros(b, dtype=torch.float64, device=raw.device)
        return {
            "raw": raw.detach().clone(),
            "value": zeros.clone(),
            "gradient": torch.zeros_like(raw),
            "direction": torch.zeros_like(raw),
            "search": zeros[:, None].repeat(1, len(Line._fields)),
            "history": raw.new_zeros(b, 2, m, d),
            "gram": zeros[:, None, None, None].repeat(1, 2, m, m),
            "pairs": count.clone(),
            "iterations": count.clone(),
            "evaluations": count.clone(),
            "first_gradient": zeros.clone(),
            "status": torch.full((b,), int(Stop.ACTIVE), dtype=torch.int8, device=raw.device),
        }

    def ask(self, state: State, moving: Tensor | None = None) -> Tensor:
        """The points (b, ...) at which to evaluate next; where a problem has stopped, the point it has reached.

        Args:
            state: as `start` and `tell` leave it.
            moving: (b,) bool, problems to advance; by default all that have not stopped.
        """
        moving = moving_rows(state, moving)
        step = torch.where(moving, Line(*state["search"].unbind(1)).step, 0)
        return state["raw"] + state["direction"] * _column(step, state["raw"])

    def tell(self, state: State, values: Tensor, gradients: Tensor, moving: Tensor | None = None) -> None:
        """Take in, in place, what was found at the points that `ask` gave.

        Args:
            state: of b problems; its entries are changed or replaced.
            values: (b,) losses, in the number type in which they were computed.
            gradients: (b, ...) of them.
            moving: (b,) bool, as given to `ask`; what is told about other problems is ignored, NaN and all.
        """
        moving = moving_rows(state, moving)
        state["evaluations"] += moving
        largest = gradients.flatten(1).abs().amax(1).double()
        finite = values.isfinite() & largest.isfinite()
        _stop(state, moving & ~finite, Stop.NAN)
        moving = moving & finite
        first = moving & (state["evaluations"] == 1)

        before = Line(*state["search"].unbind(1))
        line, accepted, failed = advance(before, values, _dot(gradients, state["direction"]), self._rules)
        accepted, failed = moving & ~first & accepted, moving & ~first & failed
        state["search"] = torch.where(moving[:, None], torch.stack(line, 1), state["search"])
        # A search may have failed because of the history: forget it, and try once more along the gradient.
        _stop(state, failed & (state["pairs"] == 0), Stop.LINE_SEARCH)
        state["pairs"].masked_fill_(failed, 0)

        change = state["direction"] * _column(torch.where(accepted, before.step, 0), gradients)
        difference = gradients - state["gradient"]
        self._arrive(state, first, accepted, change, values.double(), gradients, largest)
        _stop(state, moving & (state["evaluations"] >= self.max_evaluations), Stop.MAX_EVALUATIONS)
        turning = (first | accepted | failed) & moving_rows(state)
        if turning.any():  # reading the history is what costs
            bent = _dot(change, difference) > torch.finfo(change.dtype).eps * -before.slope * before.step
            _turn(state, turning, turning & accepted & bent, change, difference)

    def _arrive(
        self, state: State, first: Tensor, accepted: Tensor, change: Tensor, value: Tensor, gradients: Tensor,
        largest: Tensor,
    ) -> None:  # fmt: skip
        """Move to the trials that were accepted, and stop there where it is good enough."""
        arrived = first | accepted
        gain = state["value"] - value
        scale = torch.maximum(value.abs(), state["value"].abs()).clamp_min(1)
        state["raw"] = state["raw"] + change
        state["gradient"] = torch.where(_column(arrived, gradients), gradients, state["gradient"])
        state["value"] = torch.where(arrived, value, state["value"])
        state["first_gradient"] = torch.where(first, largest, state["first_gradient"])
        state["iterations"] += accepted
        flat = (self.gtol_relative * state["first_gradient"]).clamp_min(self.gtol)
        _stop(state, arrived & (largest <= flat), Stop.GRADIENT)
        _stop(state, accepted & (gain <= self.ftol * scale), Stop.CHANGE)
        _stop(state, accepted & (state["iterations"] >= self.max_iterations), Stop.MAX_ITERATIONS)


class Minimum(NamedTuple):
    """What `minimise` found: the points (b, ...), their values and gradients, `Stop` and the counts, each (b,)."""

    raw: Tensor
    value: Tensor
    gradient: Tensor
    status: Tensor
    iterations: Tensor
    evaluations: Tensor


def minimise(evaluate: Callable[[Tensor, Tensor], Tensor], raw: Tensor, lbfgs: LBFGS | None = None) -> Minimum:
    """Solve b independent problems to the end.

    Args:
        evaluate: of the points x (a, ...) of the problems ``rows`` (a,), those that have not stopped, gives the
            losses (a,), differentiable in x.
        raw: (b, ...) where they start.
        lbfgs: constants.
    """
    lbfgs = lbfgs or LBFGS()
    state = lbfgs.start(raw)
    rows = torch.arange(len(raw), device=raw.device)
    result = Minimum(*(state[name].clone() for name in Minimum._fields))
    while True:
        active = moving_rows(state).nonzero()[:, 0]
        # Leaving copies the histories of those that stay, so it waits until a quarter can leave.
        if len(active) <= 0.75 * len(rows):
            for name, target in result._asdict().items():
                target[rows] = state[name]
            if not len(active):
                return result
            state, rows = {name: value[active] for name, value in state.items()}, rows[active]
            active = torch.arange(len(rows), device=raw.device)
        points = lbfgs.ask(state)[active].requires_grad_()
        with torch.enable_grad():
            values = evaluate(points, rows[active])
            (gradients,) = torch.autograd.grad(values.sum(), points)
        everyone = values.new_zeros(len(rows)).index_copy(0, active, values.detach())
        lbfgs.tell(state, everyone, torch.zeros_like(state["raw"]).index_copy(0, active, gradients))


def moving_rows(state: State, among: Tensor | None = None) -> Tensor:
    """(b,) bool: the problems that have not stopped, ``among`` those of it where given."""
    active = state["status"] == int(Stop.ACTIVE)
    return active if among is None else active & among


def _stop(state: State, where: Tensor, reason: Stop) -> None:
    """The first reason stays."""
    state["status"].masked_fill_(where & moving_rows(state), int(reason))


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(b,) as (b, 1, ...), numbers in the dtype of ``like``."""
    values = values.to(like.dtype) if values.is_floating_point() else values
    return values.view(-1, *[1] * (like.dim() - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (b,) float64."""
    return (a * b).flatten(1).sum(1).double()


def _turn(state: State, turning: Tensor, kept: Tensor, change: Tensor, difference: Tensor) -> None:
    """Take the pairs (change of x, difference of gradients) that are kept; a new direction and search where turning."""
    history, gram, gradient = state["history"], state["gram"], state["gradient"]
    m = history.shape[2]
    every, slot = torch.arange(len(kept), device=kept.device), state["pairs"] % m
    for kind, new in enumerate((change, difference)):
        history[every, kind, slot] = torch.where(kept[:, None], new.flatten(1), history[every, kind, slot])
    flat = history.flatten(1, 2)
    news = torch.stack((difference.flatten(1), gradient.flatten(1)), 1)
    with_difference, with_gradient = torch.bmm(news, flat.mT).double().unflatten(2, (2, m)).unbind(1)
    gram[every, :, :, slot] = torch.where(kept[:, None, None], with_difference, gram[every, :, :, slot])
    gram[every, 1, slot] = torch.where(kept[:, None], with_difference[:, 1], gram[every, 1, slot])
    state["pairs"] += kept

    gamma, coefficients = _coefficients(gram, with_gradient, state["pairs"])
    direction = torch.bmm(coefficients[:, None].to(flat.dtype), flat)[:, 0].view_as(gradient)
    direction = (direction + gradient * _column(gamma, gradient)).neg_()
    slope = _dot(direction, gradient)
    # Rounding may leave a direction that is not downhill: forget the history, as L-BFGS-B does.
    uphill = turning & ~(slope < 0)
    state["pairs"].masked_fill_(uphill, 0)
    steepest = state["pairs"] == 0
    direction = torch.where(_column(uphill, gradient), -gradient, direction)
    slope = torch.where(uphill, -_dot(gradient, gradient), slope)
    _stop(state, turning & ~(slope < 0), Stop.GRADIENT)  # too small a gradient for its dtype to square
    state["direction"] = torch.where(_column(turning, gradient), direction, state["direction"])
    # Along a bare gradient the first trial is one unit of length away, whatever the loss's scale.
    line = begin(state["value"], slope, torch.where(steepest, (-slope).rsqrt(), 1))
    state["search"] = torch.where(turning[:, None], torch.stack(line, 1), state["search"])


def _coefficients(gram: Tensor, with_gradient: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """γ (b,) and c (b, 2m) with which γ g + Σ c · history is the inverse Hessian times the gradient g.

    With S and Y (d, m) the steps and gradient changes, oldest first, R the upper triangle of SᵀY, D its diagonal and
    γ = sᵀy / yᵀy of the newest pair, it is γ g + S p - γ Y q, where R q = Sᵀg and Rᵀ p = D q + γ (YᵀY q - Yᵀg).

    Args:
        gram: (b, 2, m, m) SᵀY and YᵀY, in the order of the slots.
        with_gradient: (b, 2, m) Sᵀg and Yᵀg.
        pairs: (b,) how many there have been; the next one's slot is pairs modulo m.
    """
    m = gram.shape[-1]
    age = torch.arange(m, device=gram.device)
    order = ((pairs[:, None] + age) % m)[:, None]  # (b, 1, m) slots, empty ones first, then oldest to newest
    present = age >= m - pairs.clamp_max(m)[:, None]
    ordered = gram.gather(2, order[..., None].expand_as(gram)).gather(3, order[..., None, :].expand_as(gram))
    sy, yy = ordered.masked_fill(~(present[:, None, :, None] & present[:, None, None]), 0).unbind(1)
    sg, yg = (
        with_gradient.gather(2, order.expand_as(with_gradient)).masked_fill(~present[:, None], 0)[..., None].unbind(1)
    )
    diagonal = sy.diagonal(dim1=1, dim2=2)
    gamma = torch.where(pairs > 0, diagonal[:, -1] / yy[:, -1, -1], 1)
    r = sy.triu() + torch.diag_embed((~present).double())
    q = torch.linalg.solve_triangular(r, sg, upper=True)
    right = diagonal[..., None] * q + gamma[:, None, None] * (yy @ q - yg)
    p = torch.linalg.solve_triangular(r.mT, right, upper=False)
    both = torch.stack((p, -gamma[:, None, None] * q), 1)[..., 0]
    return gamma, torch.empty_like(both).scatter(2, order.expand_as(both), both).flatten(1)
