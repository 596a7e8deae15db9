"""fvlight.analysis.gabors: Gabors with known parameters are found again, as exactly as noise allows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fvlight import FvlightError
from fvlight.analysis.gabors import Gabor, fit_gabor, fit_gabors, is_complex, phase_difference, phase_spread
from fvlight.analysis.phases import circular_gaps, in_plane_images, phase_plane
from fvlight.zoo.cells import gabor


def errors(found: Gabor, true: Gabor) -> tuple[float, float, float]:
    """Of the phase at the true middle and of the orientation in degrees, and of the period relatively."""
    turn = float(phase_difference(2 * found.orientation, 2 * true.orientation)) / 2
    phase = found.phase_at(true.x, true.y)
    if abs(float(phase_difference(found.orientation, true.orientation))) > 90:
        phase = -phase
    return abs(float(phase_difference(phase, true.phase))), abs(turn), abs(found.period / true.period - 1)


def noise_for(image: Tensor, ratio: float, seed: int) -> Tensor:
    """White noise whose expected norm is a fraction of the image's."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * ratio * image.norm() / math.sqrt(image.numel())


def drawn(seed: int) -> Gabor:
    """Any place, size, aspect and amplitude; every third at angles where a circle closes."""
    draw = np.random.default_rng(seed)
    period = draw.uniform(4, 12)
    x, y = draw.uniform(-4, 4, 2)
    sigma, aspect = period * draw.uniform(0.4, 1), draw.uniform(0.25, 2)
    orientation, phase, amplitude = draw.uniform(0, 180), draw.uniform(0, 360), draw.uniform(0.01, 1000)
    one = Gabor(x, y, sigma, aspect, period, orientation, phase, amplitude)
    if seed % 3:
        return one
    return replace(one, orientation=draw.choice([0, 0.2, 90, 179.8]), phase=draw.choice([0, 0.3, 180, 359.7]))


@pytest.mark.parametrize(("orientation", "phase", "x", "y"), [(0, 40, 0, 0), (125, 300, 2.5, -3), (179.9, 0, -1, 4)])
def test_images_are_those_of_the_zoo(orientation: float, phase: float, x: float, y: float) -> None:
    image = Gabor(x, y, 5, 1, 8, orientation, phase, 3).image(32, 32)
    expected = gabor(32, math.radians(phase), 5, 8, math.radians(orientation), (y, x))
    torch.testing.assert_close(image / image.norm(), expected)
    assert float(Gabor(0, 0, 5, 1, 8, orientation, 0, 3).image(33, 33)[16, 16]) == pytest.approx(3)


@pytest.mark.parametrize("shape", [(32, 32), (20, 33)])
def test_without_noise_every_parameter_is_found(shape: tuple[int, int]) -> None:
    for seed in range(30):
        true = drawn(seed)
        found = fit_gabor(true.image(*shape))
        assert max(errors(found, true)) < 1e-4, true
        for name in ("x", "y", "sigma", "aspect", "amplitude"):
            assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-4, abs=1e-4), (name, true)
        assert found.explained_variance == pytest.approx(1)
        assert 0 <= found.orientation < 180
        assert 0 <= found.phase < 360


def test_with_noise_it_is_the_best_that_there_is() -> None:
    """Noise of 30 % of the image's norm. A maximum of likelihood with 8 parameters lies 8 variances of the noise from
    the truth, in squared distance between the two images and on average (chi² with 8 degrees of freedom)."""
    worst, distances = np.zeros(3), []
    for seed in range(60):
        true = drawn(seed)
        image = true.image(32, 32)
        found = fit_gabor(image + noise_for(image, 0.3, seed))
        worst = np.maximum(worst, errors(found, true))
        variance = float(0.09 * image.square().mean())
        distances.append(float((found.image(32, 32) - image).square().sum()) / variance)
        assert found.explained_variance == pytest.approx(1 / 1.09, abs=0.02)
    phase, orientation, period = worst
    assert phase < 3
    assert orientation < 1
    assert period < 0.02
    assert np.mean(distances) == pytest.approx(8, abs=4 * 4 / math.sqrt(60))  # 4 standard errors
    assert max(distances) < stats.chi2(8).ppf(1 - 1e-5)


def test_half_of_it_is_noise() -> None:
    worst = np.max([errors(fit_gabor(x + noise_for(x, 1.0, i)), g) for i, g, x in _plain(25)], 0)
    assert (worst < [8, 3, 0.05]).all()


def _plain(count: int):
    for seed in range(count):
        one = replace(drawn(seed), aspect=1.2)
        yield seed, one, one.image(32, 32)


def test_a_small_gabor_in_a_large_image_is_found_in_noise_as_strong() -> None:
    """By chi², as above: a fit that begins with a narrow envelope in the image's middle misses many."""
    draw = np.random.default_rng(5)
    for seed in range(30):
        period = draw.uniform(3, 5)
        x, y = draw.uniform(-12, 12, 2)
        one = Gabor(x, y, 0.5 * period, 1, period, draw.uniform(0, 180), draw.uniform(0, 360))
        image = one.image(32, 32)
        found = fit_gabor(image + noise_for(image, 1.0, seed))
        distance = float((found.image(32, 32) - image).square().sum() / image.square().mean())
        assert distance < stats.chi2(8).ppf(1 - 1e-5), one


def test_outside_the_middle_and_without_an_end() -> None:
    """An envelope whose middle lies on the border, and a grating that fills the image."""
    for one in (Gabor(15.5, -15.5, 5, 1, 8, 30, 70), Gabor(0, 0, 40, 1, 8, 30, 70), Gabor(0, 0, 2, 8, 6, 100, 200)):
        image = one.image(32, 32)
        phase, orientation, period = errors(fit_gabor(image + noise_for(image, 0.1, 0)), one)
        assert phase < 2
        assert orientation < 0.5
        assert period < 0.01


def test_noise_is_no_gabor() -> None:
    image = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fit_gabor(image)
    assert found.explained_variance < 0.1
    assert is_complex([found] * 6) is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 8), "the same value everywhere"),
        (torch.full((8, 8), 0.3), "the same value everywhere"),
        (torch.full((8, 8), torch.nan), "not finite"),
        (torch.ones(1, 8, 8), r"shape \(1, 8, 8\)"),
        (torch.ones(3, 8), r"at least 4 pixels"),
    ],
)
def test_images_that_can_not_be_fitted(image: Tensor, message: str) -> None:
    with pytest.raises(FvlightError, match=message):
        fit_gabor(image)


def test_the_phase_at_a_point_follows_the_image() -> None:
    """The image moved by whole pixels: the phase in its own middle stays, that at a fixed point goes with f · d."""
    one = Gabor(1, -2, 4, 1.3, 7, 35, 110)
    image = one.image(40, 40)
    here, there = fit_gabor(image), fit_gabor(image.roll((3, -2), (0, 1)))
    assert (there.x, there.y) == pytest.approx((-1, 1), abs=1e-2)
    assert abs(float(phase_difference(here.phase, there.phase))) < 0.1
    moved = 360 / 7 * (-2 * math.cos(math.radians(35)) + 3 * math.sin(math.radians(35)))
    assert abs(float(phase_difference(here.phase_at(0, 0) - moved, there.phase_at(0, 0)))) < 0.1


def test_phase_differences_go_the_shorter_way() -> None:
    a, b = torch.linspace(-500, 900, 57, dtype=torch.float64), torch.linspace(100, -300, 57, dtype=torch.float64)
    turned = torch.polar(torch.ones(57, dtype=torch.float64), (a - b).deg2rad())
    difference = phase_difference(a, b)
    torch.testing.assert_close(difference.deg2rad().sin(), turned.imag)
    torch.testing.assert_close(difference.deg2rad().cos(), turned.real)
    assert difference.min() >= -180
    assert difference.max() < 180
    assert float(phase_difference(350, 10)) == -20


def test_images_of_an_energy_cell_are_sixty_degrees_apart() -> None:
    filters = gabor(32, torch.tensor([0.0, -math.pi / 2]))
    spread = phase_spread(fit_gabors(in_plane_images(phase_plane(filters), (1, 32, 32), 6)[:, 0]))
    torch.testing.assert_close(
        circular_gaps(spread.phases), torch.full((6,), 60.0, dtype=torch.float64), rtol=5e-3, atol=0
    )
    assert spread.images == list(range(6))
    assert spread.period == pytest.approx(8, rel=1e-3)
    assert spread.coverage == pytest.approx(1, abs=2e-3)


def scattered(phases: list[float], seed: int, orientation: float) -> Tensor:
    """Gabors of given phases at the image's middle, with envelopes elsewhere, on slightly different axes, noisy."""
    draw = np.random.default_rng(seed)
    images = []
    for i, phase in enumerate(phases):
        x, y = draw.uniform(-2, 2, 2)
        turned = (orientation + draw.uniform(-1, 1)) % 180
        sign = 1 if abs(turned - orientation) < 90 else -1  # 179.5 and 0.5 are counted in opposite directions
        one = Gabor(x, y, 5, 1, 8, turned, 0)
        one = replace(one, phase=(sign * phase - one.phase_at(0, 0)) % 360)
        images.append(one.image(32, 32) + noise_for(one.image(32, 32), 0.3, seed * 10 + i))
    return torch.stack(images)


@pytest.mark.parametrize("orientation", [0.3, 47.0, 179.8])
def test_phases_are_compared_at_one_point_and_in_one_direction(orientation: float) -> None:
    wanted = [200.0, 20, 80, 320, 140, 260]
    for seed in range(4):
        spread = phase_spread(fit_gabors(scattered(wanted, seed, orientation)))
        assert len(spread.images) == 6
        assert (
            circular_gaps(spread.phases) - 60
        ).abs().max() < 8  # one degree of turn is 3 degrees of phase at 4 pixels
        assert is_complex(scattered(wanted, seed, orientation))


def test_one_phase_or_two_opposite_ones_are_not_complex() -> None:
    one, two = ([30.0] * 6, [30.0, 210, 30, 30, 210, 210])
    same = phase_spread(fit_gabors(scattered(one, 0, 60)))
    opposite = phase_spread(fit_gabors(scattered(two, 0, 60)))
    assert same.circular_variance < 0.01
    assert same.coverage < 0.05
    assert opposite.circular_variance > 0.99  # the variance alone can't tell
    assert 0.55 < opposite.coverage < 0.65
    assert is_complex(scattered(one, 0, 60)) is False
    assert is_complex(scattered(two, 0, 60)) is False


@pytest.mark.parametrize(("gap", "complex_"), [(60.0, True), (145.0, True), (155.0, False), (180.0, False)])
def test_a_gap_in_the_phases_decides(gap: float, complex_: bool) -> None:
    """Six phases evenly over the rest of the circle, wherever it begins; and the criterion can be another."""
    for begin in (0.0, 100.0, 290.0):
        phases = [(begin + i * (360 - gap) / 5) % 360 for i in range(6)]
        gabors = [Gabor(0, 0, 4, 1, 8, 20, phase) for phase in phases]
        assert phase_spread(gabors).largest_gap == pytest.approx(gap)
        assert is_complex(gabors) is complex_
        assert is_complex(gabors, gap=gap + 1)
        assert not is_complex(gabors, gap=gap - 1)


def test_the_spread_is_that_of_circular_statistics() -> None:
    phases = [10.0, 50, 100, 200, 350]
    spread = phase_spread([Gabor(0, 0, 4, 1, 8, 20, phase) for phase in phases])
    assert spread.phases.tolist() == pytest.approx(phases)
    assert spread.circular_variance == pytest.approx(stats.circvar(np.radians(phases)))
    assert spread.largest_gap == 150
    assert spread.coverage == pytest.approx(210 / 288)


def test_only_gratings_that_are_alike_are_compared() -> None:
    alike = [Gabor(0, 0, 4, 1, 8, 175, 0), Gabor(0, 0, 4, 1, 9, 4, 240), Gabor(0, 0, 4, 1, 8, 0, 120)]
    others = [Gabor(0, 0, 4, 1, 8, 90, 0), Gabor(0, 0, 4, 1, 14, 0, 0), replace(alike[0], explained_variance=0.3)]
    gabors = [others[0], alike[0], others[1], alike[1], others[2], alike[2]]
    spread = phase_spread(gabors)
    assert spread.images == [1, 3, 5]
    assert spread.orientation == pytest.approx(179.6, abs=0.5)
    assert is_complex(gabors) is True  # half of the images are enough
    assert is_complex(gabors, share=0.6) is None
    assert is_complex(alike[:2]) is None
    assert math.isnan(phase_spread([others[2]]).coverage)
