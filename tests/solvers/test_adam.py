"""Adam with an axis of problems, against torch.optim.Adam problem by problem."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.solvers import Adam, ProblemAdam


def test_each_problem_follows_torchs_adam_from_its_own_first_step():
    """Problem 1 starts three steps after problem 0 and problem 2 stops after four."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(10, 3, 4, 5, generator=generator, dtype=torch.float64)
    start = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    active = [range(10), range(3, 10), range(4)]
    raw, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    steps = torch.zeros(3, dtype=torch.int64)
    adam = Adam(lr=0.1)
    for t in range(10):
        moving = torch.tensor([t in when for when in active])
        if t == 3:  # a problem that enters the batch has fresh moments
            first[1], second[1] = 0, 0
        adam.step(raw, gradients[t], first, second, steps, moving)
    for problem, when in enumerate(active):
        parameter = start[problem].clone().requires_grad_()
        optimizer = torch.optim.Adam([parameter], lr=0.1)
        for t in when:
            parameter.grad = gradients[t, problem].clone()
            optimizer.step()
        torch.testing.assert_close(raw[problem], parameter.detach(), rtol=1e-12, atol=1e-12)
    assert steps.tolist() == [10, 7, 4]


def test_a_problem_that_does_not_move_stays_put_even_beside_nan():
    raw = torch.randn(2, 3)
    before = raw.clone()
    state = [torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(2, dtype=torch.int64)]
    gradient = torch.tensor([[float("nan")] * 3, [1.0] * 3])
    Adam().step(raw, gradient, *state, torch.tensor([False, True]))
    assert torch.equal(raw[0], before[0])
    assert not torch.equal(raw[1], before[1])


def test_whole_step_counts_survive_saving_and_loading():
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = ProblemAdam([parameter], Adam())
    optimizer.state[parameter]["step"] += torch.tensor([2**24 + 1, 0, 5])  # beyond float32's whole numbers
    other = ProblemAdam([parameter], Adam())
    other.load_state_dict(optimizer.state_dict())
    assert other.state[parameter]["step"].tolist() == [2**24 + 1, 0, 5]


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0), ("lr", -0.1), ("eps", -1), ("eps", 0), ("betas", (2, 3)), ("betas", (0.9, 1))]
)
def test_constants_that_make_no_sense_are_named(name, value):
    with pytest.raises(FvlightError, match=rf"solver\.{name}="):
        Adam(**{name: value})
