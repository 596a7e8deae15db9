"""fvlight.analysis.targets: a plain replica of Hoyer's projfunc.m, and what targets shall be like."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from fvlight.analysis.targets import canonical_targets, hoyer_sparseness, project_to_sparseness, random_targets
from fvlight.errors import FvlightError


def projfunc(s: list[float], k1: float, k2: float) -> list[float]:
    """Hoyer's projfunc.m for nonnegative vectors, statement by statement. k1: L1 norm, k2: squared L2 norm."""
    count = len(s)
    total = sum(s)
    v = [x + (k1 - total) / count for x in s]
    zero: list[int] = []
    while True:
        midpoint = [0.0 if i in zero else k1 / (count - len(zero)) for i in range(count)]
        w = [x - m for x, m in zip(v, midpoint, strict=True)]
        a = sum(x**2 for x in w)
        b = 2 * sum(x * y for x, y in zip(w, v, strict=True))
        c = sum(x**2 for x in v) - k2
        alpha = (-b + math.sqrt(max(b**2 - 4 * a * c, 0))) / (2 * a)
        v = [alpha * x + y for x, y in zip(w, v, strict=True)]
        if all(x >= 0 for x in v):
            return v
        zero = [i for i, x in enumerate(v) if x <= 0]
        v = [max(x, 0.0) for x in v]
        total = sum(v)
        v = [0.0 if i in zero else x + (k1 - total) / (count - len(zero)) for i, x in enumerate(v)]


def drawn(count: int, features: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(count, features, generator=generator, dtype=torch.float64)
    return starts, torch.rand(count, generator=generator, dtype=torch.float64)


def test_sparseness_of_known_vectors() -> None:
    one, same, half = [1.0, 0, 0, 0], [2.0, 2, 2, 2], [3.0, -3, 0, 0]
    found = hoyer_sparseness(torch.tensor([one, same, half]).double())
    assert found.tolist() == pytest.approx([1, 0, 2 - math.sqrt(2)], abs=1e-15)


@pytest.mark.parametrize("features", [2, 5, 40])
def test_the_projection_is_hoyers(features: int) -> None:
    starts, sparseness = drawn(60, features)
    found = project_to_sparseness(starts, sparseness)
    root = math.sqrt(features)
    for row, start, s in zip(found, starts.tolist(), sparseness.tolist(), strict=True):
        assert row.tolist() == pytest.approx(projfunc(start, root - s * (root - 1), 1.0), abs=1e-12)


def test_the_projection_is_the_nearest_vector() -> None:
    """Against a general optimiser from the projection's own support and from elsewhere: it finds nothing nearer."""
    starts, sparseness = drawn(8, 4)
    found = project_to_sparseness(starts, sparseness)
    for row, start, s in zip(found, starts.numpy(), sparseness.tolist(), strict=True):
        total = 2 - s
        constraints = [
            {"type": "eq", "fun": lambda v, total=total: v.sum() - total},
            {"type": "eq", "fun": lambda v: v @ v - 1},
        ]
        others = [
            optimize.minimize(
                lambda v, start=start: ((v - start) ** 2).sum(), guess, bounds=[(0, 1)] * 4, constraints=constraints
            )
            for guess in (start, start[::-1].copy(), row.numpy() + 0.01)
        ]
        nearest = min(other.fun for other in others if other.success)
        assert ((row.numpy() - start) ** 2).sum() == pytest.approx(nearest, abs=1e-6)


def test_the_ends_of_sparseness() -> None:
    starts, _ = drawn(20, 12)
    constant = project_to_sparseness(starts, torch.zeros(20).double())
    torch.testing.assert_close(constant, torch.full_like(starts, 1 / math.sqrt(12)), rtol=0, atol=1e-7)
    single = project_to_sparseness(starts, torch.ones(20).double())
    torch.testing.assert_close(single, torch.eye(12).double()[starts.argmax(1)], rtol=0, atol=1e-14)


@pytest.mark.parametrize("features", [2, 10, 512])
def test_random_targets_are_nonnegative_units_of_uniform_sparseness(features: int) -> None:
    found = random_targets(400, features, seed=3)
    assert found.dtype == torch.float64
    assert found.min() >= 0
    torch.testing.assert_close(found.norm(dim=1), torch.ones(400).double(), rtol=0, atol=1e-14)
    assert stats.kstest(hoyer_sparseness(found).numpy(), "uniform").pvalue > 0.05


def test_the_wanted_sparseness_is_reached() -> None:
    starts, sparseness = drawn(300, 128)
    found = hoyer_sparseness(project_to_sparseness(starts, sparseness))
    torch.testing.assert_close(found, sparseness, rtol=0, atol=1e-12)


def test_a_target_depends_on_its_seed_and_row_alone() -> None:
    many = random_targets(9, 20, seed=1)
    assert torch.equal(random_targets(4, 20, seed=1), many[:4])
    assert len(many.unique(dim=0)) == 9
    assert not torch.equal(random_targets(9, 20, seed=2), many)
    assert random_targets(0, 20, seed=1).shape == (0, 20)


def test_canonical_targets_are_single_features() -> None:
    found = canonical_targets([3, 0], 5)
    assert found.tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert canonical_targets([], 5).shape == (0, 5)


def test_errors() -> None:
    with pytest.raises(FvlightError, match="feature 5 of a canonical target: there are 0 to 4"):
        canonical_targets([1, 5], 5)
    with pytest.raises(FvlightError, match="features=1"):
        random_targets(3, 1, seed=0)
    with pytest.raises(FvlightError, match="count=-1"):
        random_targets(-1, 3, seed=0)
    with pytest.raises(FvlightError, match="from 0 to 1"):
        project_to_sparseness(torch.rand(2, 3), torch.tensor([0.5, 1.5]))
    with pytest.raises(FvlightError, match="are equal"):
        project_to_sparseness(torch.ones(1, 3), torch.tensor([0.5]))
