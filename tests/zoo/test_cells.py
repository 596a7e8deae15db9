"""fvlight.zoo.cells against closed forms and direct arithmetic, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvlight import FvlightError, Network, Readout
from fvlight.zoo import load_network
from fvlight.zoo.cells import gabor, hubel_wiesel_parameters

CELLS = ["energy_cell", "hubel_wiesel_cell", "simple_cell", "corner_detector"]
SEEDS = range(10)
# Not the 720 phases at which the builder itself looks for the maximum.
PHASES = torch.arange(997, dtype=torch.float64) * (2 * math.pi / 997) + 0.001


def double(name: str, **options: Any) -> Network:
    network = load_network(name, **options)
    return Network(network.module.double(), network.name, network.input_space)


def read(network: Network, layer: str, images: Tensor) -> Tensor:
    """(N, size, size) images to (N, units)."""
    value = Readout(network, layer)(images[:, None])
    assert isinstance(value, Tensor)
    return value


def noise(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Random images of unit norm."""
    images = torch.randn(count, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images / images.flatten(1).norm(dim=1)[:, None, None]


# --- Gabors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [15, 32])
@pytest.mark.parametrize("orientation", [0.0, 0.7, math.pi / 2])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (-5.0, 3.0)])
def test_gabors_have_unit_norm_and_the_formula_s_shape(
    size: int, orientation: float, centre: tuple[float, float]
) -> None:
    patches = gabor(size, PHASES[::100], 3.0, 8.0, orientation, centre)
    assert patches.dtype == torch.float64
    torch.testing.assert_close(patches.flatten(1).norm(dim=1), torch.ones(len(patches), dtype=torch.float64))
    for phase, patch in zip(PHASES[::100].tolist(), patches, strict=True):
        direct = torch.empty(size, size, dtype=torch.float64)
        for row in range(size):
            for column in range(size):
                y, x = row - (size - 1) / 2 - centre[0], column - (size - 1) / 2 - centre[1]
                along = x * math.cos(orientation) + y * math.sin(orientation)
                window = math.exp(-(x * x + y * y) / (2 * 3.0**2))
                direct[row, column] = window * math.cos(2 * math.pi * along / 8.0 + phase)
        torch.testing.assert_close(patch, direct / direct.norm())


def test_opposite_phases_are_opposite_and_orientations_turn() -> None:
    one, other = gabor(32, torch.tensor([0.3, 0.3 + math.pi]))
    torch.testing.assert_close(other, -one)
    torch.testing.assert_close(gabor(32, 0.3, orientation=math.pi / 2), gabor(32, 0.3).T)


# --- the energy model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"size": 21, "sigma": 3.0, "period": 6.0}])
def test_the_energy_model_answers_every_phase_with_one(options: dict[str, Any]) -> None:
    """An even and an odd Gabor are orthogonal, and every phase lies in their plane."""
    network = double("energy_cell", **options)
    size = options.get("size", 32)
    response = read(network, "complex", gabor(size, PHASES, options.get("sigma", 5.0), options.get("period", 8.0)))
    torch.testing.assert_close(response, torch.ones_like(response), atol=1e-6, rtol=0)  # the filters are float32


def test_the_energy_model_is_the_squared_length_of_a_projection() -> None:
    """Of any image: so 1 is the most that an image of unit norm can get, to far better than 1 %."""
    network = double("energy_cell")
    images = torch.cat([noise(50), gabor(32, 1.0)[None], 0.5 * gabor(32, 2.0)[None] + 0.1 * noise(1)])
    plane = gabor(32, torch.tensor([0.0, math.pi / 2])).flatten(1)
    expected = (images.flatten(1) @ plane.T).square().sum(1)
    torch.testing.assert_close(read(network, "complex", images)[:, 0], expected, rtol=1e-5, atol=1e-7)
    filters = network.module.get_submodule("simple").weight.detach().flatten(1)
    largest = torch.linalg.eigvalsh(filters @ filters.T).max()
    assert float(largest) == pytest.approx(1, rel=0.01)


# --- Hubel & Wiesel's cell ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_hubel_and_wiesel_s_cell_answers_every_phase_and_one_best(seed: int) -> None:
    response = read(double("hubel_wiesel_cell", seed=seed), "complex", gabor(32, PHASES))[:, 0]
    assert response.min() / response.max() > 0.8 - 1e-3  # looked at elsewhere than where the builder looked
    assert 0.999 < response.max() < 1 + 1e-4
    # Phases as good as the best, to 1e-4, are all neighbours on the circle: there is no second best phase.
    best = response > response.max() * (1 - 1e-4)
    begins = best & ~best.roll(1)
    assert int(begins.sum()) == 1
    # The maximum is at a phase, not everywhere, as the energy model's would be.
    assert response.min() < 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_hubel_and_wiesel_s_cell_is_the_sum_of_its_simple_cells(seed: int) -> None:
    phases, weights = hubel_wiesel_parameters(seed, 8, 0.1, 0.1, 32, 5.0, 8.0)
    images = torch.cat([noise(20, seed=seed), gabor(32, PHASES[::50])])
    expected = torch.zeros(len(images), dtype=torch.float64)
    for phase, weight in zip(phases, weights, strict=True):
        drive = (images * gabor(32, phase)).sum((1, 2))
        expected += weight * drive.clamp_min(0) ** 2
    network = double("hubel_wiesel_cell", seed=seed)
    torch.testing.assert_close(read(network, "complex", images)[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_cells_are_reproducible_by_seed() -> None:
    def parameters(seed: int) -> tuple[Tensor, ...]:
        return tuple(p.detach() for p in load_network("hubel_wiesel_cell", seed=seed).module.parameters())

    state = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(parameters(3), parameters(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(parameters(3), parameters(4), strict=True))
    assert torch.equal(torch.random.get_rng_state()[-8:], state[-8:])


def test_a_cell_that_can_t_answer_every_phase_is_an_error() -> None:
    with pytest.raises(FvlightError, match=r"no draw of 2 simple cells.*jitter 0\.1.*80%.*more cells"):
        load_network("hubel_wiesel_cell", cells=2)


# --- simple cells, corners ------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 8])
def test_simple_cells_are_linear(cells: int) -> None:
    network, images = double("simple_cell", seed=2, cells=cells), noise(4)
    assert read(network, "simple", images).shape == (4, cells)
    mixed = read(network, "simple", 2.0 * images[:2] - 3.0 * images[2:])
    linear = read(network, "simple", images)
    torch.testing.assert_close(mixed, 2 * linear[:2] - 3 * linear[2:])
    signed = torch.cat([images, -images])
    linear = read(network, "simple", signed)
    assert torch.equal(read(network, "rectified", signed), linear.relu())
    assert (linear < 0).any()


def test_simple_cells_are_those_of_the_complex_cell() -> None:
    """A cell on its own is a Gabor of unit norm: it answers a phase with its cosine."""
    images = torch.cat([noise(3), gabor(32, PHASES[::50])])
    several, whole = double("simple_cell", seed=2, cells=8), double("hubel_wiesel_cell", seed=2)
    assert torch.equal(read(several, "simple", images), read(whole, "simple", images))
    response = read(double("simple_cell"), "simple", gabor(32, PHASES))[:, 0]
    torch.testing.assert_close(response, PHASES.cos(), atol=1e-3, rtol=0)


def corner_pair(images: Tensor, first: float = 0.0, second: float = 0.0) -> Tensor:
    """Both complex cells' responses by direct arithmetic; the phases of the quadrature pairs may be any."""
    places = [((-5.0, 0.0), 0.0, first), ((0.0, 5.0), math.pi / 2, second)]
    pair = torch.zeros(len(images), 2, dtype=torch.float64)
    for which, (centre, angle, start) in enumerate(places):
        for quarter in (0.0, -math.pi / 2):
            patch = gabor(32, start + quarter, 3.0, 8.0, angle, centre)
            pair[:, which] += (images * patch).sum((1, 2)) ** 2
    return pair


def test_the_corner_detector_is_the_geometric_mean_of_its_pair() -> None:
    network, images = double("corner_detector"), noise(40)
    pair = corner_pair(images)
    torch.testing.assert_close(read(network, "pair", images), pair, rtol=1e-4, atol=1e-8)
    corner = 2 * (pair[:, 0] * pair[:, 1]).sqrt()  # twice: 1 where each cell answers 1/2
    torch.testing.assert_close(read(network, "corner", images)[:, 0].square(), corner.square(), rtol=1e-4, atol=2e-6)


def test_the_corner_detector_needs_both_cells_and_no_phase() -> None:
    network = double("corner_detector")
    phases = PHASES[::100]
    one = gabor(32, phases, 3.0, 8.0, 0.0, (-5.0, 0.0))
    other = gabor(32, phases, 3.0, 8.0, math.pi / 2, (0.0, 5.0))
    both = (one[:, None] + other[None]).flatten(0, 1) / math.sqrt(2)
    response = read(network, "corner", both)[:, 0]
    torch.testing.assert_close(response, torch.ones_like(response), rtol=0.1, atol=0)  # the two overlap a little
    alone = read(network, "corner", torch.cat([one, other]))
    assert alone.max() < 0.3 * response.min()


@pytest.mark.parametrize("where", [0, 1])
def test_the_corner_detector_does_not_see_a_pair_s_phase(where: int) -> None:
    """Turning the phase of what lies in one cell's plane, the rest of the image kept, changes nothing."""
    network = double("corner_detector")
    filters = network.module.get_submodule("simple").weight.detach().flatten(1)
    rest = noise(1).flatten(1)
    basis = torch.linalg.qr(filters.T).Q
    rest = rest - rest @ basis @ basis.T
    drives = torch.tensor([[0.3, 0.5, -0.4, 0.2]], dtype=torch.float64).repeat(len(PHASES[::50]), 1)
    angles = PHASES[::50]
    drives[:, 2 * where] = 0.6 * angles.cos()
    drives[:, 2 * where + 1] = 0.6 * angles.sin()
    images = rest + torch.linalg.solve(filters @ filters.T, drives.T).T @ filters
    response = read(network, "corner", images.reshape(-1, 32, 32))[:, 0]
    expected = 2 * 0.6 * math.hypot(*((-0.4, 0.2) if where == 0 else (0.3, 0.5)))
    torch.testing.assert_close(response, torch.full_like(response, expected), rtol=1e-5, atol=0)


def test_the_corner_s_root_has_a_finite_slope_at_zero() -> None:
    images = torch.zeros(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    value = Readout(double("corner_detector"), "corner")(images)
    (gradient,) = torch.autograd.grad(value.sum(), images)  # type: ignore[union-attr]
    assert gradient.isfinite().all()


# --- all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("weights", ["random", "cells.safetensors"])
def test_analytic_cells_take_no_weights(name: str, weights: str) -> None:
    with pytest.raises(FvlightError, match=rf"'{name}' is analytic.*network\.weights={weights}.*network\.seed"):
        load_network(name, weights=weights)


@pytest.mark.parametrize("name", CELLS)
def test_cells_see_one_grey_image_that_is_no_photograph(name: str) -> None:
    network = load_network(name, size=20)
    assert network.input_space.channels == 1
    assert not network.input_space.photographic
    last = [layer for layer, part in network.module.named_modules() if isinstance(part, nn.Module) and layer][-1]
    assert Readout(network, last).image_size == (20, 20)
    assert all(p.dtype == torch.float32 for p in network.module.parameters())
