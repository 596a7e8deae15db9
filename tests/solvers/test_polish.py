"""Blocks of L-BFGS: the same path as without blocks, and what each end is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fvlight.solvers import LBFGS, Evaluation, Status, polish_block
from fvlight.solvers.lbfgs import State, Stop, minimise
from fvlight.solvers.polish import STATUS
from tests.helpers import one_thread  # noqa: F401

START = torch.tensor([[-1.2, 1.0], [0.5, -0.5], [2.0, 2.0]], dtype=torch.float64)


def banana(x: Tensor) -> Tensor:
    """Rosenbrock's function (b,), whose least value is 0 at (1, 1)."""
    return 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2


def evaluate(x: Tensor) -> Evaluation:
    score = -banana(x)
    return Evaluation(score, torch.stack([score, x[:, 0]], 1))


def solve(lbfgs: LBFGS, inner_steps: int, blocks: int = 1000) -> tuple[State, Tensor, Evaluation]:
    state = lbfgs.start(START)
    for _ in range(blocks):
        status, last = polish_block(evaluate, state, lbfgs, inner_steps)
        if bool((status != int(Status.ACTIVE)).all()):
            break
    return state, status, last


@pytest.mark.parametrize("inner_steps", [1, 7, 1000])
def test_the_path_does_not_depend_on_blocks(inner_steps: int) -> None:
    wanted = minimise(lambda x, rows: banana(x), START)
    state, status, last = solve(LBFGS(), inner_steps)
    torch.testing.assert_close(state["raw"], wanted.raw, rtol=0, atol=1e-12)
    assert state["evaluations"].tolist() == wanted.evaluations.tolist()
    assert status.tolist() == [int(Status.CONVERGED)] * 3
    assert len(set(state["evaluations"].tolist())) > 1  # each ended on its own
    torch.testing.assert_close(state["raw"], torch.ones(3, 2).double(), rtol=0, atol=1e-4)
    assert not last.score.requires_grad
    assert not last.figures.requires_grad
    assert last.figures.shape == (3, 2)


def test_a_block_ends_when_all_have() -> None:
    calls = []

    def counted(x: Tensor) -> Evaluation:
        calls.append(1)
        return evaluate(x)

    lbfgs = LBFGS()
    state = lbfgs.start(START)
    polish_block(counted, state, lbfgs, 10_000)
    assert len(calls) == int(state["evaluations"].max())


def test_a_block_takes_so_many_evaluations() -> None:
    state, status, _ = solve(LBFGS(), 4, blocks=2)
    assert state["evaluations"].tolist() == [8] * 3
    assert status.tolist() == [int(Status.ACTIVE)] * 3


def test_limits_and_nan_have_names_of_their_own() -> None:
    few, status, _ = solve(LBFGS(max_evaluations=5), 10)
    assert status.tolist() == [int(Status.MAX_STEPS)] * 3
    assert few["evaluations"].tolist() == [5] * 3
    assert solve(LBFGS(max_iterations=2), 10)[1].tolist() == [int(Status.MAX_STEPS)] * 3
    calls = [0]

    def broken(x: Tensor) -> Evaluation:
        calls[0] += 1
        score, figures = evaluate(x)
        return Evaluation(score * torch.tensor([1, 1 if calls[0] < 4 else float("nan"), 1]), figures)

    lbfgs = LBFGS()
    state = lbfgs.start(START)
    status, _ = polish_block(broken, state, lbfgs, 1000)
    assert status.tolist() == [int(Status.CONVERGED), int(Status.NAN), int(Status.CONVERGED)]
    assert bool(state["raw"].isfinite().all())
    assert banana(state["raw"])[1] <= banana(START)[1]


def test_without_a_lower_point_a_problem_has_converged() -> None:
    """Rounding ends it: tolerances are zero."""
    state, status, _ = solve(LBFGS(gtol=0, ftol=0, max_iterations=5000, max_evaluations=5000), 10_000)
    assert status.tolist() == [int(Status.CONVERGED)] * 3
    assert float(banana(state["raw"]).max()) < 1e-20


def test_every_end_of_the_solver_is_one_of_a_task() -> None:
    assert set(STATUS) == set(Stop)
    assert [int(stop) for stop in Stop] == list(range(len(Stop)))  # they index a table
    done = {stop for stop, status in STATUS.items() if status not in (Status.ACTIVE, Status.NAN)}
    assert done == set(Stop) - {Stop.ACTIVE, Stop.NAN}
