"""The chosen lambda."""

import torch

from fvlight.analysis import select_lambda


def test_the_largest_lambda_that_keeps_the_unit_active():
    mean = torch.tensor(
        [
            [1.0, 0.95, 0.9, 0.5],
            [2.0, 1.0, 1.9, 0.1],  # not contiguous: the largest counts
            [2.0, 0.1, 0.1, 0.1],
            [0.5, 0.6, 0.7, 0.8],
        ],
        dtype=torch.float64,
    )
    assert select_lambda(mean, 0.9) == [2, 2, 0, 3]


def test_a_unit_that_never_responds_has_none():
    nan = float("nan")
    assert select_lambda(torch.tensor([[0.0, 1.0], [-1.0, -2.0], [nan, 1.0], [1.0, nan]]), 0.9) == [
        None,
        None,
        None,
        0,
    ]
