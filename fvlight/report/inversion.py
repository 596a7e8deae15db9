"""Figures of inverse feature visualization [Reinbold & Westermann 2020]: angles, contributions, re-optimisation.

Each function takes arrays, over targets (t,), and returns a figure; numbers that are not finite are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from .figures import UNIT_COLOURS
from .mosaic import ACCENT, DPI, INK, MUTED, plain
from .populations import finish_axes, quartiles

BINS = 30
SHOWN = 10  # singular vectors that have a colour of their own
RANDOM = "#9a9a9a"
# Lines of one aggregation share a colour, those of one power a pattern.
DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osv^"
ANGLES_CAPTION = (
    "A dot per target: the angle between the feature response of its image and the target (abscissa), and that between "
    "the prediction and the target (ordinate), over all features. Below the dashed diagonal the prediction is nearer "
    "to the target than the response is. Along the sides: histograms, with a line at the median."
)
RANDOM_CAPTION = " Grey outlines: the angles of random vectors to the target."
CONTRIBUTIONS_CAPTION = (
    "How much of a target the left singular vectors of the gradient's matrix M J hold: squared coefficients, the mean "
    "over targets, in order of the singular values from the smallest, whose vector is the prediction. The first "
    f"{SHOWN} have a colour of their own. Hatched: the part of the targets that was not searched, in dead features or "
    "outside the critical space."
)
SSIM_CAPTION = (
    "Structural similarity of each image to itself after it was optimised further, toward the direction named below: 1 "
    "means that it stayed the same. A dot per target; lines: medians, boxes: from the first to the third quartile."
)
SWEEP_CAPTION = (
    "Median over targets of the angle between prediction and target, over the number of features that a target is made "
    "of; bars: from the first to the third quartile, moved apart a little where they would coincide. The abscissa is "
    "logarithmic; the dashed line marks 90 degrees."
)
Numbers = NDArray[np.float64]


def angles_figure(
    predicted: ArrayLike, response: ArrayLike, random: ArrayLike | None = None, names: Sequence[str] | None = None
) -> Figure:
    """The prediction's angles to the targets against the response's [Fig. 2], with marginal histograms.

    Args:
        predicted, response: (t,) degrees.
        random: (r,) degrees, those of random vectors.
        names: (t,) the group of each target, which has a colour; None: there is one group.
    """
    x, y = np.asarray(response, float), np.asarray(predicted, float)
    chance = np.asarray([] if random is None else random, float)
    chance = chance[np.isfinite(chance)]
    groups = np.asarray(["targets"] * len(x) if names is None else list(names))
    known = np.isfinite(x) & np.isfinite(y)
    top = 10 * max(1.0, np.ceil(np.concatenate([x[known], y[known], chance, [0]]).max() / 10))
    figure = Figure(figsize=(6.0, 6.6), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    axes = figure.add_subplot(grid[1, 0], box_aspect=1)
    above = figure.add_subplot(grid[0, 0], sharex=axes, box_aspect=0.25)
    right = figure.add_subplot(grid[1, 1], sharey=axes, box_aspect=4)
    axes.plot((0, top), (0, top), color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    edges = np.linspace(0, top, BINS + 1).tolist()
    order = [str(name) for name in dict.fromkeys(groups.tolist())]
    for name, color in zip(order, _colours(len(order)), strict=True):
        of_all = groups == name
        one = of_all & known
        axes.plot(
            x[one], y[one], "o", color=color, markersize=4, alpha=0.7, markeredgewidth=0, clip_on=False,
            label=_group_label(name, y[one], x[one], int(of_all.sum())),
        )  # fmt: skip
        _marginals(above, right, (x[one], y[one]), edges, color)
    if len(chance):
        for side, direction in ((above, "vertical"), (right, "horizontal")):
            side.hist(chance, edges, histtype="step", color=RANDOM, orientation=direction)  # type: ignore[arg-type]
        axes.plot([], [], color=RANDOM, label=f"random vectors ({len(chance)}): median {_degrees(chance)}")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="angle of the feature response to the target (degrees)")
    axes.set_ylabel("angle of the prediction to the target (degrees)")
    for panel in (axes, above, right):
        finish_axes(panel)
    above.tick_params(labelbottom=False)
    right.tick_params(labelleft=False)
    above.set_ylabel("targets")
    right.set_xlabel("targets")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    right.grid(visible=False)
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    right.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower center", fontsize=8, frameon=False)
    return figure


def _marginals(above: Axes, right: Axes, values: tuple[Numbers, Numbers], edges: Sequence[float], color: str) -> None:
    """Histograms of the abscissae above and of the ordinates at the right, with their medians."""
    above.hist(values[0], edges, color=color, alpha=0.55)
    right.hist(values[1], edges, color=color, alpha=0.55, orientation="horizontal")
    if len(values[0]):
        above.axvline(float(np.median(values[0])), color=color, linewidth=1.4)
        right.axhline(float(np.median(values[1])), color=color, linewidth=1.4)


def _group_label(name: str, predicted: Numbers, response: Numbers, targets: int) -> str:
    count = f"{len(predicted)}" if len(predicted) == targets else f"{len(predicted)} of {targets}"
    medians = f": median prediction {_degrees(predicted)}, response {_degrees(response)}" if len(predicted) else ""
    return f"{plain(name)} ({count}){medians}"


def _degrees(values: Numbers) -> str:
    return f"{np.median(values):.3g}\u00b0"


def _colours(count: int) -> list[str]:
    return [UNIT_COLOURS[i % len(UNIT_COLOURS)] for i in range(count)]


def contribution_shares(contributions: ArrayLike) -> Numbers:
    """From squared coefficients (t, n), ascending in the singular values and NaN behind the last, to (SHOWN + 2,).

    The means over targets at the first `SHOWN` places, of the rest, and of what no place holds: the targets' parts that
    were not searched. All NaN where no target has coefficients.
    """
    values = np.asarray(contributions, float)
    values = values[np.isfinite(values).any(1)]
    if not len(values):
        return np.full(SHOWN + 2, np.nan)
    means = np.nan_to_num(values).mean(0)
    first = np.zeros(SHOWN)
    first[: len(means)] = means[:SHOWN]
    return np.array([*first, means[SHOWN:].sum(), max(0.0, 1 - means.sum())])


def contributions_figure(contributions: Mapping[str, ArrayLike]) -> Figure:
    """A stacked bar per name (layers, settings) of mean contributions (t, n) to the targets [Fig. 3]."""
    shares = {plain(name, 40): contribution_shares(values) for name, values in contributions.items()}
    table = np.nan_to_num(np.array(list(shares.values())))
    figure = Figure(figsize=(8.4, 1.7 + 0.55 * len(shares)), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    ramp = colormaps["YlOrBr"](np.linspace(0.75, 0.15, SHOWN - 1))
    colours = [UNIT_COLOURS[0], *ramp.tolist(), "#d9d9d9", "white"]
    labels = ["smallest", *map(str, range(2, SHOWN + 1)), "rest", "not searched"]
    left, used = np.zeros(len(table)), [*range(SHOWN + 1)]
    if table[:, -1].max() > 0.001:
        used.append(SHOWN + 1)
    for k in used:
        hatch = "////" if k > SHOWN else None
        axes.barh(
            range(len(table)), table[:, k], left=left, height=0.62, color=colours[k], label=labels[k], hatch=hatch,
            edgecolor=MUTED if hatch else "none", linewidth=0.5,
        )  # fmt: skip
        left += table[:, k]
    names = [f"{name}: {row[0]:.1%}" if np.isfinite(row[0]) else f"{name}: none" for name, row in shares.items()]
    axes.set_yticks(range(len(table)), names)
    axes.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5), xlabel="share of the target, mean over targets")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    finish_axes(axes)
    axes.grid(visible=False)
    axes.set_title("percentages: share of the smallest singular value's vector", fontsize=8, loc="left", color=MUTED)
    figure.legend(
        loc="outside lower center", ncols=len(used), fontsize=7.5, frameon=False, handlelength=1.0, columnspacing=0.9,
        title="singular values in ascending order", title_fontsize=8,
    )  # fmt: skip
    return figure


def ssim_figure(similarities: Mapping[str, ArrayLike]) -> Figure:
    """SSIM (t,) of images before and after re-optimisation, a strip per direction that it went toward."""
    figure = Figure(figsize=(1.6 + 1.3 * len(similarities), 4.2), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    ticks, lowest, generator = [], 0.0, np.random.default_rng(0)
    for index, (name, given) in enumerate(similarities.items()):
        values = np.asarray(given, float)
        found = values[np.isfinite(values)]
        count = f"{len(found)}" if len(found) == len(values) else f"{len(found)} of {len(values)}"
        ticks.append(f"{plain(name, 24)}\n({count})")
        if not len(found):
            continue
        lowest = min(lowest, float(found.min()))
        first, median, third = quartiles(found[:, None])[:, 0]
        axes.bar(index, third - first, bottom=first, width=0.62, color="#ebebeb", zorder=1)
        at = index + generator.uniform(-0.2, 0.2, len(found))
        axes.plot(at, found, "o", color=UNIT_COLOURS[0], markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.hlines(median, index - 0.31, index + 0.31, color=ACCENT, linewidth=1.8, zorder=4)
        axes.text(index + 0.34, median, f"{median:.2f}", color=ACCENT, fontsize=8, va="center")
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlim=(-0.5, len(ticks) - 0.4), ylim=(lowest - 0.04, 1.04))
    axes.set(xlabel="optimised further toward", ylabel="SSIM before and after")
    finish_axes(axes)
    return figure


def sweep_figure(angles: Mapping[tuple[float, str], Mapping[int, ArrayLike]]) -> Figure:
    """Angles of the prediction against the number of features, a line per power k and aggregation.

    Args:
        angles: by (k, name of the aggregation): by the number of features degrees (t,).
    """
    figure = Figure(figsize=(7.2, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    powers, aggregations = (list(dict.fromkeys(key[i] for key in angles)) for i in (0, 1))
    counts = sorted({count for line in angles.values() for count in line})
    for index, ((power, aggregation), line) in enumerate(angles.items()):
        place, pattern = sorted(line), powers.index(power)
        columns = [np.asarray(line[count], float)[:, None] for count in place]
        first, median, third = np.concatenate([quartiles(column) for column in columns], axis=1)
        apart = 1.02 ** (index - (len(angles) - 1) / 2)
        axes.errorbar(
            np.array(place) * apart, median, yerr=np.stack([median - first, third - median]),
            color=_colours(len(aggregations))[aggregations.index(aggregation)], linewidth=1.4, elinewidth=0.8,
            linestyle=DASHES[pattern % len(DASHES)], marker=MARKERS[pattern % len(MARKERS)], markersize=4,
            label=f"k = {power:g}, {plain(str(aggregation), 32)}",
        )  # fmt: skip
    axes.axhline(90, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    axes.set(xscale="log", xlabel="features", ylabel="angle of the prediction to the target (degrees)")
    axes.set_ylim(0, max(95.0, axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(counts, [str(count) for count in counts])
    finish_axes(axes)
    figure.legend(loc="outside lower center", ncols=len(powers), fontsize=8, frameon=False, handlelength=3)
    return figure
