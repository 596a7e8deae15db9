"""The figures of a report: trade-off curves, overview of the images, one whole sweep per unit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .mosaic import ACCENT, DPI, HIGHLIGHT, INK, MUTED, PLACEHOLDER, Cell, Pixels, Sheet, figure_png, has_tiles, plain
from .run_data import (
    ABSENT,
    DisplayImages,
    RunData,
    SweepPoint,
    UnitResult,
    format_lambda,
    format_number,
    open_display,
    write_atomically,
)
from .textures import MAX_TEXTURES, TextureBlock, texture_caption, texture_cells, texture_sheet, texture_units

MAX_COLOURED_UNITS = 8
MAX_OVERVIEW_UNITS = 12
MAX_UNIT_FIGURES = 32
MAX_COLUMNS = 24
COLUMN_BUDGET = 1400  # pixels that one row of images may take
GAP = 8
MARGIN = 16
LABEL_WIDTH = 232
# Okabe and Ito's palette without its yellow, which is hard to see as a thin line on white.
UNIT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")


@dataclass(frozen=True)
class FigureFile:
    """A written figure; `kind` is tradeoff, images, unit, textures, ..., `reduced` the factor its images shrank by.

    What has a heading brings its caption along; `captions.describe` makes those of the others.
    """

    path: Path
    kind: str
    unit: str | None = None
    columns: int = 0
    reduced: int = 1
    quantity: str = ""
    caption: str = ""
    heading: str = ""


def write_figures(run_dir: Path, run: RunData) -> list[FigureFile]:
    """Write all figures of a run; without images.safetensors only the trade-off curves."""
    folder = run_dir / "figures"
    written: list[FigureFile] = []
    if any(unit.sweep for unit in run.units):
        path = folder / "tradeoff.png"
        write_atomically(path, figure_png(tradeoff_figure(run)))
        written.append(FigureFile(path, "tradeoff", quantity=diversity_quantity(run)))
    with open_display(run_dir) as display:
        if display is None:
            return written
        if run.summary.get("task") == "texture":
            return _write_textures(folder / "textures.png", run, display)
        count = min(len(run.units), display.shape[0])
        _, _, n, channels, height, width = display.shape
        shown = min(n, MAX_COLUMNS)
        blocks = [(run.units[i], display.unit(i)) for i in range(min(count, MAX_OVERVIEW_UNITS))]
        if blocks:
            cell = overview_cell(len(blocks), shown, height, width, channels)
            path = folder / "images.png"
            write_atomically(path, overview_sheet(blocks, cell, shown).png())
            written.append(FigureFile(path, "images", columns=shown, reduced=cell.down))
        for i in range(min(count, MAX_UNIT_FIGURES)):
            unit = run.units[i]
            cell = Cell.fit(height, width, 120, COLUMN_BUDGET // shown, channels)
            path = folder / f"unit_{re.sub(r'[^A-Za-z0-9_-]', '_', unit.unit)}.png"
            title = f"{run.summary.get('network')}, {run.summary.get('layer')}, unit {unit.unit}{tiles_note(channels)}"
            write_atomically(path, unit_sheet(unit, display.unit(i), cell, shown, title).png())
            written.append(FigureFile(path, "unit", unit.unit, shown, cell.down))
    return written


def _write_textures(path: Path, run: RunData, display: DisplayImages) -> list[FigureFile]:
    """The one figure of a run of textures."""
    units = texture_units(run.summary)
    shown = min(len(units), display.shape[0], MAX_TEXTURES)
    if not shown:
        return []
    blocks = [TextureBlock(units[i], display.unit(i)[0, 0], display.activations(i)) for i in range(shown)]
    write_atomically(path, texture_sheet(blocks).png())
    caption = texture_caption(shown, len(units), texture_cells(blocks)[0], run.summary)
    return [FigureFile(path, "textures", caption=caption)]


def diversity_quantity(run: RunData) -> str:
    """`diversity_gain`, or `min_distance` where a unit has distances but no gain (0 at lambda = 0)."""
    for unit in run.units:
        has_distance = any(point.min_distance is not None for point in unit.sweep)
        if has_distance and not any(point.diversity_gain is not None for point in unit.sweep):
            return "min_distance"
    return "diversity_gain"


def tradeoff_figure(run: RunData) -> Figure:
    """Two panels over lambda: (a) relative activation and threshold, (b) diversity. One line per unit."""
    figure = Figure(figsize=(9.2, 4.3), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    quantity = diversity_quantity(run)
    _draw_panel(left, run, "relative_activation")
    _draw_panel(right, run, quantity)
    left.set_ylabel("mean activation relative to λ = 0")
    lowest, highest = left.dataLim.intervaly
    # Without any defined value matplotlib reports an infinite interval.
    lowest, highest = (lowest, highest) if np.isfinite([lowest, highest]).all() else (0.0, 1.0)
    left.set_ylim(min(0.0, 1.05 * lowest), max(1.05, 1.05 * highest))
    right.set_ylabel(
        "minimum pairwise distance relative to λ = 0" if quantity == "diversity_gain" else "minimum pairwise distance"
    )
    _log_if_wide(right, run, quantity)
    if run.threshold is not None:
        left.axhline(run.threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    for axes, letter in ((left, "a"), (right, "b")):
        axes.set_xlabel("λ (0, then logarithmic)")
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
        axes.set_title(letter, loc="left", fontsize=10, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        _lambda_axis(axes, run.lambdas)
    handles = _legend_handles(run)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    return figure


def _draw_panel(axes: Axes, run: RunData, quantity: str) -> None:
    """One line per unit. Open dots: not converged; large dot: chosen; undefined values leave a gap."""
    few = len(run.units) <= MAX_COLOURED_UNITS
    for index, unit in enumerate(run.units):
        points = sorted(unit.sweep, key=lambda point: point.lam)
        x = [point.lam for point in points]
        y = [_value(point, quantity) for point in points]
        color = UNIT_COLOURS[index] if few else "#9a9a9a"
        axes.plot(x, y, color=color, linewidth=1.3 if few else 0.5, alpha=1.0 if few else 0.7, zorder=2)
        if few:
            axes.scatter(x, y, s=12, c=color, zorder=3)
            # Above the dots of all units: an open dot must not hide behind another unit's filled one.
            rest = [point for point in points if point.status != "converged"]
            at = [point.lam for point in rest], [_value(point, quantity) for point in rest]
            axes.scatter(*at, s=12, c="white", edgecolors=color, linewidths=0.9, zorder=4)
        chosen = unit.chosen_point
        if chosen is not None:
            size, edge = (58.0, INK) if few else (13.0, "none")
            fill = color if few else ACCENT
            axes.scatter(
                [chosen.lam],
                [_value(chosen, quantity)],
                s=size,
                c=fill,
                edgecolors=edge,
                linewidths=1.2,
                zorder=5,
            )
    if not few:
        x, y = median_curve(run, quantity)
        axes.plot(x, y, color=INK, linewidth=2.0, zorder=4)


def _value(point: SweepPoint, quantity: str) -> float:
    value: float | None = getattr(point, quantity)
    return float("nan") if value is None else value


def median_curve(run: RunData, quantity: str) -> tuple[list[float], list[float]]:
    """Median over the units that have a finite value, per lambda; nan where none has."""
    medians = []
    for lam in run.lambdas:
        values = [_value(point, quantity) for _, point in run.problems if point.lam == lam]
        defined = [value for value in values if np.isfinite(value)]
        medians.append(float(np.median(defined)) if defined else float("nan"))
    return list(run.lambdas), medians


def _log_if_wide(axes: Axes, run: RunData, quantity: str) -> None:
    """A logarithmic ordinate where positive values span more than a factor of 50."""
    values = [value for _, point in run.problems if np.isfinite(value := _value(point, quantity))]
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")


def _lambda_axis(axes: Axes, lambdas: Sequence[float]) -> None:
    """Symlog axis with 0 one step left of the smallest positive lambda; labels are values of the grid."""
    positive = [lam for lam in lambdas if lam > 0]
    if positive:
        steps = np.diff(np.log10(positive))
        width = float(np.clip(np.median(steps), 0.3, 1.0)) if len(steps) else 1.0
        axes.set_xscale("symlog", linthresh=positive[0], linscale=width)
        axes.set_xlim(-0.15 * positive[0], positive[-1] * 10 ** (0.15 * width))
    stride = max(1, -(-len(positive) // 7))
    # Counted from the largest value, so that both ends of the grid are labelled.
    labelled = [lam for lam in lambdas if lam <= 0] + positive[::-1][::stride][::-1]
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_major_formatter(FixedFormatter([format_lambda(lam) for lam in labelled]))
    axes.xaxis.set_minor_locator(FixedLocator(list(lambdas)) if lambdas else NullLocator())
    axes.xaxis.set_minor_formatter(FixedFormatter([""] * len(lambdas)))


def _legend_handles(run: RunData) -> list[Line2D]:
    handles: list[Line2D] = []
    few = len(run.units) <= MAX_COLOURED_UNITS
    if few:
        for unit, color in zip(run.units, UNIT_COLOURS, strict=False):
            name = f"unit {unit.unit}" + ("" if unit.chosen_point else " (none chosen)")
            handles.append(Line2D([], [], color=color, linewidth=1.6, label=plain(name, 32)))
    else:
        handles.append(Line2D([], [], color="#9a9a9a", linewidth=0.7, label=f"{len(run.units)} single units"))
        handles.append(Line2D([], [], color=INK, linewidth=2.0, label="median over units"))
    edge, fill, size = (INK, "white", 7.0) if few else ("none", ACCENT, 4.0)
    handles.append(_dot("chosen λ", size, fill, edge))
    if few and any(point.status != "converged" for _, point in run.problems):
        handles.append(_dot("not converged", 3.5, "white", INK))
    if run.threshold is not None:
        dashes = (0, (5, 3))
        label = f"threshold {run.threshold:g}"
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=dashes, label=label))
    return handles


def _dot(label: str, size: float, fill: str, edge: str) -> Line2D:
    dot = Line2D([], [], linestyle="none", marker="o", markersize=size, label=label)
    dot.set_markerfacecolor(fill)
    dot.set_markeredgecolor(edge)
    return dot


def overview_cell(units: int, columns: int, height: int, width: int, channels: int) -> Cell:
    """Large cells for up to three units; smaller ones beyond, so that two units stand side by side."""
    budget = COLUMN_BUDGET // columns
    if units <= 3:
        return Cell.fit(height, width, 120, budget, channels)
    return Cell.fit(height, width, 88, min(budget, 160), channels)


def tiles_note(channels: int) -> str:
    """How to read images that are neither grey nor RGB, to stand behind the name of a unit."""
    return f"; {channels} channels, a grey tile each" if has_tiles(channels) else ""


def overview_sheet(blocks: Sequence[tuple[UnitResult, Pixels]], cell: Cell, columns: int) -> Sheet:
    """One block per unit, rows lambda = 0, chosen, largest; block images are uint8 (lambdas, n, C, H, W)."""
    header, row_height = 34, max(cell.height, 56) + GAP
    block_width = LABEL_WIDTH + columns * (cell.width + GAP)
    block_height = header + 3 * row_height + 14
    across = 2 if len(blocks) > 3 and 2 * block_width <= COLUMN_BUDGET + 2 * LABEL_WIDTH else 1
    down = -(-len(blocks) // across)
    sheet = Sheet(2 * MARGIN + across * block_width + (across - 1) * 28, MARGIN + down * block_height)
    for index, (unit, images) in enumerate(blocks):
        x = MARGIN + (index % across) * (block_width + 28)
        y = MARGIN // 2 + (index // across) * block_height
        sheet.fill(x, y + header - 7, block_width - GAP, 1, (200, 200, 200))
        sheet.text(x, y + 14, f"unit {unit.unit}{tiles_note(images.shape[2])}", size=10, bold=True)
        for row, (name, position) in enumerate(
            (("λ = 0", unit.lowest), ("chosen", unit.chosen), ("largest", unit.largest))
        ):
            _overview_row(sheet, (x, y + header + row * row_height), unit, images, cell, columns, name, position)
    return sheet


def _overview_row(
    sheet: Sheet,
    at: tuple[int, int],
    unit: UnitResult,
    images: Pixels,
    cell: Cell,
    columns: int,
    name: str,
    position: int | None,
) -> None:
    x, y = at
    if position is None:
        sheet.text(x, y + 12, f"{name} λ: none" if name == "chosen" else "no sweep", bold=True, color=ACCENT)
        _paste_row(sheet, x + LABEL_WIDTH, y, None, cell, columns)
        return
    point = unit.sweep[position]
    # A sweep that was interrupted or given without 0 must not be labelled as if it started there.
    title = f"λ = {format_lambda(point.lam)}" + ("" if name == "λ = 0" else f" ({name})")
    sheet.text(x, y + 12, title, bold=name == "chosen", color=ACCENT if name == "chosen" else INK)
    sheet.text(x, y + 31, f"rel. activation {format_number(point.relative_activation)}", size=7.5, color=MUTED)
    if point.status != "converged":
        sheet.text(x, y + 48, plain(point.status, 24), size=7.5, color=ACCENT)
    row = images[position] if position < len(images) and point.measured else None
    _paste_row(sheet, x + LABEL_WIDTH, y, row, cell, columns)


def _paste_row(sheet: Sheet, x: int, y: int, images: Pixels | None, cell: Cell, columns: int) -> None:
    """Images uint8 (n, C, H, W) from left to right; flat grey cells where the file holds none."""
    for column in range(columns):
        left = x + column * (cell.width + GAP)
        if images is None:
            sheet.fill(left, y, cell.width, cell.height, PLACEHOLDER)
        else:
            sheet.paste(cell.render(images[column]), left, y)


def unit_sheet(unit: UnitResult, images: Pixels, cell: Cell, columns: int, title: str) -> Sheet:
    """The whole sweep of a unit: rows lambdas, columns images, activation under each, chosen row tinted.

    `images` is uint8 (lambdas, n, C, H, W), in the order of `unit.sweep`.
    """
    header, under = 40, 20
    row_height = max(cell.height, 60) + under + 10
    rows = max(len(unit.sweep), 1)
    width = 2 * MARGIN + LABEL_WIDTH + columns * (cell.width + GAP)
    sheet = Sheet(max(width, 640), header + rows * row_height + MARGIN)
    sheet.text(MARGIN, 20, title, size=10, bold=True)
    for index, point in enumerate(unit.sweep):
        y = header + index * row_height
        chosen = index == unit.chosen
        if chosen:
            sheet.fill(0, y - 6, sheet.width, row_height - 3, HIGHLIGHT)
            sheet.fill(0, y - 6, 5, row_height - 3, (179, 64, 31))
        _sweep_label(sheet, y, point, chosen)
        row = images[index] if index < len(images) and point.measured else None
        _paste_row(sheet, MARGIN + LABEL_WIDTH, y, row, cell, columns)
        for column, activation in enumerate(point.activations[:columns]):
            centre = MARGIN + LABEL_WIDTH + column * (cell.width + GAP) + cell.width / 2
            text = ABSENT if activation is None else format_number(activation)
            sheet.text(centre, y + cell.height + 10, text, size=7, color=MUTED, align="center")
    return sheet


def _sweep_label(sheet: Sheet, y: int, point: SweepPoint, chosen: bool) -> None:
    title = f"λ = {format_lambda(point.lam)}" + (" (chosen)" if chosen else "")
    sheet.text(MARGIN, y + 12, title, bold=chosen, color=ACCENT if chosen else INK)
    lines = [
        f"rel. activation {format_number(point.relative_activation)}",
        f"min. distance {format_number(point.min_distance)}",
    ]
    for line, text in enumerate(lines):
        sheet.text(MARGIN, y + 31 + 17 * line, text, size=7.5, color=MUTED)
    if point.status != "converged":
        sheet.text(MARGIN, y + 65, plain(point.status, 24), size=7.5, color=ACCENT)
