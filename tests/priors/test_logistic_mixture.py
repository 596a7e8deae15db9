"""The discretised mixture of logistics: against loops over the authors' formulas, sums over all values, samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fvlight.priors.logistic_mixture import draw, log_likelihood

MIXTURES = 3
VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def parameters(count: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """(count, 30, 1, 1): some components broad, some narrow."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, 10 * MIXTURES, 1, 1, generator=generator, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def by_loops(numbers: list[float], pixel: list[float]) -> float:
    """One pixel's probability, by the authors' nn.py, from its numbers in their order."""
    m = MIXTURES
    weights = [math.exp(value) for value in numbers[:m]]
    colours = [numbers[m + 3 * m * c : m + 3 * m * (c + 1)] for c in range(3)]
    total = 0.0
    for k in range(m):
        coefficient = [math.tanh(colours[c][2 * m + k]) for c in range(3)]
        means = [colours[c][k] for c in range(3)]
        means[1] += coefficient[0] * pixel[0]
        means[2] += coefficient[1] * pixel[0] + coefficient[2] * pixel[1]
        product = weights[k] / sum(weights)
        for c in range(3):
            inverse = math.exp(-max(colours[c][m + k], -7.0))
            upper = sigmoid((pixel[c] + 1 / 255 - means[c]) * inverse)
            lower = sigmoid((pixel[c] - 1 / 255 - means[c]) * inverse)
            if pixel[c] < -0.999:
                product *= upper
            elif pixel[c] > 0.999:
                product *= 1 - lower
            else:
                product *= upper - lower
        total += product
    return total


def test_it_is_the_authors_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(40, 3, 1, 1, generator=generator, dtype=torch.float64) * 2 - 1
    images[:6, 0], images[3:9, 1], images[20:23, 2] = -1, 1, -1
    given = parameters(40)
    found = log_likelihood(given, images)
    expected = [by_loops(p.flatten().tolist(), x.flatten().tolist()) for p, x in zip(given, images, strict=True)]
    torch.testing.assert_close(found.flatten().exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def certain_from(numbers: Tensor, colour: int) -> Tensor:
    """The same mixtures, in which that colour and those after it are -1 with certainty: far below the range."""
    numbers = numbers.clone()
    for later in range(colour, 3):
        block = numbers[:, MIXTURES * (1 + 3 * later) :]
        block[:, :MIXTURES], block[:, MIXTURES : 2 * MIXTURES] = -1e4, 0.0
    return numbers


@pytest.mark.parametrize("spread", [1.0, 4.0])  # with 4, scales down to the least, where the authors approximate
@pytest.mark.parametrize("colour", [0, 1, 2])
def test_the_probabilities_of_all_values_sum_to_one(colour: int, spread: float) -> None:
    """P(earlier colours, v), summed over the 256 values of v, is P(earlier colours); later colours are certain."""
    images = torch.full((256, 3, 1, 1), -1.0, dtype=torch.float64)
    images[:, 0], images[:, 1] = VALUES[89], VALUES[184]
    images[:, colour + 1 :] = -1
    images[:, colour] = VALUES[:, None, None]
    for numbers in parameters(20, seed=colour, spread=spread)[:, None]:
        joint = log_likelihood(certain_from(numbers, colour + 1).expand(256, -1, 1, 1), images).logsumexp(0)
        earlier = images[:1].clone()
        earlier[:, colour:] = -1
        marginal = log_likelihood(certain_from(numbers, colour), earlier)[0]
        assert float((joint - marginal).exp()) == pytest.approx(1, abs=1e-6)
        if colour == 0:
            assert float(marginal) == pytest.approx(0, abs=1e-9)


def test_it_has_gradients_far_from_every_component() -> None:
    given = parameters(4)
    given[:, MIXTURES : MIXTURES * 2] = 40.0  # all reds are expected far above the range
    given[:, 2 * MIXTURES : 3 * MIXTURES] = -7.0
    images = torch.zeros(4, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    found = log_likelihood(given, images)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert found.isfinite().all()
    assert (found < -1e4).all()
    # along red: 1 / scale, but for what green and blue say of it
    expected = torch.full((4,), math.exp(7.0), dtype=torch.float64)
    torch.testing.assert_close(gradient[:, 0, 0, 0], expected, rtol=0.01, atol=0)


def test_single_precision_agrees_with_double() -> None:
    given = parameters(200, spread=2.0)
    images = VALUES[torch.randint(256, (200, 3), generator=torch.Generator().manual_seed(0))][..., None, None]
    double, single = log_likelihood(given, images), log_likelihood(given.float(), images.float())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-3)


def test_samples_have_the_distributions_frequencies() -> None:
    """Of the three colours' signs: eight outcomes; expected shares by integrating the mixture, by the loops."""
    numbers = parameters(1, seed=5)
    count = 40_000
    drawn = draw(numbers.expand(-1, -1, 200, 200), torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 3, 200, 200)
    assert drawn.abs().max() <= 1
    found = (drawn[:, 0] < 0).double().mean()
    m = MIXTURES
    flat = numbers.flatten()
    weights = flat[:m].softmax(0)
    expected = sum(
        float(weights[k]) * sigmoid(-float(flat[m + k]) * math.exp(-max(float(flat[2 * m + k]), -7))) for k in range(m)
    )
    assert float(found) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


@pytest.mark.parametrize("colour", [1, 2])
def test_samples_go_with_the_colours_before_them(colour: int) -> None:
    """Narrow components: green is its mean and its coefficient times red; blue likewise with both."""
    numbers = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    red, green, blue = numbers[0, 1:4], numbers[0, 4:7], numbers[0, 7:10]
    red[0], red[1], red[2] = 0.1, -2.0, 0.4
    green[0], green[1], green[2] = -0.2, -7.0, -0.6
    blue[0], blue[1], blue[2] = 0.05, -7.0, 0.3
    drawn = draw(numbers.expand(-1, -1, 30, 30), torch.Generator().manual_seed(0))[0]
    r, g, b = drawn
    expected = {1: -0.2 + math.tanh(0.4) * r, 2: 0.05 + math.tanh(-0.6) * r + math.tanh(0.3) * g}[colour]
    assert float(((g, b)[colour - 1] - expected).abs().max()) < 0.03
    assert float(r.std()) > 0.1
