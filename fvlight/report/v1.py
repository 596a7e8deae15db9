"""How far the phases of simulated cells' images are spread, by what the cells are [Fig. 11]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from .mosaic import ACCENT, DPI, INK, MUTED, plain

SPREAD = 0.28  # of a kind's width, over which its cells stand beside each other
CAPTION = (
    "A dot per cell: the largest gap that the phases of its images at the chosen λ leave on the circle, by what the "
    "simulated cell is. Images at one phase leave 360 degrees, two opposite phases 180, six evenly spread ones 60 "
    "(dotted). Below the dashed line a cell is taken for complex. Rings: wrong verdicts; crosses: cells whose images "
    "are not enough like one Gabor to tell (those without any stand at 360)."
)


@dataclass(frozen=True)
class CellGaps:
    """Cells of one kind in one run.

    Attributes:
        gaps: (k,) degrees.
        right: (k,) whether each was told rightly.
        decided: (k,) whether it was told at all.
    """

    kind: str
    color: str
    gaps: NDArray[np.float64]
    right: NDArray[np.bool_]
    decided: NDArray[np.bool_]


def gap_figure(runs: Sequence[tuple[str, Sequence[CellGaps]]], criterion: float) -> Figure:
    """A panel per run, named; a column per kind of cell."""
    figure = Figure(figsize=(1.2 + 3.6 * len(runs), 4.4), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (name, kinds) in zip(panels, runs, strict=True):
        for column, cells in enumerate(kinds):
            _draw(axes, column, cells)
        right, count = sum(int(cells.right.sum()) for cells in kinds), sum(len(cells.right) for cells in kinds)
        axes.set_title(f"{plain(name)}: {right} of {count} right", fontsize=10)
        axes.set_xticks(range(len(kinds)), [f"{plain(cells.kind)}\n({len(cells.gaps)})" for cells in kinds], fontsize=9)
        axes.axhline(criterion, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        axes.axhline(60, color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
        axes.set(xlim=(-0.6, len(kinds) - 0.4), ylim=(0, 372), yticks=range(0, 361, 60))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    panels[0].set_ylabel("largest gap between phases (degrees)", fontsize=9)
    ring = Line2D([], [], marker="o", color=ACCENT, fillstyle="none", linestyle="", markersize=9, label="wrong")
    cross = Line2D([], [], marker="x", color=INK, linestyle="", markersize=6, label="undecided")
    if not all(cells.right.all() for _, kinds in runs for cells in kinds):
        panels[-1].legend(handles=[ring, cross], fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure


def _draw(axes: Axes, column: int, cells: CellGaps) -> None:
    gaps = np.nan_to_num(cells.gaps, nan=360.0)
    place = column + np.linspace(-SPREAD, SPREAD, len(gaps))[_shuffled(len(gaps))]
    for chosen, marker in ((cells.decided, "o"), (~cells.decided, "x")):
        axes.plot(place[chosen], gaps[chosen], marker, color=cells.color, markersize=5, alpha=0.8)
    wrong = ~cells.right
    axes.plot(place[wrong], gaps[wrong], "o", color=ACCENT, fillstyle="none", markersize=11)


def _shuffled(count: int) -> NDArray[np.intp]:
    return np.random.default_rng(0).permutation(count)
