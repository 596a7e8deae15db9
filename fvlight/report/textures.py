"""Shift-invariant textures: each beside the map of what its unit does at every place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from .mosaic import ACCENT, MUTED, PLACEHOLDER, Cell, Pixels, Sheet, has_tiles
from .run_data import UNDEFINED, Column, UnitTable, finite, format_number

MAX_TEXTURES = 24
LARGE, SMALL = 240, 144  # pixels of a texture's side: of up to four, of more
COLUMN_BUDGET = 1480  # pixels that one row of textures may take
COLOURS = colormaps["viridis"]
MARGIN, HEADER, UNDER = 16, 54, 40
TICKS, BAR, VALUES, GAP = 34, 12, 62, 22  # widths: of an axis with its numbers, of the colour bar, of its numbers


@dataclass(frozen=True)
class TextureUnit:
    """One unit of `summary.json`: activations over all windowed crops of its texture."""

    unit: str
    mean: float | None
    least: float | None
    largest: float | None
    steps: int | None
    status: str

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "TextureUnit":
        steps = finite(entry.get("steps"))
        return cls(
            unit=str(entry.get("unit")),
            mean=finite(entry.get("mean_activation")),
            least=finite(entry.get("least_activation")),
            largest=finite(entry.get("largest_activation")),
            steps=None if steps is None else int(steps),
            status=str(entry.get("status") or "unknown"),
        )


TABLE = UnitTable(
    title="Activations of the textures",
    subtitle=": activation of the crops",
    read=TextureUnit.from_json,
    columns=(
        Column("unit", lambda unit: unit.unit),
        Column("mean activation", lambda unit: format_number(unit.mean), "mean"),
        Column("least activation", lambda unit: format_number(unit.least), "least"),
        Column("largest activation", lambda unit: format_number(unit.largest), "largest"),
        Column("steps", lambda unit: UNDEFINED if unit.steps is None else str(unit.steps)),
        Column("status", lambda unit: unit.status),
    ),
    note=lambda summary: (
        "Activations are those of the unit for the windowed crops of its texture, one crop per place. Steps: of the "
        "solver. Status: converged means that the stopping criterion was met, max_steps that the limit on steps was "
        "reached before."
    ),
)


def texture_units(summary: Mapping[str, Any]) -> list[TextureUnit]:
    """The units of a run; none for another kind of task."""
    entries = summary.get("units") if summary.get("task") == "texture" else None
    return [TextureUnit.from_json(entry) for entry in entries or ()]


@dataclass(frozen=True)
class TextureBlock:
    """A unit's texture, uint8 (C, S, S'), and the activations (P, Q) of its crops by where they begin."""

    unit: TextureUnit
    texture: Pixels
    activations: NDArray[np.float32]

    @property
    def measured(self) -> bool:
        return bool(np.isfinite(self.activations).all())

    @property
    def limits(self) -> tuple[float, float]:
        """Of the colours: 0 is always among them, so that evenness is seen and not the last digits."""
        return min(0.0, float(self.activations.min())), max(0.0, float(self.activations.max()))

    def coloured(self) -> Pixels:
        """The map as a picture, uint8 (3, P, Q)."""
        low, high = self.limits
        shares = (self.activations - low) / ((high - low) or 1.0)
        return COLOURS(shares, bytes=True)[..., :3].transpose(2, 0, 1)  # type: ignore[no-any-return]

    def centres(self, axis: int) -> tuple[float, float]:
        """The first and the last crop's centre in height (axis 0) or width (1), pixels of the texture from 0."""
        margin = (self.texture.shape[1 + axis] - 1) / 4  # half a crop: textures have side 2 RF - 1
        return margin, margin + self.activations.shape[axis] - 1


def texture_cells(blocks: Sequence[TextureBlock]) -> tuple[Cell, Cell]:
    """How textures and maps are drawn: large for up to four."""
    side = LARGE if len(blocks) <= 4 else SMALL
    channels, height, width = blocks[0].texture.shape
    rows, columns = blocks[0].activations.shape
    limit = 8 * side // 5
    return Cell.fit(height, width, side, limit, channels), Cell.fit(rows, columns, side, limit)


def texture_sheet(blocks: Sequence[TextureBlock]) -> Sheet:
    """A block per unit: its texture, and at the same place in pixels the activations of the crops centred there."""
    texture, places = texture_cells(blocks)
    width = TICKS + texture.width + GAP + TICKS + places.width + GAP // 2 + BAR + VALUES + GAP
    height = HEADER + max(texture.height, places.height) + UNDER
    across = max(1, min(len(blocks), COLUMN_BUDGET // width, 2 if len(blocks) <= 4 else 4))
    down = -(-len(blocks) // across)
    sheet = Sheet(2 * MARGIN + across * width - GAP, MARGIN + down * height)
    for index, block in enumerate(blocks):
        x, y = MARGIN + index % across * width, MARGIN // 2 + index // across * height
        _header(sheet, x, y, TICKS + texture.width + GAP + TICKS, block)
        x, y = x + TICKS, y + HEADER
        _texture(sheet, x, y, block, texture)
        _map(sheet, x + texture.width + GAP + TICKS, y, block, places)
    return sheet


def _header(sheet: Sheet, x: int, y: int, to_map: int, block: TextureBlock) -> None:
    unit = block.unit
    tiles = f"; {len(block.texture)} channels, a grey tile each" if has_tiles(len(block.texture)) else ""
    sheet.text(x, y + 14, f"unit {unit.unit}{tiles}", size=10, bold=True)
    mean, least, largest = (format_number(value) for value in (unit.mean, unit.least, unit.largest))
    sheet.text(x, y + 35, f"activation: mean {mean}, least {least}, largest {largest}", size=7.5, color=MUTED)
    if unit.status != "converged":
        sheet.text(x + to_map, y + 14, unit.status, size=7.5, color=ACCENT)


def _texture(sheet: Sheet, x: int, y: int, block: TextureBlock, cell: Cell) -> None:
    """The texture with the numbers of its first and last pixels, and lines along what the map covers."""
    if not block.measured:
        sheet.fill(x, y, cell.width, cell.height, PLACEHOLDER)
        return
    sheet.paste(cell.render(block.texture), x, y)
    if has_tiles(len(block.texture)):
        return
    _, height, width = block.texture.shape
    _axes(sheet, x, y, cell, (0, height - 1), (0, width - 1))
    (top, bottom), (left, right) = block.centres(0), block.centres(1)
    scale = cell.up / cell.down
    sheet.fill(x - 5, y + round(top * scale), 2, round((bottom - top + 1) * scale), (92, 92, 92))
    sheet.fill(x + round(left * scale), y + cell.height + 3, round((right - left + 1) * scale), 2, (92, 92, 92))


def _map(sheet: Sheet, x: int, y: int, block: TextureBlock, cell: Cell) -> None:
    if not block.measured:
        sheet.fill(x, y, cell.width, cell.height, PLACEHOLDER)
        return
    sheet.paste(cell.render(block.coloured()), x, y)
    _axes(sheet, x, y, cell, block.centres(0), block.centres(1))
    ramp = COLOURS(np.linspace(1, 0, cell.height), bytes=True)[:, None, :3]
    x += cell.width + GAP // 2
    sheet.paste(np.repeat(ramp, BAR, axis=1), x, y)
    low, high = block.limits
    for value, at in ((high, y + 7), (low, y + cell.height - 7)):
        sheet.text(x + BAR + 5, at, format_number(value), size=7.5, color=MUTED)


def _axes(sheet: Sheet, x: int, y: int, cell: Cell, rows: tuple[float, float], columns: tuple[float, float]) -> None:
    """The positions of the first and last row and column, in pixels of the texture."""
    for value, at in ((rows[0], y + 7), (rows[1], y + cell.height - 7)):
        sheet.text(x - 8, at, f"{value:g}", size=7, color=MUTED, align="right")
    sheet.text(x, y + cell.height + 14, f"{columns[0]:g}", size=7, color=MUTED)
    sheet.text(x + cell.width, y + cell.height + 14, f"{columns[1]:g}", size=7, color=MUTED, align="right")


def texture_caption(shown: int, units: int, cell: Cell, summary: Mapping[str, Any]) -> str:
    """What is seen in `texture_sheet`."""
    which = f"The first {shown} of {units} units. " if shown < units else ""
    size = summary.get("image_size")
    window = f" of {size[0]} \u00d7 {size[1]} pixels, the unit's receptive field" if size else ""
    drawn = (
        f"Textures are reduced by a factor of {cell.down} (mean over blocks)."
        if cell.down > 1
        else "Each pixel of a texture is drawn as a square, without interpolation."
    )
    places = summary.get("places")
    unseen = (
        " The last row and column of a texture lie in no crop, as in the authors' code, and keep their first noise."
        if size and places and places[0] < size[0]
        else ""
    )
    return (
        f"{which}Left: one texture per unit, made to drive the unit wherever it looks, through a soft round window"
        f"{window}.{unseen} Right: the activation of the unit for the windowed crop that is centred there. The numbers "
        "along the sides are positions in the texture, in pixels; lines beside the texture mark the part that the map "
        "covers, in which whole crops have their centres. The colour bar is in units of activation and always "
        "includes 0: the more even a map, the less it matters to the unit where the pattern lies. Mean, least and "
        "largest are over all crops. Words in red name the state in which an optimisation ended without converging. "
        f"{drawn}"
    )
