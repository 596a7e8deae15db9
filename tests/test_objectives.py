"""Distances and scores against plain loops, finite differences and the two conventions against each other."""

import math
from itertools import combinations

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.objectives import (
    CONVENTIONS,
    convention_named,
    direction_score,
    diverse_score,
    min_pair_distance,
    pair_distances,
)

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


def unit(*shape, seed=1):
    y = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return y / y.norm(dim=1, keepdim=True)


def near(targets, amount, seed=2):
    """Responses of all lengths, and of cosines between about 0.5 and 1 to the targets."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(targets.shape, dtype=torch.float64, generator=generator)
    lengths = 10 ** torch.linspace(-6, 6, len(targets), dtype=torch.float64)[:, None]
    return lengths * (targets + amount * noise / noise.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("power", [0, 1, 2, 3, 4])
def test_the_directions_gradient_is_the_papers_linear_map_of_the_target(power):
    """papers.md A1: grad f = c^k M_k y with M_k = (k + 1) I - k yh yh' / |yh|^2."""
    targets = unit(30, 12)
    responses = near(targets, 1.2).requires_grad_()
    (gradient,) = torch.autograd.grad(direction_score(responses, targets, power).sum(), responses)
    for yh, y, found in zip(responses.detach(), targets, gradient, strict=True):
        cosine = (yh @ y) / yh.norm()
        assert cosine > 0.1
        matrix = (power + 1) * torch.eye(12, dtype=torch.float64) - power * torch.outer(yh, yh) / yh.norm() ** 2
        expected = cosine**power * matrix @ y
        assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("power", [0, 1, 2, 3, 4])
def test_a_directions_score_is_projection_times_cosine_to_the_power(power):
    targets = unit(10, 5)
    responses = near(targets, 1.2)
    expected = [
        float(yh @ y) * (float(yh @ y) / math.sqrt(float(yh @ yh))) ** power
        for yh, y in zip(responses, targets, strict=True)
    ]
    torch.testing.assert_close(direction_score(responses, targets, power), torch.tensor(expected).double())


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_below_the_floor_the_gradient_points_along_the_target(power):
    """So an odd power does not rise towards -y, and an even one is not stuck at responses orthogonal to y."""
    targets = unit(3, 4)
    across = targets.flip(1) * torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    across -= (across * targets).sum(1, keepdim=True) * targets
    for responses in (-3 * targets, across, across - 0.5 * targets):
        responses = responses.clone().requires_grad_()
        score = direction_score(responses, targets, power, floor=0.2)
        (gradient,) = torch.autograd.grad(score.sum(), responses)
        torch.testing.assert_close(score.detach(), 0.2**power * (responses.detach() * targets).sum(1))
        torch.testing.assert_close(gradient, 0.2**power * targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-42])
@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("power", [0, 1, 2, 3, 4])
def test_a_silent_response_has_a_finite_gradient(power, floor, length, dtype):
    targets = unit(2, 4).to(dtype)
    responses = (length * targets).requires_grad_()
    score = direction_score(responses, targets, power, floor)
    (gradient,) = torch.autograd.grad(score.sum(), responses)
    assert score.abs().max() <= 1e-40
    assert gradient.isfinite().all()
    if length == 0:
        torch.testing.assert_close(gradient, floor**power * targets)


def test_directions_of_a_batch_do_not_couple():
    targets, together = unit(4, 6), near(unit(4, 6), 0.5)
    alone = torch.cat([direction_score(r[None], y[None], 2) for r, y in zip(together, targets, strict=True)])
    torch.testing.assert_close(direction_score(together, targets, 2), alone)


@pytest.mark.parametrize(("power", "floor"), [(-1, 0.1), (2, -0.1), (2, 1.0), (float("nan"), 0.1)])
def test_impossible_powers_and_floors_are_named(power, floor):
    with pytest.raises(FvlightError, match=f"power={power}, floor={floor}"):
        direction_score(torch.ones(1, 2), torch.ones(1, 2), power, floor)
