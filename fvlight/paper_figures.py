"""The figures of Cadena et al. 2018 that a run's own report does not have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fvlight.analysis.cadena2018 import cell_phases, pair_average_activation
from fvlight.analysis.combinations import subset_averages
from fvlight.analysis.diverse import DiverseResult
from fvlight.network import Network
from fvlight.report import CellSweep, add_figure, averages_sheet, phase_figure
from fvlight.report.averages import CAPTION as AVERAGES_CAPTION
from fvlight.report.mosaic import figure_png
from fvlight.report.phases import CAPTION as PHASES_CAPTION

Results = Mapping[str, DiverseResult]
Networks = Mapping[str, Network]


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
