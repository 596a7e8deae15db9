"""The figures of the papers that a run's own report does not have: results to arrays, drawn by `report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fvlight.network import Network

from .attribution import draw_comparison
from .cells import draw_averages, draw_phase_curves, draw_phases
from .galleries import draw_layers, draw_units
from .inversion import draw_dead_directions, draw_inverted_layer, draw_robustness
from .natural_prior import draw_natural_prior
from .populations import draw_against_random, draw_indices, draw_residual, draw_trade_off
from .reconstruction import draw_reconstruction_depth
from .v1 import draw_v1_cells

# The figures that belong to a set of claims: of its results and networks, into the folder of a run.
FIGURES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Network], Path], object]] = {
    "phase_curves": draw_phase_curves,  # fig. 1
    "complex_cells": draw_phases,  # fig. 2
    "trade_off": draw_trade_off,  # fig. 4
    "invariance_of_units": draw_against_random,  # fig. 5
    "two_units": draw_units,  # fig. 6
    "layers_gallery": draw_layers,  # fig. 7
    "shifts_and_averages": draw_indices,  # fig. 8
    "corner": draw_averages,  # fig. 9
    "residual_network": draw_residual,  # fig. 10
    "v1_cells": draw_v1_cells,  # fig. 11
    "inverted_layer": draw_inverted_layer,
    "dead_directions": draw_dead_directions,
    "robustness": draw_robustness,
    "always_accurate": draw_robustness,
    "attribution_comparison": draw_comparison,
    "natural_prior": draw_natural_prior,
    "reconstruction_depth": draw_reconstruction_depth,
}

__all__ = ["FIGURES"]
