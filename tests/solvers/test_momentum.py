"""Momentum with an axis of problems, against torch.optim.SGD problem by problem and FeatureVis's recursion by hand."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.solvers import Block, Evaluation, Momentum, Patience, Status, solve_block


def test_each_problem_follows_torchs_sgd_from_its_own_first_step():
    """Problem 1 starts three steps after problem 0 and problem 2 stops after four."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(10, 3, 4, 5, generator=generator, dtype=torch.float64)
    start = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    active = [range(10), range(3, 10), range(4)]
    raw, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    steps = torch.zeros(3, dtype=torch.int64)
    momentum = Momentum(lr=0.3, momentum=0.8)
    for t in range(10):
        moving = torch.tensor([t in when for when in active])
        if t == 3:  # a problem that enters the batch has none
            first[1] = 0
        momentum.step(raw, gradients[t], first, second, steps, moving)
    for problem, when in enumerate(active):
        parameter = start[problem].clone().requires_grad_()
        optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.8)
        for t in when:
            parameter.grad = gradients[t, problem].clone()
            optimizer.step()
        torch.testing.assert_close(raw[problem], parameter.detach(), rtol=1e-12, atol=1e-12)
    assert steps.tolist() == [10, 7, 4]


def test_the_defaults_are_featurevis_steps():
    """``s = 0.9 s - g, x += s`` on f(x) = 0.02 x^2, in plain numbers."""
    x, s, path = 5.0, 0.0, []
    for _ in range(6):
        s = 0.9 * s - 0.04 * x
        x += s
        path.append(x)
    raw = torch.tensor([[5.0]], dtype=torch.float64)
    rule = Patience(max_steps=100, patience=100)
    block = Block(
        raw, torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(1, dtype=torch.int64), rule.start(1),
        torch.full((1,), int(Status.ACTIVE), dtype=torch.int8),
    )  # fmt: skip
    found = []
    for _ in range(6):
        solve_block(lambda x: Evaluation(-0.02 * x[:, 0] ** 2, x), block, Momentum(), rule, 1)
        found.append(float(block.raw))
    assert found == pytest.approx(path, rel=1e-12)


def test_a_problem_that_does_not_move_stays_put_even_beside_nan():
    raw = torch.randn(2, 3)
    before = raw.clone()
    state = [torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(2, dtype=torch.int64)]
    gradient = torch.tensor([[float("nan")] * 3, [1.0] * 3])
    Momentum().step(raw, gradient, *state, torch.tensor([False, True]))
    assert torch.equal(raw[0], before[0])
    assert torch.equal(raw[1], before[1] - 1)


@pytest.mark.parametrize(("name", "value"), [("lr", 0), ("lr", float("nan")), ("momentum", 1), ("momentum", -0.1)])
def test_constants_that_make_no_sense_are_named(name, value):
    with pytest.raises(FvlightError, match=rf"solver\.{name}="):
        Momentum(**{name: value})
