"""How invariant many units are: chosen lambdas, diversity gains, and the trade-off with activation [Figs. 4, 5, 10]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from .mosaic import DPI, INK, plain
from .run_data import format_lambda

TWICE = 2.0  # the gain that even the least invariant units of conv3_1 reach [Cadena et al. 2018, Fig. 5B]
CHOICES_CAPTION = (
    "How many units chose each λ of the grid: the largest that keeps their activation (see the threshold)."
)
GAINS_CAPTION = (
    "Diversity gain: the smallest distance between two of a unit's images at its chosen λ, divided by that at λ = 0; "
    f"units in order of their gain; the dashed line marks a gain of {TWICE:g}."
)
TRADE_OFF_CAPTION = (
    "Lines: the median over units of relative activation (mean activation divided by that at λ = 0) against the median "
    "diversity gain, a dot per λ of the grid from λ = 0 at a gain of 1; bands: from the first to the third quartile "
    "of the activation, thin horizontal lines: those of the gain. Dashed: the relative activation that a chosen λ must "
    "keep."
)


@dataclass(frozen=True)
class Population:
    """The units of one run. Those of one name share a colour and count as one in the trade-off: several seeds.

    Attributes:
        lambdas: (L,) the grid.
        gains, relative: (U, L) diversity gains and relative activations; what is not finite is left out.
        chosen: (U,) index of each unit's chosen lambda, or None.
    """

    name: str
    color: str
    lambdas: Sequence[float]
    gains: NDArray[np.float64]
    relative: NDArray[np.float64]
    chosen: Sequence[int | None]

    @property
    def sorted_gains(self) -> NDArray[np.float64]:
        """Gains at the chosen lambda, ascending; only of units that have one that is finite and above 0."""
        gains = np.array([self.gains[u, k] for u, k in enumerate(self.chosen) if k is not None])
        return np.sort(gains[np.isfinite(gains) & (gains > 0)])


def population_figure(populations: Sequence[Population], threshold: float, choices: bool = False) -> Figure:
    """Sorted gains and the trade-off of all; before them, if wanted, the chosen lambdas of the first."""
    panels = 3 if choices else 2
    figure = Figure(figsize=(4.4 * panels, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    axes = list(figure.subplots(1, panels))
    if choices:
        choices_panel(axes[0], populations[0])
    gains_panel(axes[-2], populations)
    trade_off_panel(axes[-1], populations, threshold)
    for letter, one in zip("abc", axes, strict=False):
        finish_axes(one, letter)
    return figure


def gains_figure(populations: Sequence[Population]) -> Figure:
    """The sorted gains alone."""
    figure = Figure(figsize=(5.6, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    gains_panel(axes, populations)
    finish_axes(axes)
    return figure


def choices_panel(axes: Axes, population: Population) -> None:
    """How many units chose each lambda, and, where there are such, how many none."""
    grid = range(len(population.lambdas))
    counts = [sum(k == index for k in population.chosen) for index in grid]
    labels = [format_lambda(value) for value in population.lambdas]
    if missing := sum(k is None for k in population.chosen):
        counts, labels = [*counts, missing], [*labels, "none"]
    bars = axes.bar(range(len(counts)), counts, color=population.color, width=0.8)
    axes.bar_label(bars, [str(count or "") for count in counts], fontsize=8)
    axes.set_xticks(range(len(counts)), labels, rotation=60)
    axes.set(xlabel="chosen λ", ylabel="units")


def gains_panel(axes: Axes, populations: Sequence[Population]) -> None:
    """A curve per population over the share of its units, on a logarithmic ordinate."""
    names = [population.name for population in populations]
    for index, population in enumerate(populations):
        gains = population.sorted_gains
        share = (np.arange(len(gains)) + 0.5) / max(1, len(gains)) * 100
        label = _label(populations, population.name) if population.name not in names[:index] else "_"
        marker = "o" if len(gains) <= 64 else ""
        axes.plot(share, gains, color=population.color, marker=marker, markersize=2.5, linewidth=1.3, label=label)
    axes.axhline(TWICE, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axes.set(xlim=(0, 100), xlabel="units in order of gain (%)", ylabel="diversity gain at the chosen λ", yscale="log")
    _plain_decades(axes, "y", np.concatenate([[1.0, TWICE], *(one.sorted_gains for one in populations)]))
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _label(populations: Sequence[Population], name: str) -> str:
    """The name, the units that are drawn, and their median gain."""
    own = [one for one in populations if one.name == name]
    gains, units = np.concatenate([one.sorted_gains for one in own]), sum(len(one.chosen) for one in own)
    count = f"{len(gains)} of {units} units" if len(gains) < units else f"{units} units"
    seeds = f", {len(own)} seeds" if len(own) > 1 else ""
    median = f", median {np.median(gains):.3g}" if len(gains) else ""
    return f"{plain(name)} ({count}{seeds}{median})"


def trade_off_panel(axes: Axes, populations: Sequence[Population], threshold: float) -> None:
    """Medians over the units of each name, with quartiles."""
    reached = [1.0]
    for name in dict.fromkeys(population.name for population in populations):
        own = [population for population in populations if population.name == name]
        gain = quartiles(np.concatenate([one.gains for one in own]))
        relative = quartiles(np.concatenate([one.relative for one in own]))
        order = np.argsort(gain[1])  # NaN last; a band needs its abscissa in order
        color = own[0].color
        axes.fill_between(gain[1][order], relative[0][order], relative[2][order], color=color, alpha=0.2, linewidth=0)
        axes.hlines(relative[1], gain[0], gain[2], color=color, linewidth=0.7, alpha=0.6)
        axes.plot(gain[1], relative[1], color=color, marker="o", markersize=3.5, linewidth=1.5, label=plain(name))
        reached += gain[np.isfinite(gain) & (gain > 0)].tolist()
    axes.axhline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axes.set(xlabel="diversity gain", ylabel="mean activation relative to λ = 0", xscale="log")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.1, min(axes.get_ylim()[1], 1.5)))
    _plain_decades(axes, "x", np.array(reached))
    if len(populations) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower left")


def quartiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(U, L) to (3, L): the quartiles over units of the finite values; NaN where there is none."""
    found = np.full((3, values.shape[1]), np.nan)
    for k, column in enumerate(values.T):
        if np.isfinite(column).any():
            found[:, k] = np.quantile(column[np.isfinite(column)], (0.25, 0.5, 0.75))
    return found


def _plain_decades(axes: Axes, which: str, values: NDArray[np.float64]) -> None:
    """Labels 1, 2, 5, 10, ..., or closer ones, instead of powers of ten; limits that leave the values some room."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    limits = float(values.min()) / 1.2, float(values.max()) * 1.2
    (axes.set_ylim if which == "y" else axes.set_xlim)(*limits)
    span = limits[1] / limits[0]
    steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if span < 8 else (1.0, 2.0, 5.0) if span < 300 else (1.0,)
    axis.set_major_locator(LogLocator(10, steps, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish_axes(axes: Axes, letter: str = "") -> None:
    """A letter above the panel, no frame above and right of it, a light grid."""
    axes.set_title(letter, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
