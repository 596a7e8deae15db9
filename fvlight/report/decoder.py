"""Pages of learned inversion networks: validation pictures beside their reconstructions, and how the losses fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from safetensors import safe_open

from .figures import UNIT_COLOURS, FigureFile
from .mosaic import DPI, MUTED, Cell, Pixels, Sheet, figure_png
from .populations import finish_axes
from .run_data import UNDEFINED, Column, RunData, UnitTable, finite, write_atomically

MAX_PICTURES, ACROSS = 16, 8
SIDE = 128  # pixels of the longer side
MARGIN, GAP, LABEL, VALUE = 16, 6, 122, 24
Unit = Mapping[str, Any]


def _error(unit: Unit) -> str:
    value = finite(unit.get("error"))
    return UNDEFINED if value is None else f"{value:.1%}"


ERROR = (
    "Error: length of the difference between picture and reconstruction, as a share of the mean distance of two "
    "pictures of the folder; a network that always gave the mean picture would come to about 70 %"
)
TABLE = UnitTable(
    title="Reconstructions of validation pictures",
    subtitle=": learned inversion",
    noun="picture",
    columns=(Column("picture", lambda unit: str(unit.get("unit"))), Column("error", _error)),
    note=lambda summary: f"{ERROR}. None of these pictures was trained on.",
)


def write_decoder(run_dir: Path, run: RunData) -> list[FigureFile]:
    """reconstructions.png and losses.png, where there are images."""
    units, path = (run.summary.get("units") or ())[:MAX_PICTURES], run_dir / "images.safetensors"
    if not path.exists() or not units:
        return []
    with safe_open(path, framework="np") as handle:
        pairs = np.asarray(handle.get_slice("display")[: len(units)])[:, 0]
        losses = np.asarray(handle.get_tensor("losses"))
    sheet, down = pairs_sheet(units, pairs)
    folder = run_dir / "figures"
    write_atomically(folder / "reconstructions.png", sheet.png())
    mean = [error for unit in run.summary["units"] if (error := finite(unit.get("error"))) is not None]
    caption = (
        f"Above the picture, below what the decoder makes of the layer's maps of it. {ERROR}."
        + (f" Mean of all {len(mean)} pictures: {np.mean(mean):.1%}." if mean else "")
        + (f" Reduced by a factor of {down} (mean over blocks)." if down > 1 else "")
    )
    heading = "Validation pictures and their reconstructions"
    written = [FigureFile(folder / "reconstructions.png", "images", heading=heading, caption=caption)]
    if len(losses):
        write_atomically(folder / "losses.png", figure_png(losses_figure(losses)))
        caption = (
            "Mean squared difference of the pixels, photographs' numbers between 0 and 1, by epoch. Training: over an "
            "epoch's crops while it learned from them; validation: after the epoch."
        )
        written.append(FigureFile(folder / "losses.png", "losses", heading="Losses", caption=caption))
    return written


def pairs_sheet(units: Sequence[Unit], pairs: Pixels) -> tuple[Sheet, int]:
    """Pictures above their reconstructions, uint8 (n, 2, C, H, W), and the factor by which they are reduced."""
    _, _, channels, height, width = pairs.shape
    cell = Cell.fit(height, width, SIDE, 2 * SIDE, channels)
    across = min(len(units), ACROSS)
    tall = 2 * cell.height + GAP + VALUE
    lines = -(-len(units) // across)
    sheet = Sheet(2 * MARGIN + LABEL + across * (cell.width + GAP) - GAP, 2 * MARGIN + lines * (tall + GAP))
    for line in range(lines):
        y = MARGIN + line * (tall + GAP)
        sheet.text(MARGIN, y + cell.height // 2, "picture", size=8)
        sheet.text(MARGIN, y + cell.height + GAP + cell.height // 2, "reconstruction", size=8)
        sheet.text(MARGIN, y + 2 * cell.height + GAP + VALUE // 2, "error", size=7.5, color=MUTED)
    for index, (unit, pair) in enumerate(zip(units, pairs, strict=True)):
        x, y = MARGIN + LABEL + index % across * (cell.width + GAP), MARGIN + index // across * (tall + GAP)
        sheet.paste(cell.render(pair[0]), x, y)
        sheet.paste(cell.render(pair[1]), x, y + cell.height + GAP)
        sheet.text(x, y + 2 * cell.height + GAP + VALUE // 2, _error(unit), size=7.5)
    return sheet, cell.down


def losses_figure(losses: NDArray[np.float64]) -> Figure:
    """Training and validation losses (epochs, 2) on a logarithmic axis."""
    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(losses) + 1)
    for column, name in enumerate(("training", "validation")):
        axes.plot(
            epochs, losses[:, column], "o-", color=UNIT_COLOURS[column], markersize=2.5, linewidth=1.4, label=name
        )
    axes.set(xlabel="epoch", ylabel="mean squared difference", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(which="both", labelsize=8)
    finish_axes(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure
