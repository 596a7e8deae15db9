"""What cells respond to Gabors of each phase, and the phases of the images found: Fig. 1 of Cadena et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .mosaic import ACCENT, DPI, INK

NEAR = 10.0  # degrees: the dots of images that lie nearer than that stand above one another
CAPTION = (
    "Black: the response of each cell to a Gabor of unit norm, over its phase (0 is that of the first simple cell), "
    "relative to its maximum; a simple cell is read before its threshold. Grey: what each squared simple cell adds to "
    "a complex cell's response. Red dots on or below a curve: the images found without diversity, at their phase and "
    "their activation; a dot below the curve is an image that is not wholly one of these Gabors. Bottom: "
    f"the same images counted, those within {NEAR:g} degrees of one another stacked. One unit per cell."
)


@dataclass(frozen=True)
class CellCurve:
    """One cell; all responses relative to the curve's maximum.

    Attributes:
        response: (phases,) evenly spread over the circle from 0.
        subunits: (k, phases) what they add to it; k may be 0.
        phases: (n,) of the images found, in degrees.
        activations: (n,) theirs.
    """

    title: str
    response: NDArray[np.float64]
    subunits: NDArray[np.float64]
    phases: NDArray[np.float64]
    activations: NDArray[np.float64]


def curve_figure(cells: Sequence[CellCurve]) -> Figure:
    """A column per cell: curves and dots above, the count of dots below."""
    figure = Figure(figsize=(3.6 * len(cells), 4.2), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(2, len(cells), squeeze=False, sharex="col", height_ratios=(4, 1))
    for (above, below), cell in zip(panels.T, cells, strict=True):
        _curves(above, cell)
        heights = stacked(centred(cell.phases))
        below.plot(centred(cell.phases), heights, "o", color=ACCENT, markersize=4)
        below.set(xlim=(-180, 180), xticks=range(-180, 181, 60), ylim=(0, len(heights) + 1), yticks=(1, len(heights)))
        below.set_xlabel("phase (degrees)")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    panels[0, 0].set_ylabel("response relative to the maximum")
    panels[1, 0].set_ylabel("images")
    return figure


def _curves(axes: Axes, cell: CellCurve) -> None:
    degrees = centred(np.linspace(0, 360, len(cell.response), endpoint=False))
    order = np.argsort(degrees)
    for curve in cell.subunits:
        axes.plot(degrees[order], curve[order], color="#b8b8b8", linewidth=0.8)
    axes.plot(degrees[order], cell.response[order], color=INK, linewidth=1.6)
    axes.plot(centred(cell.phases), cell.activations, "o", color=ACCENT, markersize=5, alpha=0.7, zorder=3)
    lowest = min(0.0, float(cell.response.min()))
    axes.set(ylim=(1.1 * lowest, 1.1), title=cell.title)
    if lowest:
        axes.axhline(0, color="#b8b8b8", linewidth=0.6, zorder=0)


def centred(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in [-180, 180)."""
    return (degrees + 180) % 360 - 180


def stacked(phases: NDArray[np.float64]) -> NDArray[np.int64]:
    """The heights (n,), from 1, of dots that stand on those before them, in order of phase, that are near."""
    heights = np.ones(len(phases), dtype=np.int64)
    order = np.argsort(phases)
    for before, after in pairwise(order):
        if phases[after] - phases[before] < NEAR:
            heights[after] = heights[before] + 1
    return heights
