"""L-BFGS as a torch optimizer, against `minimise`, whose oracle is SciPy."""

import io

import pytest
import torch
from torch import nn

from fvlight.errors import FvlightError
from fvlight.solvers import LBFGS, BatchedLBFGS, Stop, minimise


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def starts(b, d, dtype=torch.float64):
    return torch.randn(b, d, generator=torch.Generator().manual_seed(0), dtype=dtype)


def split(x):
    """The first two and the other entries as parameters of two shapes."""
    return [nn.Parameter(x[:, :2].clone()), nn.Parameter(x[:, 2:].clone().view(len(x), -1, 2))]


def losses_of(parameters):
    return rosenbrock(torch.cat([p.flatten(1) for p in parameters], 1))


def flat(parameters):
    return torch.cat([p.detach().flatten(1) for p in parameters], 1)


def test_steps_of_any_length_give_the_path_of_minimise():
    x = starts(8, 6)
    whole = minimise(lambda points, rows: rosenbrock(points), x)
    for max_iter in (2, 1000):
        parameters = split(x)
        optimizer = BatchedLBFGS(parameters, max_iter=max_iter)
        assert not optimizer.finished
        while not optimizer.finished:
            losses = optimizer.step(lambda parameters=parameters: losses_of(parameters))
            torch.testing.assert_close(losses, losses_of(parameters).detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(flat(parameters), whole.raw, rtol=1e-12, atol=1e-12)
        assert torch.equal(optimizer.status, whole.status)


def test_a_step_takes_so_many_iterations_with_every_problem():
    parameters, calls = split(starts(8, 6)), [0]
    optimizer = BatchedLBFGS(parameters, max_iter=10)

    def closure():
        calls[0] += 1
        return losses_of(parameters)

    optimizer.step(closure)
    state = optimizer.state[parameters[0]]
    assert state["iterations"].tolist() == [10] * 8
    assert state["evaluations"].min() < state["evaluations"].max() == calls[0]  # those that were ready waited
    optimizer.step(closure)
    assert state["iterations"].tolist() == [20] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_makes_the_round_trip(dtype):
    parameters = split(starts(8, 6, dtype))
    optimizer = BatchedLBFGS(parameters, max_iter=4)
    optimizer.step(lambda: losses_of(parameters))
    file = io.BytesIO()
    torch.save({"parameters": parameters, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others = [nn.Parameter(p.detach()) for p in saved["parameters"]]
    other = BatchedLBFGS(others, max_iter=4)
    other.load_state_dict(saved["optimizer"])
    for _ in range(3):
        optimizer.step(lambda: losses_of(parameters))
        other.step(lambda: losses_of(others))
    mine, its = optimizer.state[parameters[0]], other.state[others[0]]
    assert mine["search"].dtype == its["search"].dtype == torch.float64
    for name in mine:
        assert torch.equal(mine[name], its[name]), name
    assert torch.equal(flat(parameters), flat(others))


def test_a_problem_that_is_moved_starts_anew_and_a_stopped_one_stays_put():
    x = nn.Parameter(starts(3, 4))
    optimizer = BatchedLBFGS([x], LBFGS(max_iterations=5))
    optimizer.step(lambda: rosenbrock(x))
    reached = x.detach().clone()
    assert optimizer.status.tolist() == [Stop.MAX_ITERATIONS] * 3
    with torch.no_grad():
        x[1] = 0.5
    optimizer.step(lambda: rosenbrock(x))
    fresh = minimise(lambda points, rows: rosenbrock(points), torch.full_like(x[:1], 0.5), LBFGS(max_iterations=5))
    assert torch.equal(x[[0, 2]], reached[[0, 2]])
    torch.testing.assert_close(x[1].detach(), fresh.raw[0], rtol=1e-12, atol=1e-12)


def test_a_parameter_that_the_losses_do_not_use_stays():
    used, unused = nn.Parameter(starts(3, 4)), nn.Parameter(torch.ones(3, 2).double())
    optimizer = BatchedLBFGS([used, unused])
    while not optimizer.finished:
        optimizer.step(lambda: rosenbrock(used))
    assert torch.equal(unused, torch.ones(3, 2))
    assert (optimizer.status != Stop.NAN).all()


def test_errors_name_what_is_wrong():
    x = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(FvlightError, match=r"one per problem, \(3,\)"):
        BatchedLBFGS([x]).step(lambda: rosenbrock(x).sum())
    with pytest.raises(FvlightError, match=r"first axes of \[2, 3\]"):
        BatchedLBFGS([x, nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(FvlightError, match="2 groups of parameters"):
        BatchedLBFGS([{"params": [x]}, {"params": [nn.Parameter(torch.zeros(3, 2))]}])
    with pytest.raises(FvlightError, match=r"solver\.max_iter=0"):
        BatchedLBFGS([x], max_iter=0)
