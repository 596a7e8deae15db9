"""The phases of complex cells' images over lambda: Fig. 2 of Cadena et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .mosaic import DPI, INK, MUTED

CAPTION = (
    "Top: the phase of each image in the plane of the cell's Gabor filters (0 is the first simple cell's), for every "
    "λ; open circles are images of which less than 90 % of the norm lies in that plane. Bottom: mean activation "
    "relative to λ = 0 (line) and the smallest distance relative to the sweep's largest (dashed). The vertical line "
    "marks the chosen λ."
)


@dataclass(frozen=True)
class CellSweep:
    """One cell: lambdas (L,), phases in degrees (L, n), shares of norm in the plane (L, n), two curves (L,)."""

    title: str
    lambdas: Sequence[float]
    phases: NDArray[np.float64]
    in_plane: NDArray[np.float64]
    relative_activation: NDArray[np.float64]
    min_distance: NDArray[np.float64]
    chosen: int | None


def phase_figure(cells: Sequence[CellSweep]) -> Figure:
    """A column per cell: phases above, the trade-off below, over the grid of lambdas at even spacing."""
    figure = Figure(figsize=(3.6 * len(cells), 5.4), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(2, len(cells), squeeze=False, sharex="col", height_ratios=(1.4, 1))
    for column, cell in enumerate(cells):
        above, below = panels[:, column]
        position = np.arange(len(cell.lambdas))
        where = np.broadcast_to(position[:, None], cell.phases.shape)
        inside = cell.in_plane >= 0.9
        above.plot(where[inside], cell.phases[inside], "o", color=INK, markersize=4)
        above.plot(where[~inside], cell.phases[~inside], "o", color=MUTED, markersize=4, fillstyle="none")
        above.set(ylim=(0, 360), yticks=range(0, 361, 60), title=cell.title)
        below.plot(position, cell.relative_activation, color=INK, label="activation")
        below.plot(position, cell.min_distance / np.nanmax(cell.min_distance), "--", color=MUTED, label="distance")
        below.set(ylim=(0, 1.1), xlabel="λ")
        below.set_xticks(position, [f"{value:g}" for value in cell.lambdas], rotation=60, fontsize=7)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            if cell.chosen is not None:
                axes.axvline(cell.chosen, color="#b3401f", linewidth=0.8, zorder=0)
    panels[0, 0].set_ylabel("phase of the images (degrees)")
    panels[1, 0].set_ylabel("relative value")
    panels[1, 0].legend(frameon=False, fontsize=8, loc="center left")
    return figure
