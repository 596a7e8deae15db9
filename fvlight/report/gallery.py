"""Images of many units beside each other: a block per layer, or per unit with its texture [Figs. 6, 7]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .mosaic import ACCENT, MUTED, PLACEHOLDER, Cell, Pixels, Sheet

MAX_ROWS = 12  # units of a layer
MARGIN, GAP, HEADER, LABEL = 16, 6, 34, 100
SIDE, BUDGET = 96, 1500  # pixels: of an image, and that blocks beside each other may take


@dataclass(frozen=True)
class GalleryRow:
    """A unit: its images, uint8 (n, C, H, W), or None where there are none to show, and a word below its number."""

    unit: int
    images: Pixels | None
    note: str = ""


@dataclass(frozen=True)
class GalleryLayer:
    """A layer: its name, the shape (n, C, H, W) of a unit's images, and its units."""

    name: str
    shape: tuple[int, ...]
    rows: Sequence[GalleryRow]


def gallery_sheet(layers: Sequence[GalleryLayer]) -> Sheet:
    """A block per layer, read like the words of a page; a row per unit."""
    shapes = [layer.shape for layer in layers]
    cells = [
        Cell.fit(height, width, SIDE, max(SIDE, BUDGET // (2 * n)), channels) for n, channels, height, width in shapes
    ]
    width = LABEL + max(n * (cell.width + GAP) for (n, *_), cell in zip(shapes, cells, strict=True)) + 2 * MARGIN
    across = max(1, min(len(layers), BUDGET // width))
    heights = [
        HEADER + len(layer.rows) * (max(cell.height, 34) + GAP) + MARGIN
        for layer, cell in zip(layers, cells, strict=True)
    ]
    lines = [max(heights[start : start + across]) for start in range(0, len(layers), across)]
    sheet = Sheet(MARGIN + across * width, sum(lines) + MARGIN)
    for index, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
        x, y = MARGIN + index % across * width, MARGIN // 2 + sum(lines[: index // across])
        _, _, height, side = layer.shape
        sheet.text(x, y + 16, layer.name, size=10, bold=True)
        right = x + LABEL + layer.shape[0] * (cell.width + GAP) - GAP
        sheet.text(right, y + 16, f"{height} \u00d7 {side} pixels", size=7.5, color=MUTED, align="right")
        for row, unit in enumerate(layer.rows):
            _row(sheet, x, y + HEADER + row * (max(cell.height, 34) + GAP), unit, cell, layer.shape[0])
    return sheet


def _row(sheet: Sheet, x: int, y: int, row: GalleryRow, cell: Cell, n: int) -> None:
    sheet.text(x, y + 10, f"unit {row.unit}", size=8)
    sheet.text(x, y + 26, row.note, size=7, color=ACCENT if row.images is None else MUTED)
    _paste(sheet, x + LABEL, y, row.images, cell, n, n)


def _paste(sheet: Sheet, x: int, y: int, images: Pixels | None, cell: Cell, n: int, columns: int) -> None:
    """``n`` images in rows of ``columns``; grey cells where there are none."""
    for index in range(n):
        left = x + index % columns * (cell.width + GAP)
        top = y + index // columns * (cell.height + GAP)
        if images is None:
            sheet.fill(left, top, cell.width, cell.height, PLACEHOLDER)
        else:
            sheet.paste(cell.render(images[index]), left, top)


def gallery_caption(layers: Sequence[GalleryLayer], units: int) -> str:
    """``units``: so many there are, drawn or not."""
    drawn = sum(len(layer.rows) for layer in layers)
    which = f"{drawn} of {units} units" if drawn < units else f"{units} units"
    n = layers[0].shape[0]
    return (
        f"{which} of {len(layers)} layers; a row per unit with its {n} images at the chosen λ, which were optimised "
        "together to drive the unit and to differ. Gain: the smallest distance between two of them, divided by that at "
        "λ = 0. The size beside a layer's name is that of its units' receptive field, which an image fills; each pixel "
        "is drawn as a square, larger in layers of small receptive fields. Grey: no λ was chosen."
    )


def portrait_caption(units: int) -> str:
    """What is seen in `portrait_sheet`."""
    return (
        f"{units} units. Left: each unit's images at the chosen λ, optimised together to drive it and to differ. "
        "Beside them, at the same scale, a texture made to drive the unit wherever it looks; its rim lies in few "
        "crops or none, and keeps some of its first noise. Shift-invariance index: "
        "mean activation for the texture's windowed crops, divided by that for the images; near 1 for a unit that "
        "responds to a pattern wherever it lies. Linear-combination index: mean activation for the averages of all "
        "pairs of the images, brought to their norm, divided by the same; near 1 for a unit whose images share what "
        "drives it. Grey: no λ was chosen, or no activation was measured."
    )


@dataclass(frozen=True)
class UnitPortrait:
    """A unit in images and numbers.

    Attributes:
        title: layer and unit.
        images: uint8 (n, C, H, W), or None where there are none to show; ``shape`` is theirs.
        texture: uint8 (C, S, S'), or None; ``texture_shape`` is its own.
        numbers: names and values, written beside.
    """

    title: str
    shape: tuple[int, ...]
    images: Pixels | None
    texture_shape: tuple[int, ...]
    texture: Pixels | None
    numbers: Sequence[tuple[str, str]]


def portrait_sheet(units: Sequence[UnitPortrait]) -> Sheet:
    """A line per unit: its images in two rows, its texture at the same scale, its numbers."""
    drawn = [_cells(unit) for unit in units]
    columns = [-(-unit.shape[0] // 2) for unit in units]
    images = max(n * (cell.width + GAP) for (cell, _), n in zip(drawn, columns, strict=True))
    texture = max(cell.width for _, cell in drawn)
    heights = [
        HEADER + max(2 * (cell.height + GAP), other.height, 44 * len(unit.numbers)) + MARGIN
        for unit, (cell, other) in zip(units, drawn, strict=True)
    ]
    sheet = Sheet(3 * MARGIN + images + 2 * MARGIN + texture + 260, sum(heights) + MARGIN)
    y = MARGIN // 2
    for unit, (cell, whole), n, height in zip(units, drawn, columns, heights, strict=True):
        x = MARGIN
        sheet.text(x, y + 16, unit.title, size=10, bold=True)
        _paste(sheet, x, y + HEADER, unit.images, cell, unit.shape[0], n)
        x += images + MARGIN
        sheet.text(x, y + 16, "texture", size=8, color=MUTED)
        _paste(sheet, x, y + HEADER, None if unit.texture is None else unit.texture[None], whole, 1, 1)
        x += texture + 2 * MARGIN
        for line, (name, value) in enumerate(unit.numbers):
            top = y + HEADER + 10 + 44 * line
            sheet.text(x, top, name, size=7.5, color=MUTED)
            sheet.text(x, top + 16, value, size=9, bold=True)
        y += height
    return sheet


def _cells(unit: UnitPortrait) -> tuple[Cell, Cell]:
    """Of the images and of the texture, at one scale."""
    _, channels, height, width = unit.shape
    cell = Cell.fit(height, width, 120, 160, channels)
    _, tall, wide = unit.texture_shape
    side = -(-cell.up * max(tall, wide) // cell.down)
    return cell, Cell.fit(tall, wide, side, side, channels)
