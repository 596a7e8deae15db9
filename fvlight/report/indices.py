"""Shift-invariance against linear-combination index of the units of several layers [Figs. 8, 10]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats

from .figures import UNIT_COLOURS
from .mosaic import ACCENT, DPI, plain

WIDTH = 0.05  # of the histograms' bins
NAMES = ("linear-combination index", "shift-invariance index")
CAPTION = (
    "Linear-combination index: mean activation of a unit for the averages of all pairs of its images at the chosen λ, "
    "brought to the images' norm, divided by its mean activation for the images. Shift-invariance index: its mean "
    "activation for all windowed crops of its texture, divided by the same. Left: histograms, a row per layer, with "
    "their medians (red). Right: a dot per unit; rho is Spearman's rank correlation of the two indices over a layer's "
    "units. Values beyond the axes stand at their ends; units without a finite value of both are left out."
)


@dataclass(frozen=True)
class LayerPoints:
    """A layer's units: the two indices, (U,) each; numbers that are not finite are left out."""

    name: str
    combination: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def both(self) -> NDArray[np.float64]:
        """(2, units with both)."""
        values = np.stack([self.combination, self.shift])
        return values[:, np.isfinite(values).all(0)]

    @property
    def rho(self) -> float:
        """Spearman's; NaN where fewer than three units, or ones all alike, leave it undefined."""
        if self.both.shape[1] < 3 or (np.ptp(self.both, axis=1) == 0).any():
            return float("nan")
        return float(stats.spearmanr(*self.both).statistic)


def index_figure(layers: Sequence[LayerPoints]) -> Figure:
    """Histograms of both indices, a row per layer, beside the scatter of one against the other."""
    height = max(4.2, 1.15 * len(layers) + 0.5)
    figure = Figure(figsize=(11.5, height), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
    pooled = np.concatenate([layer.both for layer in layers], axis=1)
    edges = [bin_edges(values) for values in pooled]
    panels = left.subplots(len(layers), 2, squeeze=False, sharex="col", sharey=True)
    for row, layer in enumerate(layers):
        for column in (0, 1):
            _histogram(panels[row, column], layer.both[column], edges[column], UNIT_COLOURS[row % len(UNIT_COLOURS)])
        panels[row, 0].set_ylabel(f"{plain(layer.name)}\nunits", fontsize=9)
        panels[row, 0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0, 0].set_ylim(0, max(1.0, panels[0, 0].get_ylim()[1]))  # of all, also where nothing was counted
    for column, name in enumerate(NAMES):
        panels[-1, column].set_xlabel(name, fontsize=9)
    _scatter(right.subplots(), layers, edges)
    return figure


def bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of shared bins, from 0 to 1 at least and wide enough for all but a fiftieth of the values at each end."""
    if not len(values):
        values = np.array([0.0, 1.0])
    low, high = np.quantile(values, 0.02, method="higher"), np.quantile(values, 0.98, method="lower")
    return np.arange(np.floor(min(0.0, low) / WIDTH), np.ceil(max(1.0, high) / WIDTH) + 1) * WIDTH


def _histogram(axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], color: str) -> None:
    axes.hist(values.clip(edges[0], edges[-1]), bins=edges.tolist(), color=color, alpha=0.75)
    if len(values):
        median = float(np.median(values))
        axes.axvline(median, color=ACCENT, linewidth=1.2)
        axes.set_title(f"median {median:.2f}", fontsize=8, color=ACCENT, loc="right", pad=1)
    axes.set_xlim(edges[0], edges[-1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _scatter(axes: Axes, layers: Sequence[LayerPoints], edges: Sequence[NDArray[np.float64]]) -> None:
    for index, layer in enumerate(layers):
        (x, y), units = layer.both, len(layer.shift)
        count = f"{len(x)} units" if len(x) == units else f"{len(x)} of {units} units"
        rho = "rho undefined" if np.isnan(layer.rho) else f"rho {layer.rho:.2f}".replace("-", "\u2212")
        axes.plot(
            x.clip(edges[0][0], edges[0][-1]), y.clip(edges[1][0], edges[1][-1]), "o",
            color=UNIT_COLOURS[index % len(UNIT_COLOURS)], markersize=4, alpha=0.75,
            label=f"{plain(layer.name)}: {rho} ({count})",
        )  # fmt: skip
    (left, *_, right), (bottom, *_, top) = edges
    axes.set(xlim=(left - 0.02, right + 0.02), ylim=(bottom - 0.02, top + 0.02))  # room for half a dot
    axes.set_xlabel(NAMES[0], fontsize=9)
    axes.set_ylabel(NAMES[1], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
