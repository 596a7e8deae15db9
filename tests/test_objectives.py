"""Distances and scores against plain loops, finite differences and the two conventions against each other."""

import math
from itertools import combinations

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.objectives import CONVENTIONS, convention_named, diverse_score, min_pair_distance, pair_distances

CODE, PAPER = CONVENTIONS["code"], CONVENTIONS["paper"]


def plain_distances(features, convention):
    rows = []
    for problem in features:
        row = []
        for a, b in combinations(problem, 2):
            squares = (a - b) ** 2
            row.append(math.sqrt(squares.mean() if convention.rms_distance else squares.sum()))
        rows.append(row)
    return torch.tensor(rows, dtype=features.dtype)


@pytest.mark.parametrize("convention", [CODE, PAPER])
def test_distances_are_those_of_a_plain_loop(convention):
    features = torch.randn(3, 5, 7, dtype=torch.float64)
    expected = plain_distances(features, convention)
    torch.testing.assert_close(pair_distances(features, convention), expected)
    torch.testing.assert_close(min_pair_distance(features, convention), expected.min(1).values)


@pytest.mark.parametrize("convention", [CODE, PAPER])
def test_gradient_of_the_smallest_distance_agrees_with_finite_differences(convention):
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: min_pair_distance(f, convention), features)


def test_only_the_closest_pair_of_each_problem_is_pushed():
    features = torch.tensor([[[0.0], [1.0], [3.0]], [[0.0], [5.0], [7.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(min_pair_distance(features, PAPER).sum(), features)
    assert gradient[..., 0].tolist() == [[-1, 1, 0], [0, -1, 1]]


@pytest.mark.parametrize("convention", [CODE, PAPER])
def test_images_that_coincide_have_distance_zero_and_are_pushed_apart(convention):
    features = torch.ones(1, 3, 4, requires_grad=True)
    distance = min_pair_distance(features, convention)
    (gradient,) = torch.autograd.grad(distance.sum(), features)
    assert distance.item() == 0
    pushed = gradient[0].norm(dim=1).sort().values * (2 if convention.rms_distance else 1)
    torch.testing.assert_close(pushed, torch.tensor([0.0, 1.0, 1.0]))  # one pair, by a unit vector each
    torch.testing.assert_close(gradient.sum(1), torch.zeros(1, 4))
    apart = min_pair_distance(features + 0.1 * gradient + torch.tensor([0.0, 0.0, 9.0])[:, None], convention)
    assert apart > 0


def test_near_images_keep_their_distance_to_full_precision():
    """Far from the origin |a|^2 + |b|^2 - 2ab would be all cancellation."""
    features = 1000 + torch.randn(1, 2, 100)
    features[:, 1] = features[:, 0]
    features[0, 1, 0] += 0.5
    torch.testing.assert_close(min_pair_distance(features, PAPER), torch.tensor([0.5]), rtol=1e-6, atol=0)


def test_a_lambda_of_the_paper_is_the_codes_times_n_over_root_d():
    """papers.md B2: lambda_code = lambda_Eq * sqrt(D) / n, scores differ by the factor n."""
    n, dimension = 6, 50
    activations, features = (
        torch.rand(4, n, dtype=torch.float64),
        torch.randn(4, n, dimension, dtype=torch.float64),
    )
    lambdas = torch.tensor([0.0, 0.1, 1.0, 7.0], dtype=torch.float64)
    paper = diverse_score(activations, min_pair_distance(features, PAPER), lambdas, PAPER)
    code = diverse_score(activations, min_pair_distance(features, CODE), lambdas * dimension**0.5 / n, CODE)
    torch.testing.assert_close(paper, n * code)


def test_log_likelihoods_are_summed_in_both_conventions():
    activations, distance, lambdas = torch.rand(2, 3), torch.rand(2), torch.rand(2)
    log_prior = torch.randn(2, 3)
    for convention in CONVENTIONS.values():
        with_prior = diverse_score(activations, distance, lambdas, convention, log_prior)
        without = diverse_score(activations, distance, lambdas, convention)
        torch.testing.assert_close(with_prior - without, log_prior.sum(1))


def test_errors_name_what_is_wrong():
    with pytest.raises(FvlightError, match="no convention 'papre': did you mean 'paper'"):
        convention_named("papre")
    with pytest.raises(FvlightError, match="at least two images"):
        pair_distances(torch.ones(1, 1, 3), CODE)
