"""Pair averages of a unit's images, with the activation of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .mosaic import Cell, Sheet
from .run_data import format_number

CAPTION = (
    "Averages of all pairs of the images at the chosen λ, brought to the images' norm; below each, its activation "
    "relative to the images' mean."
)
COLUMNS, GAP, UNDER = 5, 12, 22


def averages_sheet(display: NDArray[np.uint8], relative: Sequence[float], title: str) -> Sheet:
    """``display`` uint8 (pairs, C, H, W), ``relative`` (pairs,)."""
    height, width = display.shape[-2:]
    cell = Cell.fit(height, width, target=96, limit=160)
    rows = -(-len(display) // COLUMNS)
    sheet = Sheet(2 * GAP + COLUMNS * (cell.width + GAP), 44 + rows * (cell.height + UNDER + GAP))
    sheet.text(GAP, 20, title, size=10, bold=True)
    for index, image in enumerate(display):
        x = GAP + index % COLUMNS * (cell.width + GAP)
        y = 40 + index // COLUMNS * (cell.height + UNDER + GAP)
        sheet.paste(cell.render(image), x, y)
        sheet.text(x + cell.width / 2, y + cell.height + 10, format_number(relative[index]), size=7.5, align="center")
    return sheet
