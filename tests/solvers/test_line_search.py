"""Line searches advanced by masks, against SciPy's port of MINPACK-2's `dcsrch`, one by one."""

import math

import numpy as np
import pytest
import torch

from fvlight.solvers.line_search import Rules, advance, begin


def _sqrt_pair(a, b1, b2):
    def gamma(b):
        return math.sqrt(1 + b * b) - b

    return gamma(b1) * ((1 - a) ** 2 + b2**2).sqrt() + gamma(b2) * (a**2 + b1**2).sqrt()


def _wavy(a, beta=0.01, waves=39):
    smooth = torch.where(a <= 1 - beta, 1 - a, torch.where(a >= 1 + beta, a - 1, (a - 1) ** 2 / (2 * beta) + beta / 2))
    return smooth + 2 * (1 - beta) / (waves * math.pi) * torch.sin(waves * math.pi / 2 * a)


# The six test functions of Moré & Thuente, section 5, with their constants (decrease, curvature).
FUNCTIONS = [
    (lambda a: -a / (a * a + 2), 1e-3, 0.1),
    (lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4, 0.1, 0.1),
    (_wavy, 0.1, 0.1),
    (lambda a: _sqrt_pair(a, 1e-3, 1e-3), 1e-3, 1e-3),
    (lambda a: _sqrt_pair(a, 0.01, 1e-3), 1e-3, 1e-3),
    (lambda a: _sqrt_pair(a, 1e-3, 0.01), 1e-3, 1e-3),
]
FIRST_STEPS = [1e-3, 0.1, 10.0, 1e3]


def _value_and_slope(f, step):
    step = torch.as_tensor(step, dtype=torch.float64).clone().requires_grad_()
    value = f(step)
    (slope,) = torch.autograd.grad(value.sum(), step)
    return value.detach(), slope


def _search(f, first, rules, dtype=torch.float64):
    """Plain use of the batch: every trial until its search ends. Returns the trials of each and who was accepted."""
    value, slope = _value_and_slope(f, torch.zeros_like(first))
    line = begin(value.to(dtype).double(), slope, first)
    trials = [[] for _ in first]
    active, accepted = torch.ones(len(first), dtype=torch.bool), torch.zeros(len(first), dtype=torch.bool)
    while active.any():
        for i in active.nonzero()[:, 0]:
            trials[i].append(line.step[i].item())
        value, slope = _value_and_slope(f, line.step)
        line, good, bad = advance(line, value.to(dtype), slope, rules)
        accepted |= active & good
        assert not (good & bad).any()
        active &= ~good & ~bad
    return trials, accepted.tolist()


@pytest.mark.parametrize("number", range(6))
def test_trials_are_those_of_minpacks_dcsrch(number):
    dcsrch = pytest.importorskip("scipy.optimize._dcsrch", reason="SciPy's private port of dcsrch is not there")
    f, decrease, curvature = FUNCTIONS[number]
    firsts = torch.tensor(FIRST_STEPS, dtype=torch.float64)
    trials, accepted = _search(f, firsts, Rules(decrease, curvature, 1e-10, 100))
    assert all(accepted)
    for first, mine in zip(FIRST_STEPS, trials, strict=True):
        seen = []

        def phi(a, seen=seen):
            seen.append(float(a))
            return float(_value_and_slope(f, a)[0])

        oracle = dcsrch.DCSRCH(phi, lambda a: float(_value_and_slope(f, a)[1]), decrease, curvature, 1e-10, 0.0, 1e10)
        found, *_, task = oracle(first)
        assert task[:4] == b"CONV"
        assert found == pytest.approx(mine[-1], rel=1e-8)
        np.testing.assert_allclose(mine, seen[1:], rtol=1e-8)  # the first is φ(0)


def test_a_kink_ends_the_search_at_sufficient_decrease_in_a_narrow_bracket():
    """No step along |a - 1/3| has a flat slope. A strict search gives up; a narrow bracket is a reason to accept."""
    first = torch.tensor([0.01, 1.0, 40.0], dtype=torch.float64)

    def kinked(a):
        return (a - 1 / 3).abs()

    trials, accepted = _search(kinked, first, Rules(1e-4, 0.9, 0.1, 20))
    assert accepted == [True] * 3
    assert all(abs(t[-1] - 1 / 3) < 0.1 for t in trials)
    trials, accepted = _search(kinked, first, Rules(1e-4, 0.9, 0.0, 20))
    assert accepted == [False] * 3
    assert max(len(t) for t in trials) <= 20


def test_a_search_that_only_climbs_fails():
    """The slope at 0 is a lie: no decrease is found, and the trials come ever nearer to 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    line = begin(zero, zero - 1, zero + 1)
    rules = Rules(1e-4, 0.9, 0.1, 20)
    for _ in range(20):
        before = line.step
        line, good, bad = advance(line, line.step, torch.ones_like(zero), rules)
        assert not good
        if bad:
            break
        assert line.step < before
    assert bad


def test_decrease_is_judged_at_the_resolution_of_the_values():
    """A decrease of 2e-14 is asked for at a value of 1. No decrease at all is enough in float32, not in float64."""
    value, slope, step = (torch.tensor([v], dtype=torch.float64) for v in (1.0, -2e-10, 1.0))
    line, flat, rules = begin(value, slope, step), torch.zeros_like(step), Rules(1e-4, 0.9, 0.1, 20)
    assert advance(line, torch.ones(1), flat, rules)[1]
    assert not advance(line, torch.ones(1).double(), flat, rules)[1]
    assert not advance(line, torch.ones(1) + 2e-7, flat, rules)[1]
