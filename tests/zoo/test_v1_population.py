"""fvlight.zoo.v1_population: the simulated cells against plain loops, Gabor fits and drifting gratings."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from fvlight.analysis.gabors import fit_gabor, phase_difference
from fvlight.zoo import v1_cnn
from fvlight.zoo.v1_population import KINDS, SIZE, Cell, draw_population, responses


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return draw_population(3)


def test_a_population_belongs_to_its_seed(cells: list[Cell]) -> None:
    assert draw_population(3) == cells
    assert not {cell.orientation for cell in draw_population(4)} & {cell.orientation for cell in cells}
    assert Counter(cell.kind for cell in cells) == {"simple": 24, "energy": 12, "hubel_wiesel": 12}
    assert [cell.is_complex for cell in cells] == [False] * 24 + [True] * 24
    assert [cell.kind for cell in draw_population(3, 2, 1, 1)] == ["simple", "simple", "energy", "hubel_wiesel"]
    assert SIZE == v1_cnn.SIZE


def test_parameters_are_spread_over_their_ranges() -> None:
    """144 draws of a uniform distribution leave a given tenth of it empty by a chance of 3e-7."""
    found = [cell for seed in range(3) for cell in draw_population(seed)]
    for values, low, high in (
        ([cell.x for cell in found], -6, 6), ([cell.y for cell in found], -6, 6),
        ([cell.period for cell in found], 5, 10), ([cell.sigma / cell.period for cell in found], 0.4, 0.6),
        ([cell.orientation for cell in found], 0, 180), ([cell.exponent for cell in found], 1, 1.5),
        ([cell.phases[0] for cell in found], 0, 360),
    ):  # fmt: skip
        tenth = (high - low) / 10
        assert low <= min(values) < low + tenth
        assert high - tenth < max(values) <= high


def test_filters_are_gabors_where_the_cell_says(cells: list[Cell]) -> None:
    for cell in cells[::4]:
        filters = cell.filters()
        assert len(filters) == len(cell.phases) == len(cell.weights)
        torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(len(filters), dtype=torch.float64))
        assert filters.sum((1, 2)).abs().max() < 1e-12
        for phase, patch in zip(cell.phases, filters, strict=True):
            found = fit_gabor(patch)
            assert found.explained_variance > 0.99  # all of it but for what makes it blind to uniform light
            assert (found.x, found.y) == pytest.approx((cell.x, cell.y), abs=0.3)
            assert found.period == pytest.approx(cell.period, rel=0.08)
            turn = float(phase_difference(2 * found.orientation, 2 * cell.orientation)) / 2
            assert abs(turn) < 3
            opposite = abs(float(phase_difference(found.orientation, cell.orientation))) > 90
            at = found.phase_at(cell.x, cell.y)
            assert abs(float(phase_difference(-at if opposite else at, phase))) < 6


def test_responses_are_a_plain_sum(cells: list[Cell]) -> None:
    images = torch.randn(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = responses(cells, images)
    for n, image in enumerate(images):
        for c, cell in enumerate(cells):
            energy = 0.0
            for weight, patch in zip(cell.weights, cell.filters(), strict=True):
                energy += weight * max(0.0, float((patch * image[0]).sum())) ** 2
            assert float(found[n, c]) == pytest.approx(energy ** (cell.exponent / 2), rel=1e-5, abs=1e-12)
    assert responses(cells, images.float()).dtype == torch.float32


def drifting(cell: Cell, count: int = 72) -> Tensor:
    """Gratings (count, 1, 40, 40) of the cell's own orientation and period, through a whole turn of phase."""
    y, x = torch.meshgrid(*[torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2] * 2, indexing="ij")
    angle = math.radians(cell.orientation)
    along = (x * math.cos(angle) + y * math.sin(angle)) / cell.period
    phases = torch.arange(count, dtype=torch.float64)[:, None, None] / count
    return torch.cos(2 * math.pi * (along + phases))[:, None]


def test_drifting_gratings_tell_them_apart_as_physiologists_do(cells: list[Cell]) -> None:
    """The modulation ratio F1/F0 of the response (Skottun et al. 1991): above 1 for simple cells, below for complex
    ones; pi/2 for a rectified sine, 0 for the energy model."""
    for c, cell in enumerate(cells):
        spectrum = torch.fft.rfft(responses(cells, drifting(cell))[:, c])
        ratio = float(2 * spectrum[1].abs() / spectrum[0].real)
        assert (ratio < 1) is cell.is_complex
        if cell.kind == "energy":
            assert ratio < 0.02  # the sum of squares of an even and an odd Gabor is flat but for their norms
        elif cell.kind == "hubel_wiesel":
            assert ratio < 0.2
        else:
            assert ratio == pytest.approx(rectified_sine(cell.exponent), abs=0.01)


def rectified_sine(exponent: float) -> float:
    """F1/F0 of ``max(0, sin)^exponent``, by the integral of a sine's power: ``sqrt(pi) G((p+1)/2) / G(p/2 + 1)``."""

    def integral(power: float) -> float:
        return math.sqrt(math.pi) * math.gamma((power + 1) / 2) / math.gamma(power / 2 + 1)

    return 2 * integral(exponent + 1) / integral(exponent)


def test_the_kinds_are_those_that_are_named(cells: list[Cell]) -> None:
    assert {cell.kind for cell in cells} == set(KINDS)
    assert [len(next(cell for cell in cells if cell.kind == kind).phases) for kind in KINDS] == [1, 4, 8]
