"""Pages of runs of input reconstruction, and the figure over the layers of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .figures import UNIT_COLOURS, FigureFile
from .mosaic import ACCENT, DPI, INK, MUTED, PLACEHOLDER, Cell, Pixels, Sheet, has_tiles, plain
from .populations import finish_axes
from .run_data import ABSENT, Column, RunData, UnitTable, finite, format_number, open_display, write_atomically

MAX_PICTURES = 12
MARGIN, GAP, HEADER, LINE = 16, 8, 38, 34
SIDE = 224  # pixels: of a picture, at most
CURVES_CAPTION = (
    "A thin line per picture, thick their mean. Above: relative error of the layer's value, not squared. Below: "
    "structural similarity of reconstruction and picture, 1 at most: what the layer has kept of it, pixel by pixel."
)
Unit = Mapping[str, Any]


def _number(key: str, digits: int = 3) -> Any:
    return lambda unit: format_number(unit.get(key), digits)


def _text(key: str) -> Any:
    return lambda unit: str(unit.get(key) if unit.get(key) is not None else "unknown")


TABLE = UnitTable(
    title="Reconstructions",
    subtitle=": reconstructions",
    noun="picture",
    columns=(
        Column("picture", _text("unit")),
        Column("relative error", _number("relative_error"), "error"),
        Column("PSNR (dB)", _number("psnr"), "PSNR"),
        Column("SSIM", _number("ssim")),
        Column("steps", _text("steps")),
        Column("status", _text("status")),
    ),
    note=lambda summary: (
        "Relative error: the distance between the layer's values for the reconstruction and for the picture, as a "
        "share of the latter's length; not squared. PSNR and SSIM compare reconstruction and picture pixel by pixel, "
        "clipped to what a screen shows. Status: max_steps means that all steps of the solver were taken."
    ),
)


@dataclass(frozen=True)
class Reconstruction:
    """An image, uint8 (C, H, W), with its relative error and its similarity to the picture; None where unknown."""

    image: Pixels | None
    error: float | None
    ssim: float | None
    status: str = "converged"

    @classmethod
    def of(cls, unit: Unit, image: Pixels) -> Reconstruction:
        """From an entry of `units`."""
        error = finite(unit.get("relative_error"))
        return cls(None if error is None else image, error, finite(unit.get("ssim")), str(unit.get("status")))


@dataclass(frozen=True)
class PictureRow:
    """A picture, uint8 (C, H, W), its name, and what was made of it, a reconstruction per column."""

    name: str
    original: Pixels
    reconstructions: Sequence[Reconstruction]


def write_reconstructions(run_dir: Path, run: RunData) -> list[FigureFile]:
    """images.png, where there are images."""
    units = run.summary.get("units") or ()
    with open_display(run_dir) as display:
        if display is None or not units:
            return []
        shown = min(len(units), display.shape[0], MAX_PICTURES)
        rows = [
            PictureRow(
                _text("unit")(unit),
                display.unit(i, "shown_originals")[0, 0],
                [Reconstruction.of(unit, display.unit(i)[0, 0])],
            )
            for i, unit in enumerate(units[:shown])
        ]
    path = run_dir / "figures" / "images.png"
    write_atomically(path, reconstruction_sheet(rows, [str(run.summary.get("layer"))]).png())
    first = f"The first {shown} of {len(units)} pictures. " if shown < len(units) else ""
    return [
        FigureFile(path, "images", heading="Pictures and their reconstructions", caption=first + caption(rows[0])),
    ]


def reconstruction_sheet(rows: Sequence[PictureRow], columns: Sequence[str]) -> Sheet:
    """A row per picture: the picture, then a reconstruction per column, its error and similarity below."""
    channels, height, width = rows[0].original.shape
    side = max(96, min(SIDE, 1500 // (len(columns) + 1)))
    cell = Cell.fit(height, width, side, side, channels)
    wide = max(cell.width, 116) + GAP
    tall = cell.height + LINE + GAP
    sheet = Sheet(2 * MARGIN + (len(columns) + 1) * wide - GAP, HEADER + len(rows) * tall + MARGIN // 2)
    for index, name in enumerate(["picture", *columns]):
        sheet.text(MARGIN + index * wide, HEADER // 2, plain(name, wide // 8), size=8.5, bold=True)
    for number, row in enumerate(rows):
        y = HEADER + number * tall
        sheet.paste(cell.render(row.original), MARGIN, y)
        sheet.text(MARGIN, y + cell.height + 11, plain(row.name, wide // 8), size=6.5, color=MUTED)
        for index, found in enumerate(row.reconstructions):
            _reconstruction(sheet, MARGIN + (index + 1) * wide, y, found, cell)
    return sheet


def _reconstruction(sheet: Sheet, x: int, y: int, found: Reconstruction, cell: Cell) -> None:
    if found.image is None:
        sheet.fill(x, y, cell.width, cell.height, PLACEHOLDER)
    else:
        sheet.paste(cell.render(found.image), x, y)
    error, ssim = (ABSENT if value is None else f"{value:.2f}" for value in (found.error, found.ssim))
    solved = found.status in ("converged", "max_steps")
    for line, text in enumerate((f"error {error}", f"SSIM {ssim}") if solved else (found.status,)):
        sheet.text(x, y + cell.height + 11 + 15 * line, text, size=6.5, color=MUTED if solved else ACCENT)


def caption(row: PictureRow) -> str:
    """What is seen in `reconstruction_sheet`."""
    tiles = f" Each of the {len(row.original)} channels is a grey tile." if has_tiles(len(row.original)) else ""
    return (
        "Left the picture as the network sees it, beside it an image found from noise whose values in the layer are "
        "nearly the same. Error: the distance between the two values as a share of the picture's, not squared. SSIM: "
        "structural similarity of the two images, 1 at most; one of even grey may have more than one of wrong details."
        f"{tiles}"
    )


def curves_figure(layers: Sequence[str], errors: Sequence[Sequence[float]], ssim: Sequence[Sequence[float]]) -> Figure:
    """Relative errors and SSIM, (layers, pictures) each, over the layers in their order."""
    figure = Figure(figsize=(2.2 + 0.8 * len(layers), 5.2), dpi=DPI, facecolor="white", layout="constrained")
    places = np.arange(len(layers))
    titles = ("relative error", "SSIM to the picture")
    for axes, values, title in zip(figure.subplots(2, 1, sharex=True), (errors, ssim), titles, strict=True):
        table = np.asarray(values, dtype=float)
        axes.plot(places, table, color=UNIT_COLOURS[0], linewidth=0.8, alpha=0.5)
        axes.plot(places, table.mean(1), "o-", color=UNIT_COLOURS[0], linewidth=2, markersize=5)
        axes.set(ylabel=title, ylim=(min(0.0, float(np.nanmin(table, initial=0.0))), None))
        axes.set_xticks(places, [plain(name, 16) for name in layers], rotation=30, ha="right")
        finish_axes(axes)
    figure.axes[0].axhline(0.1, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    return figure
