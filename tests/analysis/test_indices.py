"""fvlight.analysis.indices: closed forms, and slow loops over units and images."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight import Network
from fvlight.analysis.indices import bootstrap, combination_index, local_dimension, shift_index


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 3])
def test_the_combination_index_is_that_of_a_slow_loop(size: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).double()
    images = random(2, 4, 3, 5, 5)
    images *= 2 / images.flatten(2).norm(dim=2)[..., None, None, None]
    found = combination_index(Network(module), "2", images, [4, 1], size=size)
    for row, unit in enumerate([4, 1]):
        own = [float(module(image[None])[0, unit]) for image in images[row]]
        mixed = []
        for subset in combinations(images[row], size):
            average = sum(subset) / size
            mixed.append(float(module((average * 2 / average.norm())[None])[0, unit]))  # type: ignore[union-attr, operator]
        assert float(found[row]) == pytest.approx(np.mean(mixed) / np.mean(own), rel=1e-9)


def test_a_linear_unit_likes_mixtures_of_what_it_likes() -> None:
    """Its best image is one; images off it by small noise have averages nearer to it: the index is above 1."""
    module = nn.Sequential(nn.Conv2d(1, 1, 6, bias=False)).double()
    best = module[0].weight.detach()[0]  # type: ignore[index, union-attr, operator]
    images = (best + 0.3 * best.norm() / 6 * random(1, 6, 1, 6, 6)) / 2
    images = images / images.flatten(2).norm(dim=2)[..., None, None, None]
    network = Network(module)
    pairs, triples, most = (float(combination_index(network, "0", images, [0], size=size)) for size in (2, 3, 5))
    assert 1 < pairs < triples < most
    # Weights spread evenly over the simplex count as 1 / E[sum of squares] = 3.5 images.
    assert triples < float(combination_index(network, "0", images, [0], random=500)) < most


def test_the_shift_index_is_a_ratio_of_means() -> None:
    texture, templates = random(3, 4, 4).abs(), random(3, 6).abs()
    expected = [float(texture[u].mean() / templates[u].mean()) for u in range(3)]
    assert shift_index(texture, templates).tolist() == pytest.approx(expected)


def test_the_dimension_of_a_set_of_images() -> None:
    axes = torch.eye(12, dtype=torch.float64).view(12, 3, 2, 2)
    pair = torch.stack([axes[0], -axes[0]])  # a line
    square = torch.stack([axes[0], -axes[0], axes[1], -axes[1]])  # a plane, evenly
    simplex = axes[:6]  # six corners: five dimensions, evenly
    for images, expected in ((pair, 1.0), (square, 2.0), (simplex, 5.0)):
        assert float(local_dimension(images[None])) == pytest.approx(expected)


def test_a_complex_cell_is_invariant_in_two_dimensions() -> None:
    """Gabors of six evenly spread phases lie on a circle."""
    angles = torch.arange(6) * torch.pi / 3
    basis = torch.linalg.qr(random(36, 2)).Q.T.float()
    circle = (torch.stack([angles.cos(), angles.sin()], 1) @ basis).view(1, 6, 1, 6, 6)
    assert float(local_dimension(circle)) == pytest.approx(2, rel=1e-5)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(150):
        estimate = bootstrap(np.mean, generator.normal(size=40), resamples=400, seed=trial)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.87 <= covered / 150 <= 0.99


def test_units_without_a_number_are_left_out() -> None:
    one = np.array([1.0, 2.0, np.nan, 4.0])
    other = np.array([1.0, np.inf, 3.0, 5.0])
    estimate = bootstrap(lambda a, b: float(np.mean(a - b)), one, other, resamples=99)
    assert (estimate.value, estimate.count) == (-0.5, 2)
    assert bootstrap(np.mean, np.array([np.nan, 3.0])).count == 1
    apart = bootstrap(lambda a, b: float(a.mean() - b.mean()), one, other[:1], paired=False)
    assert apart.count == 1
