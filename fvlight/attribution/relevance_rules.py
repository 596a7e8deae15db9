"""Rules of relevance propagation: how the relevance of an operation's outputs is shared among its inputs.

All of them [Bach et al. 2015; Montavon et al. 2017, 2019] are about an affine operation y_j = sum_i x_i w_ij + b_j and
share R_j in proportion to what each input contributes, some function of x_i and w_ij:

    R_i = sum_j c_ij / (sum_i c_ij + c_bj) · R_j

What the bias contributes, c_bj, it keeps: it *absorbs* relevance. So does the epsilon of a stabilised divisor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fvlight.errors import FvlightError


@dataclass(frozen=True)
class Affine:
    """``y = apply(x, weight) + bias``.

    Args:
        apply: linear in either argument; images stand on the first axis of y.
        weight: for a pooling, a mean or a sum, which have none, a 1 that multiplies their own positive weights.
        bias: broadcasts against y.
        foldable: the first axis of the weight are y's channels, its second axis.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    foldable: bool = False


class Share(NamedTuple):
    """Part of the relevance, and in what proportion it is shared.

    Attributes:
        terms: contributions c_ij = u_i v_ij, as pairs (u, v) like (x, weight).
        bias: the bias' own contribution.
        factor: which part of R_j.
        epsilon: added to the divisor, away from zero.
    """

    terms: list[tuple[Tensor, Tensor]]
    bias: Tensor
    factor: float | Tensor = 1.0
    epsilon: float = 0.0

    def concerns(self, relevance: Tensor) -> bool:
        """Is any of the relevance of y shared by this?"""
        return not isinstance(self.factor, Tensor) or bool((self.factor * relevance).any())


Rule = Callable[[Affine, Tensor], list[Share]]  # from an operation and its input x


@dataclass(frozen=True)
class Epsilon:
    """LRP-epsilon, c_ij = x_i w_ij; with ``epsilon=0`` LRP-0 [Bach et al. 2015, Eq. 58; Montavon et al. 2019].

    The divisor is y_j + epsilon · sign(y_j) with sign(0) = 1: epsilon is absolute, in the units of y.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise FvlightError(f"epsilon={self.epsilon:g} of relevance propagation is negative")

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        return [Share([(x, affine.weight)], affine.bias, epsilon=self.epsilon)]


@dataclass(frozen=True)
class Gamma:
    """LRP-gamma, c_ij = x_i w_ij + gamma · (x_i w_ij)⁺ [Montavon et al. 2019].

    For outputs below zero, which a ReLU's inputs never explain but logits may, the negative contributions are
    raised instead [Andéol et al. 2022], so that the divisor always is at least as far from zero as y.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise FvlightError(f"gamma={self.gamma:g} of relevance propagation is negative")

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        weight, bias, gamma = affine.weight, affine.bias, self.gamma
        above = (affine.apply(x, weight) + bias >= 0).to(x)
        more, less = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
        return [
            Share(_by_sign(x, more, less), bias + gamma * bias.clamp(min=0), above),
            Share(_by_sign(x, less, more), bias + gamma * bias.clamp(max=0), 1 - above),
        ]


@dataclass(frozen=True)
class AlphaBeta:
    """LRP-alpha-beta: alpha R_j among the positive x_i w_ij, minus beta R_j among the negative, alpha - beta = 1.

    [Bach et al. 2015, Eq. 60]. The bias takes part in either sum by its own positive or negative part. Where an
    output has contributions of one sign only, they share R_j itself: alpha R_j would not conserve.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-12:
            raise FvlightError(f"alpha={self.alpha:g}, beta={self.beta:g}: alpha - beta is 1, and beta not negative")

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        up, down = affine.weight.clamp(min=0), affine.weight.clamp(max=0)
        shares = [Share(_by_sign(x, up, down), affine.bias.clamp(min=0), self.alpha)]
        if self.beta:
            shares.append(Share(_by_sign(x, down, up), affine.bias.clamp(max=0), -self.beta))
        return shares


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """z⁺: the positive contributions share [Montavon et al. 2017]; for x ≥ 0, c_ij = x_i w_ij⁺."""

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class Box:
    """z^B for pixels in [low, high]: c_ij = x_i w_ij - low_i w_ij⁺ - high_i w_ij⁻ [Montavon et al. 2017].

    The bias has no share.

    Args:
        low, high: (C, 1, 1); None: black and white in the network's input space.
    """

    low: Tensor | None = None
    high: Tensor | None = None

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        if self.low is None or self.high is None:
            raise FvlightError("the rule Box needs low and high, the smallest and largest value of a pixel")
        weight = affine.weight
        lowest, highest = ((-bound.to(x)).expand_as(x) for bound in (self.low, self.high))
        terms = [(x, weight), (lowest, weight.clamp(min=0)), (highest, weight.clamp(max=0))]
        return [Share(terms, torch.zeros_like(affine.bias))]


@dataclass(frozen=True)
class WSquare:
    """w²: c_ij = w_ij² [Montavon et al. 2017]; neither the input's numbers nor the bias have a share."""

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        return [Share([(torch.ones_like(x), affine.weight.square())], torch.zeros_like(affine.bias))]


@dataclass(frozen=True)
class Flat:
    """All inputs alike: c_ij = 1 [Lapuschkin et al. 2019]."""

    def __call__(self, affine: Affine, x: Tensor) -> list[Share]:
        return [Share([(torch.ones_like(x), torch.ones_like(affine.weight))], torch.zeros_like(affine.bias))]


def _by_sign(x: Tensor, above: Tensor, below: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Terms of the weights that inputs above zero meet, and those below."""
    terms = [(x.clamp(min=0), above)]
    return [*terms, (x.clamp(max=0), below)] if bool((x < 0).any()) else terms


class Shared(NamedTuple):
    """Where an operation's relevance went: to its inputs (like x), its bias, its epsilon (like y)."""

    inputs: Tensor
    bias: Tensor
    epsilon: Tensor


def propagate(rule: Rule, affine: Affine, x: Tensor, relevance: Tensor) -> Shared:
    """Shares the relevance of y by a rule.

    An output for which the rule finds nothing to share among (z⁺, and no contribution is positive) is shared by
    LRP-0. Where all contributions and the bias are zero relevance goes nowhere and is missing from the sums.
    """
    parts = [_Part.of(affine, share) for share in rule(affine, x) if share.concerns(relevance)]
    whole = sum((part.factor for part in parts), torch.zeros_like(relevance))
    rest = Share([(x, affine.weight)], affine.bias, ((whole == 0) & (relevance != 0)).to(x))
    if rest.concerns(relevance):
        parts.append(_Part.of(affine, rest))
        whole = whole + parts[-1].factor
    result, absorbed, lost = (torch.zeros_like(like) for like in (x, relevance, relevance))
    for part in parts:
        scale = whole * part.divisor
        signal = torch.where(scale != 0, part.factor * relevance / scale, 0.0)
        for u, gradient in zip(part.inputs, torch.autograd.grad(part.total, part.inputs, signal), strict=True):
            result += u.detach() * gradient
        absorbed, lost = absorbed + signal * part.bias, lost + signal * part.epsilon
    return Shared(result, absorbed, lost)


class _Part(NamedTuple):
    """A share, summed up: see `propagate`."""

    inputs: list[Tensor]
    total: Tensor
    bias: Tensor
    epsilon: Tensor
    divisor: Tensor
    factor: Tensor  # 0 where there is nothing to share among; `propagate` scales factors to a sum of 1

    @classmethod
    def of(cls, affine: Affine, share: Share) -> _Part:
        with torch.enable_grad():
            inputs = [u.detach().requires_grad_() for u, _ in share.terms]
            total = reduce(add, (affine.apply(u, v) for u, (_, v) in zip(inputs, share.terms, strict=True)))
        plain = total.detach() + share.bias
        epsilon = torch.full_like(plain, share.epsilon).copysign(plain + 0.0)  # -0.0 + 0.0 is 0.0: sign(0) = 1
        divisor = plain + epsilon
        return cls(inputs, total, share.bias, epsilon, divisor, share.factor * (divisor != 0).to(plain))


class Ledger:
    """What biases and epsilons absorbed of each image's relevance, (N,), all operations together."""

    def __init__(self, like: Tensor) -> None:
        self.bias, self.epsilon = like.new_zeros(len(like)), like.new_zeros(len(like))

    def enter(self, shared: Shared) -> None:
        self.bias = self.bias + shared.bias.flatten(1).sum(1)
        self.epsilon = self.epsilon + shared.epsilon.flatten(1).sum(1)


class ShareRelevance(torch.autograd.Function):
    """An affine operation whose backward shares relevance by a rule.

    Its node in the graph, ``y.grad_fn``, keeps ``kind``, ``affine`` and the input (``saved_tensors``): a batch norm
    that follows is folded into them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kind: str, affine: Affine, rule: Rule, ledger: Ledger, run: Callable[[], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind, ctx.affine, ctx.rule, ctx.ledger = kind, affine, rule, ledger
        return run()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        shared = propagate(ctx.rule, ctx.affine, x.detach(), relevance)
        ctx.ledger.enter(shared)
        return shared.inputs, None, None, None, None, None


class PassRelevance(torch.autograd.Function):
    """An elementwise operation, y = x · c with c taken as constant: all of y's relevance is x's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        return run()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        return relevance, None
