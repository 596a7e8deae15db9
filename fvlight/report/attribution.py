"""Pages of attribution: pictures beside the maps of what in them matters to a unit, one column per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import safe_open

from .figures import FigureFile
from .mosaic import DPI, INK, MUTED, figure_png, plain
from .run_data import ABSENT, UNDEFINED, Column, RunData, UnitTable, finite, format_number, write_atomically

MAX_PICTURES = 12  # of the figure
CELL, LABEL, HEAD = 1.7, 0.36, 0.3  # inches: side of a map, what stands below a row, above the first
TOP = 99.5  # percentile of a map's magnitudes that has the full colour: single pixels shall not darken the rest
SIGNED, POSITIVE = "RdBu_r", "magma"
Unit = Mapping[str, Any]


def _focus(unit: Unit) -> str:
    """The method whose map has the most of its mass in a tenth of the pixels."""
    found = {name: finite(numbers.get("share_of_top_tenth")) for name, numbers in (unit.get("maps") or {}).items()}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return UNDEFINED
    best = max(known, key=lambda name: known[name])
    return f"{best} ({known[best]:.0%})"


TABLE = UnitTable(
    title="Pictures",
    subtitle=": which pixels matter",
    noun="picture",
    columns=(
        Column("picture", lambda unit: plain(str(unit.get("unit")), 40)),
        Column("unit", lambda unit: str(unit.get("explained_unit", ABSENT))),
        Column("value", lambda unit: UNDEFINED if finite(unit.get("value")) is None else format_number(unit["value"])),
        Column("most focused map", _focus),
    ),
    note=lambda summary: (
        "Unit: the one that is explained. Value: what it answers to the picture. Most focused map: the method whose "
        "map has the largest share of its positive mass in a tenth of the pixels (10 % for a flat map), and that share."
    ),
)


def write_attribution(run_dir: Path, run: RunData) -> list[FigureFile]:
    """attribution.png, where there are maps."""
    units, path = (run.summary.get("units") or ())[:MAX_PICTURES], run_dir / "maps.safetensors"
    pictures = run_dir / "images.safetensors"
    if not units or not path.exists() or not pictures.exists():
        return []
    with safe_open(path, framework="np") as handle:
        names = [name for name in units[0].get("maps") or () if f"shown.{name}" in handle.keys()]  # noqa: SIM118
        maps = {name: np.asarray(handle.get_slice(f"shown.{name}")[: len(units)]) for name in names}
    with safe_open(pictures, framework="np") as handle:
        shown = np.asarray(handle.get_slice("display")[: len(units)])[:, 0, 0]
    figure = run_dir / "figures" / "attribution.png"
    write_atomically(figure, figure_png(attribution_figure(units, shown, maps)))
    first = f"The first {len(units)} of {len(run.units)} pictures. " if len(units) < len(run.units) else ""
    caption = (
        f"{first}Pictures and their maps. Red speaks for the unit, blue against it, white for neither; maps that have "
        "no sign are from black, nothing, to light, most. Each map has its own scale, which ends at the "
        f"{TOP:g}th percentile of its magnitudes. The share below a map: how much of its positive mass lies in a tenth "
        "of the pixels, 10 % for a flat map. The error of a map of relevance: how much of the unit's value neither "
        "arrives at the pixels nor is absorbed by biases, as a share of the value."
    )
    return [FigureFile(figure, "attribution", heading="Maps", caption=caption)]


def attribution_figure(
    units: Sequence[Unit], pictures: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]]
) -> Figure:
    """A row per picture: itself and its maps.

    Args:
        units: of ``summary.json``: `unit` (the picture's name), `explained_unit`, `value`, `maps`.
        pictures: (N, C, H, W), C 1 or 3.
        maps: by method, (N, H, W); with a negative number anywhere a method counts as signed.
    """
    rows, columns = len(units), len(maps) + 1
    size = (columns * CELL, rows * (CELL + LABEL) + HEAD)
    figure = Figure(figsize=size, dpi=DPI)
    for row, unit in enumerate(units):
        top = 1 - (HEAD + row * (CELL + LABEL)) / size[1]
        for column, name in enumerate(["picture", *maps]):
            box = (column / columns + 0.03 / columns, top - CELL / size[1], 0.94 / columns, 0.94 * CELL / size[1])
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(plain(name), fontsize=9, color=INK, pad=4)
            if name == "picture":
                axes.imshow(pictures[row].transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
                _below(axes, plain(str(unit.get("unit")), 24), f"unit {unit.get('explained_unit')}: {_value(unit)}")
            else:
                _draw(axes, maps[name][row], bool((maps[name] < 0).any()))
                _below(axes, *_numbers((unit.get("maps") or {}).get(name) or {}))
    return figure


def _value(unit: Unit) -> str:
    return UNDEFINED if finite(unit.get("value")) is None else format_number(unit["value"])


def _numbers(numbers: Mapping[str, Any]) -> list[str]:
    """What stands below a map: its focus, and the error of one of relevance."""
    share, error = finite(numbers.get("share_of_top_tenth")), finite(numbers.get("error"))
    return [
        *([] if share is None else [f"{share:.0%} in a tenth"]), *([] if error is None else [f"error {error:.2g}"])
    ]  # fmt: skip


def _draw(axes: Axes, values: NDArray[np.float32], signed: bool) -> None:
    if not np.isfinite(values).all():
        axes.text(
            0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=8, color=MUTED, transform=axes.transAxes
        )
        return
    peak = float(np.percentile(np.abs(values), TOP)) or float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap=SIGNED if signed else POSITIVE, vmin=-peak if signed else 0, vmax=peak)


def _below(axes: Axes, *lines: str) -> None:
    axes.text(
        0.5, -0.03, "\n".join(lines), ha="center", va="top", fontsize=7, color=MUTED, transform=axes.transAxes,
        linespacing=1.3,
    )  # fmt: skip
