"""Figures of the analytic cells: Figs. 1, 2 and 9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.cadena2018 import cell_phases, pair_average_activation, phase_response
from fvlight.analysis.combinations import subset_averages
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.phases import in_plane_images, phase_plane
from fvlight.network import Network
from fvlight.readout import Readout
from fvlight.report import CellCurve, CellSweep, add_figure, averages_sheet, curve_figure, phase_figure
from fvlight.report.averages import CAPTION as AVERAGES_CAPTION
from fvlight.report.mosaic import figure_png
from fvlight.report.phase_curves import CAPTION as CURVES_CAPTION
from fvlight.report.phases import CAPTION as PHASES_CAPTION

Results = Mapping[str, DiverseResult]
Networks = Mapping[str, Network]


def draw_phase_curves(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 1: what cells respond to each phase, and where the images found without diversity lie."""
    curves = []
    for name, result in results.items():
        network = networks[name]
        response = phase_response(network, result.layer)
        angles, _ = cell_phases(result, network)
        maximum = response.max()
        curves.append(
            CellCurve(
                name.replace("_", " "), (response / maximum).numpy(),
                (_subunit_responses(network, len(response)) / maximum).numpy(),
                angles[0].numpy(), (result.activations[0, 0] / maximum).numpy(),
            )
        )  # fmt: skip
    return add_figure(run_dir, "phase_curves.png", figure_png(curve_figure(curves)), CURVES_CAPTION)


@torch.no_grad()
def _subunit_responses(network: Network, count: int) -> Tensor:
    """What each squared simple cell adds to a complex cell's response to ``count`` phases: (k, count); else k = 0."""
    parts: dict[str, Any] = dict(network.module.named_modules())
    if "complex" not in parts:
        return torch.zeros(0, count)
    filters = parts["simple"].weight
    images = in_plane_images(phase_plane(filters), tuple(filters.shape[1:]), count)
    squared: Tensor = Readout(network, "squared")(images)  # type: ignore[assignment]
    return (squared * parts["complex"].weight[0, :, 0, 0]).T


def draw_phases(results: Results, networks: Networks, run_dir: Path) -> Path:
    """Fig. 2: phases over lambda, a column per cell."""
    sweeps = []
    for name, result in results.items():
        angles, in_plane = cell_phases(result, networks[name])
        sweeps.append(
            CellSweep(
                name.replace("_", " "), result.lambdas, angles.numpy(), in_plane.numpy(),
                result.relative_activation[0].numpy(), result.min_distance[0].numpy(), result.selected[0],
            )
        )  # fmt: skip
    return add_figure(run_dir, "phases.png", figure_png(phase_figure(sweeps)), PHASES_CAPTION)


def draw_averages(results: Results, networks: Networks, run_dir: Path) -> Path | None:
    """Fig. 9: the pair averages of the images at the chosen lambda."""
    ((name, result),) = results.items()
    network, k = networks[name], result.selected[0]
    if k is None:
        return None
    averages = subset_averages(result.images[0, k])
    relative = pair_average_activation(result, network, network.layers[-1], 0, k) / result.mean_activation[0, k]
    sheet = averages_sheet(
        network.input_space.to_display(averages).numpy(),
        relative.tolist(),
        f"pair averages at λ = {result.lambdas[k]:g}",
    )
    return add_figure(run_dir, "pair_averages.png", sheet.png(), AVERAGES_CAPTION)
