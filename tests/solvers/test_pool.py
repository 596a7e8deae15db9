"""Who is in the batch."""

import torch

from fvlight.solvers import Pool, Status


def test_problems_enter_in_order_as_others_leave():
    pool = Pool(5, capacity=2)
    assert pool.admit().tolist() == [0, 1]
    assert pool.admit().tolist() == []
    pool.status[0] = int(Status.CONVERGED)
    assert pool.admit().tolist() == [2]
    assert pool.active().tolist() == [1, 2]
    pool.status[1:3] = int(Status.MAX_STEPS)
    assert pool.admit().tolist() == [3, 4]
    pool.status[3:] = int(Status.NAN)
    assert pool.finished


def test_a_problem_waits_for_its_parent_however_that_ended():
    pool = Pool(4, capacity=4, parent=torch.tensor([-1, 0, 1, -1]))
    assert pool.admit().tolist() == [0, 3]
    pool.status[0] = int(Status.NAN)
    assert pool.admit().tolist() == [1]
    assert pool.admit().tolist() == []
    pool.status[1] = int(Status.CONVERGED)
    assert pool.admit().tolist() == [2]


def test_labels():
    assert [status.label for status in Status] == [
        "interrupted",
        "interrupted",
        "converged",
        "max_steps",
        "nan",
    ]
