"""Analytic cells of primary visual cortex [C, Figs. 1, 2, 9]: every answer about them is known in closed form.

The paper's own parameters are lost; ours are arguments with defaults (32 × 32 pixels, Gabors of sigma 5 and period
8 pixels, images of unit norm). Layers: ``simple`` (linear responses of the simple cells), ``rectified``,
``squared``, ``complex`` (the cell's output, at most 1 for a Gabor of unit norm).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network

from .registry import register

SPACE = InputSpace(channels=1, photographic=False)
SMALLEST_RESPONSE = 0.8  # [C, Fig. 1]: the Hubel & Wiesel cell answers every phase with more than 80 % of its maximum
PHASES = 720  # samples of the circle where a maximum over phases is taken: half a degree apart


def gabor(
    size: int,
    phase: Tensor | float,
    sigma: float = 5.0,
    period: float = 8.0,
    orientation: float = 0.0,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Gabor patches of unit norm, (..., size, size) for phases (...) in radians; float64.

    Args:
        sigma, period: of the Gaussian window and the grating, in pixels.
        orientation: of the grating's direction, in radians; 0 varies along the width.
        centre: (y, x) offset from the middle of the patch, in pixels.
    """
    phase = torch.as_tensor(phase, dtype=torch.float64)[..., None, None]
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = axis[:, None] - centre[0], axis[None, :] - centre[1]
    along = x * math.cos(orientation) + y * math.sin(orientation)
    patch = torch.exp(-(x**2 + y**2) / (2 * sigma**2)) * torch.cos(2 * math.pi * along / period + phase)
    return patch / patch.flatten(-2).norm(dim=-1)[..., None, None]


class Square(nn.Module):
    """Elementwise square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Root(nn.Module):
    """Square root of non-negative values, with the finite slope of x + 1e-6 at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x + 1e-6)


def _bank(filters: Tensor) -> nn.Conv2d:
    """A convolution that applies whole-image filters (k, size, size): one linear simple cell each."""
    conv = nn.Conv2d(1, len(filters), filters.shape[-1], bias=False)
    conv.weight.data.copy_(filters[:, None])
    return conv


def _pool(weights: Tensor) -> nn.Conv2d:
    """A 1 × 1 convolution with weights (outputs, inputs)."""
    conv = nn.Conv2d(weights.shape[1], weights.shape[0], 1, bias=False)
    conv.weight.data.copy_(weights[:, :, None, None])
    return conv


def _network(name: str, layers: dict[str, nn.Module], weights: str) -> Network:
    if weights != "default":
        raise FvlightError(
            f"network {name!r} is analytic and has no weights to replace (network.weights={weights}): "
            "leave network.weights=default and change its parameters (network.seed, network.options)"
        )
    return Network(nn.Sequential(OrderedDict(layers)), name, SPACE)


@register("energy_cell")
def energy_cell(
    *, weights: str = "default", seed: int = 0, size: int = 32, sigma: float = 5.0, period: float = 8.0
) -> Network:
    """The energy model: the squared responses of two Gabors in quadrature, summed. Invariant to phase."""
    filters = gabor(size, torch.tensor([0.0, -math.pi / 2]), sigma, period)
    layers = {"simple": _bank(filters), "squared": Square(), "complex": _pool(torch.ones(1, 2))}
    return _network("energy_cell", layers, weights)


def hubel_wiesel_parameters(
    seed: int, cells: int, jitter: float, spread: float, size: int, sigma: float, period: float
) -> tuple[Tensor, Tensor]:
    """Phases (cells,) and weights (cells,) of simple cells; drawn again until every phase is answered.

    Phases are 2 pi i / cells plus jitter (in units of that spacing), weights 1 + spread N(0, 1), scaled so that
    the strongest answer to a unit-norm Gabor is 1. A draw whose weakest answer is below `SMALLEST_RESPONSE` is no
    Hubel & Wiesel cell in the sense of [C, Fig. 1] and is discarded.
    """
    generator = torch.Generator().manual_seed(seed)
    probes = gabor(size, torch.arange(PHASES) * (2 * math.pi / PHASES), sigma, period).flatten(1)
    for _ in range(1000):
        noise = torch.randn(2, cells, generator=generator, dtype=torch.float64)
        phases = 2 * math.pi / cells * (torch.arange(cells) + jitter * noise[0])
        weights = (1 + spread * noise[1]).clamp_min(0)
        responses = (probes @ gabor(size, phases, sigma, period).flatten(1).T).relu().square() @ weights
        if responses.min() >= SMALLEST_RESPONSE * responses.max():
            return phases, weights / responses.max()
    raise FvlightError(
        f"no draw of {cells} simple cells with jitter {jitter} and spread {spread} answers every phase with "
        f"{SMALLEST_RESPONSE:.0%} of the maximum: use more cells or less jitter"
    )


@register("hubel_wiesel_cell")
def hubel_wiesel_cell(
    *, weights: str = "default", seed: int = 0, size: int = 32, sigma: float = 5.0, period: float = 8.0,
    cells: int = 8, jitter: float = 0.1, spread: float = 0.1,
) -> Network:  # fmt: skip
    """Hubel & Wiesel's complex cell: rectified simple cells of many phases, squared and summed.

    It answers every phase, but not all alike: one phase is best.
    """
    phases, pooling = hubel_wiesel_parameters(seed, cells, jitter, spread, size, sigma, period)
    layers: dict[str, nn.Module] = {
        "simple": _bank(gabor(size, phases, sigma, period)),
        "rectified": nn.ReLU(),
        "squared": Square(),
        "complex": _pool(pooling[None]),
    }
    return _network("hubel_wiesel_cell", layers, weights)


@register("simple_cell")
def simple_cell(
    *, weights: str = "default", seed: int = 0, size: int = 32, sigma: float = 5.0, period: float = 8.0,
    cells: int = 1, jitter: float = 0.1, spread: float = 0.1,
) -> Network:  # fmt: skip
    """One simple cell: a Gabor and, in ``rectified``, a threshold. Its unit is 0, read before the threshold.

    With ``cells`` > 1 it is surrounded by the other simple cells of a `hubel_wiesel_cell` with as many cells and
    the same seed, so that distances in ``rectified`` are those of the complex cell; the unit is still 0.
    """
    phases = torch.zeros(1)
    if cells > 1:
        phases, _ = hubel_wiesel_parameters(seed, cells, jitter, spread, size, sigma, period)
    layers = {"simple": _bank(gabor(size, phases, sigma, period)), "rectified": nn.ReLU()}
    return _network("simple_cell", layers, weights)


@register("corner_detector")
def corner_detector(
    *, weights: str = "default", seed: int = 0, size: int = 32, sigma: float = 3.0, period: float = 8.0,
    centres: Sequence[Sequence[float]] = ((-5.0, 0.0), (0.0, 5.0)), orientations: Sequence[float] = (0.0, math.pi / 2),
) -> Network:  # fmt: skip
    """Two energy-model complex cells of different place and orientation, both needed: their geometric mean.

    Each has its own phase, to which the detector is invariant [C, Fig. 9; parameters lost]. Layers ``pair`` (the
    two complex cells) and ``corner``. Scaled so that a unit-norm image shared evenly by both cells answers 1.
    """
    quadrature = torch.tensor([0.0, -math.pi / 2])
    filters = torch.cat(
        [
            gabor(size, quadrature, sigma, period, angle, (centre[0], centre[1]))
            for angle, centre in zip(orientations, centres, strict=True)
        ]
    )
    pairs = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    layers: dict[str, nn.Module] = {
        "simple": _bank(filters),
        "squared": Square(),
        "pair": _pool(pairs),
        "both": Product(),
        "corner": Root(),
    }
    return _network("corner_detector", layers, weights)


class Product(nn.Module):
    """(N, 2, H, W) to (N, 1, H, W): four times the product of the two channels (1 where both are 1/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x[:, :1] * x[:, 1:]
