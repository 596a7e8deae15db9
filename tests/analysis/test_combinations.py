"""fvlight.analysis.combinations against loops."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.analysis.combinations import convex_combinations, random_weights, subset_averages


def images_of_norm(norm: float) -> Tensor:
    images = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return images * (norm / images.flatten(-3).norm(dim=-1)[..., None, None, None])


@pytest.mark.parametrize(("size", "count"), [(1, 4), (2, 6), (3, 4), (4, 1)])
def test_all_subsets_averaged_and_brought_to_the_templates_norm(size: int, count: int) -> None:
    images = images_of_norm(7.0)
    averages = subset_averages(images, size)
    assert averages.shape[1] == count
    for problem in range(2):
        for index, subset in enumerate(combinations(range(4), size)):
            mean = torch.stack([images[problem, i] for i in subset]).mean(0)
            torch.testing.assert_close(averages[problem, index], mean * 7 / mean.norm(), rtol=1e-12, atol=1e-12)


def test_of_unequal_norms_it_is_the_mean() -> None:
    images = images_of_norm(1.0) * torch.tensor([1.0, 2.0, 3.0, 6.0])[:, None, None, None]
    norms = convex_combinations(images, random_weights(4, 5)).flatten(-3).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((2, 5), 3.0, dtype=torch.float64))


def test_random_weights_are_spread_evenly_over_the_simplex() -> None:
    weights = random_weights(3, 40_000, seed=1)
    torch.testing.assert_close(weights.sum(1), torch.ones(40_000, dtype=torch.float64))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, and P(w > 1/2) = 1/4.
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=5e-3)
    assert weights.var(0).tolist() == pytest.approx([1 / 18] * 3, rel=0.03)
    assert (weights > 0.5).double().mean(0).tolist() == pytest.approx([0.25] * 3, abs=0.01)


@pytest.mark.parametrize("size", [0, 5])
def test_a_subset_has_some_images_and_not_more_than_there_are(size: int) -> None:
    with pytest.raises(FvlightError, match=rf"size={size}: subsets of 4 images have 1 to 4"):
        subset_averages(images_of_norm(1.0), size)
