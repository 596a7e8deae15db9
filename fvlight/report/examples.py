"""Pages of dataset examples: per unit the pictures that drive it most, and what it saw of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from .figures import FigureFile
from .mosaic import MUTED, PLACEHOLDER, Cell, Pixels, Sheet, plain
from .run_data import ABSENT, Column, RunData, UnitTable, finite, format_number, write_atomically

MAX_UNITS, MAX_EXAMPLES = 16, 12  # of the figure
PATCH = 120  # pixels of the longer side of a patch
MARGIN, GAP, LABEL, VALUE = 16, 6, 92, 18
FRAME = (213, 94, 0)
ORDERS = ("largest", "smallest")
Unit = Mapping[str, Any]


def _example(order: str, rank: int, key: str) -> Any:
    """A cell: something of one example; rank -1: the last."""

    def cell(unit: Unit) -> str | None:
        found = unit.get(order)
        if found is None:
            return None
        if not found:
            return ABSENT
        value = found[rank].get(key)
        if key == "position":
            return ABSENT if value is None else ", ".join(str(index) for index in value)
        return format_number(value) if key == "value" else plain(str(value), 40)

    return cell


TABLE = UnitTable(
    title="Largest values",
    subtitle=": dataset examples",
    columns=(
        Column("unit", lambda unit: str(unit.get("unit"))),
        Column("largest value", _example("largest", 0, "value"), "largest"),
        Column("in", _example("largest", 0, "image")),
        Column("at (row, column)", _example("largest", 0, "position"), ""),
        Column("last shown", _example("largest", -1, "value")),
        Column("smallest value", _example("smallest", 0, "value"), "smallest"),
        Column("of", _example("smallest", 0, "image"), ""),
    ),
    note=lambda summary: (
        "Values of the unit, of each picture one: the largest of its map unless position says otherwise. Last shown: "
        "of the last of the pictures that are kept for the unit. Rows and columns count from 0 in the unit's map."
    ),
)


def write_examples(run_dir: Path, run: RunData) -> list[FigureFile]:
    """examples.png, where there are images."""
    units, path = run.summary.get("units") or (), run_dir / "images.safetensors"
    if not path.exists() or not units:
        return []
    units = units[:MAX_UNITS]
    with safe_open(path, framework="np") as handle:
        patches, pictures, windows = (
            np.asarray(handle.get_slice(name)[: len(units)]) for name in ("display", "pictures", "windows")
        )
    size = [int(side) for side in run.summary["image_size"]]
    sheet, down = examples_sheet(units, patches, pictures, windows, (size[0], size[1]))
    figure = run_dir / "figures" / "examples.png"
    write_atomically(figure, sheet.png())
    return [
        FigureFile(
            figure,
            "examples",
            heading="Dataset examples",
            caption=_caption(run, units, down, patches.shape[-2:] != tuple(size)),
        )
    ]


def _caption(run: RunData, units: Sequence[Unit], down: int, windowed: bool) -> str:
    first = f"The first {len(units)} of {len(run.units)} units. " if len(units) < len(run.units) else ""
    seen = (
        "Above, what the unit sees at the position of its value (0 of the network's input beyond the picture's edge); "
        "below, the whole picture with that window framed."
    )
    if not windowed:
        seen = "The units see the whole picture."
    text = f"{first}A row per unit, the picture with the largest value first; the number is the value. {seen}"
    if "smallest" in units[0]:
        text += " Second row: the pictures with the smallest values, the smallest first."
    return text + (f" Reduced by a factor of {down} (mean over blocks)." if down > 1 else "")


def examples_sheet(
    units: Sequence[Unit], patches: Pixels, pictures: Pixels, windows: np.ndarray, image_size: tuple[int, int]
) -> tuple[Sheet, int]:
    """A row per unit and order, and the factor by which the patches are reduced.

    Args:
        patches: (U, L, k, C, h, w); ``pictures`` (U, L, k, C, h', w').
        windows: (U, L, k, 4) top, left, height, width in pixels of ``image_size``.
    """
    _, orders, k, channels, height, width = patches.shape
    k = min(k, MAX_EXAMPLES)
    cell = Cell.fit(height, width, PATCH, PATCH, channels)
    small = Cell.fit(pictures.shape[-2], pictures.shape[-1], PATCH, PATCH, channels)
    windowed = (height, width) != image_size  # else it sees all
    wide = max(cell.width, small.width if windowed else 0)
    tall = cell.height + VALUE + (small.height + GAP if windowed else 0) + GAP
    sheet = Sheet(2 * MARGIN + LABEL + k * (wide + GAP) - GAP, MARGIN + len(units) * (orders * tall + GAP))
    for i, unit in enumerate(units):
        for j in range(orders):
            y = MARGIN // 2 + i * (orders * tall + GAP) + j * tall
            if j == 0:
                sheet.text(MARGIN, y + 12, f"unit {unit.get('unit')}", size=9, bold=True)
            sheet.text(MARGIN, y + 30, ORDERS[j] if orders > 1 else "", size=7.5, color=MUTED)
            found = unit.get(ORDERS[j]) or ()
            for n in range(k):
                x = MARGIN + LABEL + n * (wide + GAP)
                if n >= len(found):
                    sheet.fill(x, y, cell.width, cell.height, PLACEHOLDER)
                    continue
                sheet.paste(cell.render(patches[i, j, n]), x, y)
                value = finite(found[n].get("value"))
                sheet.text(x, y + cell.height + VALUE // 2, format_number(value), size=7.5)
                if windowed:
                    top = y + cell.height + VALUE
                    sheet.paste(small.render(pictures[i, j, n]), x, top)
                    _frame(sheet, x, top, small, windows[i, j, n], image_size)
    return sheet, cell.down


def _frame(sheet: Sheet, x: int, y: int, cell: Cell, box: np.ndarray, image_size: tuple[int, int]) -> None:
    """The part of a window that lies in the picture, framed."""
    scale = (cell.height / image_size[0], cell.width / image_size[1])
    (top, bottom), (left, right) = (
        (max(round(box[a] * scale[a]), 0), min(round((box[a] + box[2 + a]) * scale[a]), (cell.height, cell.width)[a]))
        for a in (0, 1)
    )
    if bottom - top < 2 or right - left < 2:
        return
    for row in (top, bottom - 2):
        sheet.fill(x + left, y + row, right - left, 2, FRAME)
    for column in (left, right - 2):
        sheet.fill(x + column, y + top, 2, bottom - top, FRAME)
