"""Rules of relevance propagation against the textbook's formulas with dense matrices, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.attribution.relevance_rules import (
    Affine,
    AlphaBeta,
    Box,
    Epsilon,
    Flat,
    Gamma,
    Rule,
    WSquare,
    ZPlus,
    propagate,
)
from fvlight.errors import FvlightError

ONE, NONE = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(channels: int, axes: int) -> Tensor:
    return drawn(channels, *[1] * axes, seed=7)


# name: (operation, shape of an image)
OPERATIONS: dict[str, tuple[Affine, tuple[int, ...]]] = {
    "linear": (Affine(F.linear, drawn(4, 6), drawn(4, seed=7)), (6,)),
    "conv": (Affine(lambda x, w: F.conv2d(x, w, padding=1), drawn(4, 3, 3, 3), column(4, 2)), (3, 5, 4)),
    "grouped, strided, dilated conv": (
        Affine(lambda x, w: F.conv2d(x, w, None, (2, 1), (2, 0), (2, 1), 2), drawn(4, 2, 3, 2), column(4, 2)),
        (4, 6, 5),
    ),
    "conv1d": (Affine(lambda x, w: F.conv1d(x, w, stride=2), drawn(3, 2, 3), column(3, 1)), (2, 9)),
    "transposed conv": (
        Affine(lambda x, w: F.conv_transpose2d(x, w, stride=2), drawn(3, 2, 2, 3), column(2, 2)),
        (3, 3, 2),
    ),
    "average pooling": (Affine(lambda x, w: F.avg_pool2d(x, 3, 2, 1) * w, ONE, NONE), (2, 5, 6)),
    "adaptive pooling": (Affine(lambda x, w: F.adaptive_avg_pool2d(x, 2) * w, ONE, NONE), (2, 5, 3)),
    "batch norm": (Affine(lambda x, w: x * w, column(3, 2), column(3, 2) / 3), (3, 3, 3)),
}


def dense(affine: Affine, x: Tensor) -> tuple[Tensor, Tensor]:
    """The operation on one image as a matrix (inputs, outputs), by unit vectors, and its bias (outputs,)."""
    units = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    maps = affine.apply(units, affine.weight)
    return maps.flatten(1), affine.bias.expand_as(maps[:1]).flatten()


def sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def by_epsilon(c: Tensor, b: Tensor) -> Tensor:
    z = c.sum(0) + b
    return c / (z + 0.3 * sign(z))


def by_gamma(c: Tensor, b: Tensor) -> Tensor:
    """0.5 of what agrees in sign with the output, added."""
    s = sign(c.sum(0) + b)
    raised = c + 0.5 * c.where(c * s > 0, torch.zeros_like(c))
    return raised / (raised.sum(0) + b + 0.5 * b.where(b * s > 0, torch.zeros_like(b)))


def by_alpha_beta(alpha: float, beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    def shares(c: Tensor, b: Tensor) -> Tensor:
        p, n = c.clamp(min=0), c.clamp(max=0)
        zp, zn = p.sum(0) + b.clamp(min=0), n.sum(0) + b.clamp(max=0)
        both = alpha * p / zp - beta * n / zn
        return torch.where(zn == 0, p / zp, torch.where(zp == 0, n / zn, both))

    return shares


RULES: dict[str, tuple[Rule, Callable[[Tensor, Tensor], Tensor]]] = {
    "lrp_0": (Epsilon(0.0), lambda c, b: c / (c.sum(0) + b)),
    "epsilon": (Epsilon(0.3), by_epsilon),
    "gamma": (Gamma(0.5), by_gamma),
    "alpha2_beta1": (AlphaBeta(2.0, 1.0), by_alpha_beta(2.0, 1.0)),
    "z_plus": (ZPlus(), by_alpha_beta(1.0, 0.0)),
}


@pytest.mark.parametrize("positive", [True, False], ids=["x>=0", "signed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_rule_is_the_textbooks_formula(operation: str, rule: str, positive: bool) -> None:
    affine, shape = OPERATIONS[operation]
    chosen, formula = RULES[rule]
    x = drawn(3, *shape, seed=1)
    x = x.abs() if positive else x
    y = affine.apply(x, affine.weight) + affine.bias
    relevance = drawn(*y.shape, seed=2)
    found = propagate(chosen, affine, x, relevance)
    matrix, bias = dense(affine, x)
    for image, result, r in zip(x.flatten(1), found.inputs.flatten(1), relevance.flatten(1), strict=True):
        shares = formula(image[:, None] * matrix, bias).nan_to_num(0.0)  # 0/0: not connected at all
        torch.testing.assert_close(result, shares @ r, rtol=1e-9, atol=1e-12)
    # What is kept by biases and epsilon and what goes on is all there was.
    sums = sum(part.flatten(1).sum(1) for part in found)
    torch.testing.assert_close(sums, relevance.flatten(1).sum(1), rtol=1e-9, atol=1e-9)
    assert bool((found.epsilon != 0).any()) == (rule == "epsilon")


@pytest.mark.parametrize("operation", ["linear", "conv", "grouped, strided, dilated conv"])
@pytest.mark.parametrize("rule", ["box", "w_square", "flat"])
def test_rules_for_the_first_layer(operation: str, rule: str) -> None:
    affine, shape = OPERATIONS[operation]
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 0.5
    low, high = torch.full(shape, -0.5, dtype=torch.float64), torch.full(shape, 1.5, dtype=torch.float64)
    low[0], high[0] = -0.7, 1.6
    relevance = drawn(*affine.apply(x, affine.weight).shape, seed=2)
    chosen: Rule = {"box": Box(low, high), "w_square": WSquare(), "flat": Flat()}[rule]
    found = propagate(chosen, affine, x, relevance)
    w, _ = dense(affine, x)
    connected, _ = dense(Affine(affine.apply, torch.ones_like(affine.weight), affine.bias), x)
    for image, result, r in zip(x.flatten(1), found.inputs.flatten(1), relevance.flatten(1), strict=True):
        lowest, highest = low.flatten()[:, None] * w.clamp(min=0), high.flatten()[:, None] * w.clamp(max=0)
        c = {
            "box": image[:, None] * w - lowest - highest,
            "w_square": w**2,
            "flat": connected,
        }[rule]  # fmt: skip
        torch.testing.assert_close(result, (c / c.sum(0)) @ r, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.inputs.sum(), relevance.sum(), rtol=1e-9, atol=1e-9)
    assert not found.bias.any()


def test_what_has_nothing_positive_is_shared_among_the_negative() -> None:
    affine = Affine(F.linear, torch.tensor([[-1.0, -3.0], [1.0, 3.0], [0.0, 0.0]]).double(), NONE)
    x, relevance = torch.ones(1, 2).double(), torch.tensor([[4.0, 8.0, 5.0]]).double()
    found = propagate(ZPlus(), affine, x, relevance)
    # 4 and 8 by 1 : 3; the third output has no contributions at all, and its relevance is missing
    torch.testing.assert_close(found.inputs, torch.tensor([[3.0, 9.0]]).double())
    assert not found.bias.any()
    assert not found.epsilon.any()


def test_outputs_of_zero() -> None:
    affine = Affine(F.linear, torch.tensor([[1.0, -1.0]]).double(), NONE)
    x, relevance = torch.ones(1, 2).double(), torch.tensor([[2.0]]).double()
    assert not propagate(Epsilon(0.0), affine, x, relevance).inputs.any()
    found = propagate(Epsilon(0.5), affine, x, relevance)  # sign(0) = 1: 1 and -1 over 0.5
    torch.testing.assert_close(found.inputs, torch.tensor([[4.0, -4.0]]).double())
    torch.testing.assert_close(found.epsilon, relevance)


def test_the_graph_of_the_input_is_left_alone() -> None:
    affine, shape = OPERATIONS["conv"]
    x = drawn(1, *shape).requires_grad_()
    found = propagate(ZPlus(), affine, x, drawn(1, 4, 5, 4))
    assert not found.inputs.requires_grad
    assert x.grad is None


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Epsilon(-1.0), "epsilon=-1"),
        (lambda: Gamma(-0.5), r"gamma=-0\.5"),
        (lambda: AlphaBeta(2.0, 0.5), "alpha - beta is 1"),
        (lambda: AlphaBeta(0.5, -0.5), "not negative"),
        (lambda: propagate(Box(), OPERATIONS["linear"][0], drawn(1, 6), drawn(1, 4)), "low and high"),
    ],
)
def test_numbers_that_make_no_rule(build: Callable[[], object], text: str) -> None:
    with pytest.raises(FvlightError, match=text):
        build()
