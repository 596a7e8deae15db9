"""Measures of maps: a table of methods, pictures beside their maps, and all networks of an experiment in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import safe_open

from .attribution import TOP, attribution_figure
from .figures import UNIT_COLOURS, FigureFile
from .mosaic import DPI, INK, MUTED, figure_png
from .run_data import Column, RunData, UnitTable, finite, format_number, write_atomically

# By the measures' names in `summary.json`: heading, and which numbers speak for a map.
HEADINGS = {
    "deletion": ("deletion", "smaller is better"),
    "insertion": ("insertion", "larger is better"),
    "entropy": ("relative entropy", "smaller: more focused"),
    "share": ("share in 10 %", "larger: more focused"),
    "sensitivity": ("sensitivity", "smaller is steadier"),
    "randomised": ("random weights", "0: tells of what was learned"),
    "conservation": ("conservation error", "smaller: adds up"),
    "bias_share": ("taken by biases", ""),
    "grey_bias": ("grey bias", "0: unbiased"),
}
MEANING = (
    "Means over pictures with 95 % bootstrap intervals. Deletion: area under the unit's value while pixels of the "
    "picture give way to the fill, those first to which the map gives most; insertion: while they come back. Both are "
    "scaled so that the picture has 1 and the fill 0; pictures whose fill drives the unit nearly as much are left out. "
    "Relative entropy: of the map's positive part as a distribution "
    "over pixels, over that of a flat map. Share in 10 %: of that part, in the tenth of the pixels that has most. Both "
    "do not mind where these pixels lie: scattered ones count as focused, and boxes' maps are smooth by their making. "
    "Sensitivity: the largest change of the map under small perturbations of the picture, relative to the map. Random "
    "weights: rank correlation of absolute maps with those of the network with all its weights shuffled. Conservation "
    "error: distance of the sum of relevance, or of map times picture, from the unit's value, relative to it; what "
    "biases take stands apart. Grey bias: rank correlation of the map with the distance of the picture from grey."
)
CAPTION = (
    f"{MEANING} A colour per network; dots: means, lines: their intervals. Logarithmic where values span more than two "
    "orders of magnitude."
)
SPAN = 100.0  # of positive numbers, beyond which an axis is logarithmic
Numbers = Mapping[str, float | None]


def _mean(name: str) -> Any:
    """A cell: the mean and its interval; nothing where the measure does not apply."""

    def cell(unit: Mapping[str, Any]) -> str | None:
        found = unit.get(name) or {}
        value, low, high = (finite(found.get(key)) for key in ("value", "low", "high"))
        if value is None:
            return None
        return format_number(value) + ("" if low is None else f" [{format_number(low)}, {format_number(high)}]")

    return cell


TABLE = UnitTable(
    title="Measures of maps",
    subtitle=": how good the maps are",
    noun="method",
    columns=(
        Column("method", lambda unit: str(unit.get("unit"))),
        *(Column(heading, _mean(name), heading if name in ("deletion", "insertion", "share") else "")
          for name, (heading, _) in HEADINGS.items()),
    ),
    note=lambda summary: MEANING,
)  # fmt: skip


def write_map_quality(run_dir: Path, run: RunData) -> list[FigureFile]:
    """maps.png: the pictures that are kept, and their maps."""
    path = run_dir / "images.safetensors"
    if not path.exists():
        return []
    with safe_open(path, framework="np") as handle:
        maps, shares = handle.get_tensor("maps"), handle.get_tensor("measures.share")
        pictures = handle.get_tensor("display")[:, 0, 0]
        explained, values = handle.get_tensor("units"), handle.get_tensor("values")
    methods = [str(entry.get("method")) for entry in run.summary.get("units") or ()]
    names = run.summary.get("shown") or [f"picture {n + 1}" for n in range(len(pictures))]
    units = [
        {
            "unit": names[n],
            "explained_unit": int(explained[n]),
            "value": float(values[n]),
            "maps": {method: {"share_of_top_tenth": float(shares[m, n])} for m, method in enumerate(methods)},
        }
        for n in range(len(pictures))
    ]
    figure = attribution_figure(units, pictures, {method: maps[m] for m, method in enumerate(methods)})
    target = run_dir / "figures" / "maps.png"
    write_atomically(target, figure_png(figure))
    caption = (
        f"{len(pictures)} of {run.summary.get('images')}, and their maps. Red speaks for the unit, blue against it; "
        "maps that have no sign are from black, nothing, to light, most. Each map has its own scale, which ends at the "
        f"{TOP:g}th percentile of its magnitudes. Below a map: how much of its positive part lies in a tenth of the "
        "pixels."
    )
    return [FigureFile(target, "attribution", heading="Maps", caption=caption)]


def measures_figure(values: Mapping[str, Mapping[str, Mapping[str, Numbers]]], titles: Mapping[str, str]) -> Figure:
    """A panel per measure: methods from top to bottom, a dot with its interval per network.

    Args:
        values: by network, method, measure: `value`, `low`, `high`; None where there is none.
        titles: of the methods.
    """
    methods = list(dict.fromkeys(method for network in values.values() for method in network))
    measures = [m for m in HEADINGS if any(_of(values, n, k, m) is not None for n in values for k in methods)]
    columns = min(len(measures), 3) or 1
    rows = -(-len(measures) // columns) or 1
    size = (4.1 * columns + 0.6, (0.36 * len(methods) + 0.9) * rows + 0.4)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for number, axes in enumerate(grid.flat):
        if number >= len(measures):
            axes.set_axis_off()
            continue
        _panel(axes, values, methods, measures[number])
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(methods)), [titles.get(method, method) for method in methods], fontsize=8)
        axes.set_ylim(len(methods) - 0.5, -0.5)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(values), frameon=False, fontsize=8)
    return figure


def _of(values: Any, network: str, method: str, measure: str) -> float | None:
    return finite((values[network].get(method, {}).get(measure) or {}).get("value"))


def _panel(axes: Axes, values: Any, methods: Sequence[str], measure: str) -> None:
    heading, better = HEADINGS[measure]
    drawn: list[NDArray[np.float64]] = []
    for number, network in enumerate(values):
        offset = (number - (len(values) - 1) / 2) * 0.6 / max(len(values), 1)
        found = np.full((len(methods), 3), np.nan)
        for row, method in enumerate(methods):
            numbers = values[network].get(method, {}).get(measure) or {}
            found[row] = [np.nan if finite(numbers.get(k)) is None else numbers[k] for k in ("value", "low", "high")]
        y, color = np.arange(len(methods)) + offset, UNIT_COLOURS[number % len(UNIT_COLOURS)]
        axes.hlines(y, found[:, 1], found[:, 2], color=color, linewidth=1.2)
        axes.plot(found[:, 0], y, "o", color=color, markersize=4, markeredgewidth=0, label=network)
        drawn.append(found)
    known = np.concatenate(drawn)
    known = known[np.isfinite(known)]
    if known.size and known.min() > 0 and known.max() > SPAN * known.min():
        axes.set_xscale("log")
    for row in range(1, len(methods), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f4f4f2", zorder=0, linewidth=0)
    axes.set_title(heading, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(better, fontsize=8, color=MUTED)
    axes.tick_params(axis="both", labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
