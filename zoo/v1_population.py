"""A simulated population of V1: simple and complex cells of which everything is known.

Every cell is a sum of rectified and squared Gabor filters of one grating at several phases, raised to a power (Hubel &
Wiesel 1962): a simple cell has one of them; the energy model (Adelson & Bergen 1985) four, a quarter of a turn apart;
a Hubel & Wiesel cell eight, of irregular phases and weights, as in the zoo's `hubel_wiesel_cell`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import gabor, hubel_wiesel_parameters

SIZE = 40  # pixels
KINDS = ("simple", "energy", "hubel_wiesel")
PLACES, PERIODS, WIDTHS, EXPONENTS = (-6.0, 6.0), (5.0, 10.0), (0.4, 0.6), (1.0, 1.5)


@dataclass(frozen=True)
class Cell:
    """``(sum_i weights_i relu(gabor_i · x)²) ** (exponent / 2)``.

    Attributes:
        kind: one of `KINDS`.
        x, y: the Gabors' middle, pixels to the right of and below the image's.
        sigma, period: pixels.
        orientation: degrees [0, 180); 0 varies along the width.
        phases: degrees, of each subunit, at (x, y).
        weights: of each subunit.
        exponent: of the response to contrast.
    """

    kind: str
    x: float
    y: float
    sigma: float
    period: float
    orientation: float
    phases: tuple[float, ...]
    weights: tuple[float, ...]
    exponent: float

    @property
    def is_complex(self) -> bool:
        """Whether it answers to a Gabor of whichever phase: what an experiment has to find out."""
        return self.kind != "simple"

    def filters(self) -> Tensor:
        """The subunits' Gabors (k, 40, 40), float64, of unit norm and blind to uniform light."""
        place, angle = (self.y, self.x), math.radians(self.orientation)
        patches = gabor(SIZE, torch.tensor(self.phases).deg2rad(), self.sigma, self.period, angle, place)
        window = gabor(SIZE, 0.0, self.sigma, math.inf, 0.0, place)
        # Photographs differ in brightness more than in anything else: what a Gabor of even phase takes up of it
        # would drown its answer to the grating.
        patches = patches - window * (patches.sum((-2, -1), keepdim=True) / window.sum())
        return patches / patches.flatten(1).norm(dim=1)[:, None, None]


def draw_population(seed: int, simple: int = 24, energy: int = 12, hubel_wiesel: int = 12) -> list[Cell]:
    """So many cells of each kind, in this order, drawn with a seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    cells = []
    for kind in ["simple"] * simple + ["energy"] * energy + ["hubel_wiesel"] * hubel_wiesel:
        x, y, period = uniform(*PLACES), uniform(*PLACES), uniform(*PERIODS)
        sigma, orientation, phase = period * uniform(*WIDTHS), uniform(0, 180), uniform(0, 360)
        exponent = uniform(*EXPONENTS)
        offsets, weights = torch.zeros(1), torch.ones(1)
        if kind == "energy":  # relu(r)² + relu(-r)² is r²
            offsets, weights = torch.arange(4) * 90.0, torch.ones(4)
        elif kind == "hubel_wiesel":
            drawn = int(torch.randint(2**31, (), generator=generator))
            offsets, weights = hubel_wiesel_parameters(drawn, 8, 0.1, 0.1, SIZE, sigma, period)
            offsets = offsets.rad2deg()
        phases = tuple(float(value) for value in (phase + offsets) % 360)
        cells.append(Cell(kind, x, y, sigma, period, orientation, phases, tuple(weights.tolist()), exponent))
    return cells


def responses(cells: list[Cell], images: Tensor) -> Tensor:
    """What the cells answer to images (N, 1, 40, 40): (N, cells), not negative, in arbitrary units."""
    counts = torch.tensor([len(cell.phases) for cell in cells])
    filters = torch.cat([cell.filters() for cell in cells]).flatten(1).to(images)
    weights = torch.tensor([weight for cell in cells for weight in cell.weights]).to(images)
    subunits = (images.flatten(1) @ filters.T).relu().square() * weights
    owner = torch.arange(len(cells)).repeat_interleave(counts).to(images.device)
    energy = subunits.new_zeros(len(images), len(cells)).index_add_(1, owner, subunits)
    return energy ** (subunits.new_tensor([cell.exponent for cell in cells]) / 2)
