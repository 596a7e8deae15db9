"""How units take transformations of their images: small multiples of curves, and the numbers as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import safe_open

from .mosaic import ACCENT, DPI, INK, MUTED, plain
from .run_data import ABSENT, RunData, UnitResult, finite, format_number

MAX_ROWS = 12
FILE = "transformations.safetensors"
HIGHEST = 2.1  # of the axis of relative activations: what an image doubled in contrast gives in a linear unit
TILE, SIDE, LEGEND = (1.55, 1.05), (0.95, 0.35), (0.62, 0.3)  # inches: of a panel; left and right; top and bottom
# Headings of the table and of the figure; a scale and a contrast are factors.
NAMES = {
    "translation_x": "shift right (px)",
    "translation_y": "shift down (px)",
    "rotation": "rotation (°)",
    "scale": "scale (×)",
    "hue": "hue (°)",
    "contrast": "contrast (×)",
}
TICKS = {
    "translation_x": (-8, 0, 8),
    "translation_y": (-8, 0, 8),
    "rotation": (-90, 0, 90),
    "scale": (0.5, 1, 2),
    "hue": (-180, 0, 180),
    "contrast": (0, 1, 2),
}
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """One transformation: values (k,), and activations relative to the images' own (U, n, k), NaN for none."""

    name: str
    values: Numbers
    relative: Numbers
    identity: float

    @property
    def known(self) -> Numbers:
        """Only those of units that have any."""
        return self.relative[np.isfinite(self.relative).any((1, 2))]


def heading(name: str) -> str:
    """A transformation in words."""
    return NAMES.get(name, name.replace("_", " "))


def transformations_of(units: Sequence[UnitResult]) -> list[str]:
    """The names of all that units were tested with: known ones first."""
    found = [name for unit in units for name in (unit.description or {}).get("transformations") or ()]
    return sorted(set(found), key=lambda name: (list(NAMES).index(name) if name in NAMES else len(NAMES), name))


def description_headings(units: Sequence[UnitResult]) -> list[str]:
    """The columns behind that of the unit; none where no unit is described."""
    if not any(unit.description for unit in units):
        return []
    return ["pair averages", "local dimension", *(heading(name) for name in transformations_of(units))]


def description_cells(unit: UnitResult, names: Sequence[str]) -> list[tuple[str, str]]:
    """Below those columns: a number or range, and the share to stand below it."""
    described = unit.description or {}
    ranges = described.get("transformations") or {}
    indices = (described.get(key) for key in ("combination_index", "local_dimension"))
    return [*((number_cell(value), "") for value in indices), *(_range(ranges.get(name) or {}) for name in names)]


def number_cell(value: object) -> str:
    """A number; a dash where there is none."""
    return ABSENT if finite(value) is None else format_number(value)


def _range(found: Mapping[str, Any]) -> tuple[str, str]:
    """`-1.4 to 1.6`; an end that lies beyond what was tested has a sign that says so."""
    share, low, high = (finite(found.get(key)) for key in ("share", "low", "high"))
    if share is None or low is None or high is None:
        return ABSENT, ""
    first, last = found.get("tested") or (None, None)
    ends = ("≤ " if low == first else "") + _short(low), ("≥ " if high == last else "") + _short(high)
    return ("all" if low == first and high == last else " to ".join(ends)), f"{share:.0%}"


def _short(value: float) -> str:
    return f"{value:.2g}".replace("-", "\u2212") if abs(value) < 10 else f"{value:.0f}".replace("-", "\u2212")


def read_curves(run_dir: Path, run: RunData) -> list[Curves]:
    """All transformations of a run; none where its units are not described."""
    path = run_dir / FILE
    if not path.exists() or not any(unit.description for unit in run.units):
        return []
    found = []
    with safe_open(path, framework="np") as handle:
        for name in transformations_of(run.units):
            values = np.asarray(handle.get_tensor(f"{name}.values"), dtype=np.float64)
            activations = np.asarray(handle.get_tensor(name), dtype=np.float64)
            identity = float(handle.get_tensor(f"{name}.identity"))
            if activations.ndim != 3 or activations.shape[::2] != (len(run.units), len(values)):
                raise ValueError(f"{FILE}: {name!r} must be (units, n, {len(values)}); is {activations.shape}")
            own = activations[..., values == identity]
            found.append(Curves(name, values, activations / np.where(own > 0, own, np.nan), identity))
    return found


def transformations_figure(run: RunData, curves: Sequence[Curves]) -> Figure:
    """A column per transformation, a row per unit; of more than `MAX_ROWS` units one row of medians and bands."""
    many = len(run.units) > MAX_ROWS
    rows = 1 if many else len(run.units)
    tile = (TILE[0], 2 * TILE[1]) if many else TILE
    width, height = sum(SIDE) + len(curves) * tile[0], sum(LEGEND) + rows * tile[1]
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    panels = figure.subplots(rows, len(curves), squeeze=False)
    figure.subplots_adjust(
        left=SIDE[0] / width, right=1 - SIDE[1] / width, top=1 - LEGEND[0] / height, bottom=LEGEND[1] / height,
        wspace=0.16, hspace=0.16,
    )  # fmt: skip
    for column, curve in enumerate(curves):
        for row in range(rows):
            axes = panels[row, column]
            if many:
                _draw_bands(axes, curve)
            else:
                described = (run.units[row].description or {}).get("transformations") or {}
                _draw_unit(axes, curve, row, described.get(curve.name) or {})
            _dress(axes, curve, last=row == rows - 1, first=column == 0)
    for row in range(rows):
        name = f"{len(curves[0].known)}\nunits" if many else plain(f"unit {run.units[row].unit}", 12)
        panels[row, 0].set_ylabel(name, fontsize=8, fontweight="bold", rotation=0, ha="right", va="center")
        panels[row, 0].yaxis.set_label_coords(-0.28, 0.5)
    for axes, curve in zip(panels[0], curves, strict=True):
        axes.set_title(heading(curve.name), fontsize=8)
    title = "Activation relative to that of the image as it was found"
    figure.text(SIDE[0] / width, 1 - 0.17 / height, title, fontsize=9, color=INK, va="center")
    return figure


def _draw_unit(axes: Axes, curve: Curves, unit: int, found: Mapping[str, Any]) -> None:
    low, high = finite(found.get("low")), finite(found.get("high"))
    if low is None or high is None:
        axes.text(0.5, 0.5, "no λ chosen", fontsize=7, color=MUTED, ha="center", va="center", transform=axes.transAxes)
        return
    axes.axvspan(low, high, color="#dcebf5", linewidth=0, zorder=0)
    axes.plot(curve.values, curve.relative[unit].T, color="#a8a8a8", linewidth=0.6, zorder=2)
    axes.plot(curve.values, np.nanmedian(curve.relative[unit], 0), color=INK, linewidth=1.6, zorder=3)


def _draw_bands(axes: Axes, curve: Curves) -> None:
    if not len(curve.known):
        return
    each = np.nanmedian(curve.known, axis=1)
    for outer, colour in ((5, "#dcdcdc"), (25, "#b4b4b4")):
        axes.fill_between(curve.values, *np.percentile(each, (outer, 100 - outer), axis=0), color=colour, linewidth=0)
    axes.plot(curve.values, np.median(each, axis=0), color=INK, linewidth=1.8)


def _dress(axes: Axes, curve: Curves, last: bool, first: bool) -> None:
    axes.axhline(0.5, color=ACCENT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.axvline(curve.identity, color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    if curve.name == "scale":
        axes.set_xscale("log", base=2)
    ends = curve.values[0], curve.values[-1]
    axes.set_xlim(*ends)
    ticks = [tick for tick in TICKS.get(curve.name, ends) if ends[0] <= tick <= ends[1]]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "\u2212") if last else "" for tick in ticks])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")  # inside, off the neighbour's
    labels[-1].set_horizontalalignment("right")
    axes.minorticks_off()
    own = curve.name == "contrast"  # an axis of its own, on the right
    axes.set_ylim(0, HIGHEST if own else 1.25)
    axes.set_yticks([0, 0.5, 1, *([2] if own else [])])
    axes.tick_params(labelsize=7, length=2.5, labelleft=first, labelright=own, left=not own, right=own)
    axes.spines[["top", "left" if own else "right"]].set_visible(False)


def transformations_caption(run: RunData) -> str:
    """What is seen in `transformations_figure`."""
    who = (
        "Each unit is its images' median curve; the line is the median of the units, the bands their middle half and "
        "their middle 90 %."
        if len(run.units) > MAX_ROWS
        else "Thin lines: one image each, at the chosen λ; thick line: their median. The tinted range is that of the "
        "table, the median of the images' ranges around the identity in which the activation stays above half."
    )
    return (
        "Each image at the chosen λ is moved, turned, made larger or smaller about its middle, turned in hue about the "
        "grey axis, or changed in contrast, and read by the unit; all but contrast keep the image's norm. Activations "
        f"are divided by that of the unchanged image (dotted line). {who} Dashed line: one half. Values below 0 and "
        "above the axis are cut off."
    )
