"""Sheets of reconstructions: every picture and what was made of it stands where it should."""

from __future__ import annotations

import numpy as np
import pytest

from fvlight.report.mosaic import figure_png
from fvlight.report.reconstruction import (
    GAP,
    HEADER,
    LINE,
    MARGIN,
    TABLE,
    PictureRow,
    Reconstruction,
    caption,
    curves_figure,
    reconstruction_sheet,
)


def flat(value: int, channels: int = 3) -> np.ndarray:
    return np.full((channels, 40, 50), value, dtype=np.uint8)


def test_pictures_and_their_reconstructions_stand_in_a_grid() -> None:
    rows = [
        PictureRow("one.jpg", flat(10), [Reconstruction(flat(20), 0.05, 0.9), Reconstruction(flat(30), 0.4, 0.1)]),
        PictureRow("two.jpg", flat(40), [Reconstruction(flat(50), 0.06, 0.8), Reconstruction(None, None, None, "nan")]),
    ]
    sheet = reconstruction_sheet(rows, ["conv1", "conv2"])
    enlarged = 224 // 50  # whole pixels
    wide, tall = enlarged * 50 + GAP, enlarged * 40 + LINE + GAP
    found = [
        [int(sheet.pixels[HEADER + y * tall + 80, MARGIN + x * wide + 100, 0]) for x in range(3)] for y in range(2)
    ]
    assert found == [[10, 20, 30], [40, 50, 236]]
    texts = [label.text for label in sheet.labels]
    assert texts[:3] == ["picture", "conv1", "conv2"]
    assert {"error 0.05", "SSIM 0.90"} <= set(texts)
    assert "nan" in texts
    sheet.png()


def test_the_caption_tells_of_channels_without_colours() -> None:
    assert "tile" not in caption(PictureRow("a", flat(1), []))
    assert "5 channels" in caption(PictureRow("a", flat(1, 5), []))


def test_curves_are_of_each_picture_and_their_mean() -> None:
    errors, alike = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.9, 0.8], [0.5, 0.4], [0.2, float("nan")]]
    figure = curves_figure(["conv1", "conv2", "conv3"], errors, alike)
    above, below = figure.axes
    assert [line.get_ydata().tolist() for line in above.get_lines()[:2]] == [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]  # type: ignore[union-attr]
    assert above.get_lines()[2].get_ydata().tolist() == pytest.approx([0.15, 0.35, 0.55])  # type: ignore[union-attr]
    assert [text.get_text() for text in below.get_xticklabels()] == ["conv1", "conv2", "conv3"]
    figure_png(figure)


def test_the_table_holds_a_row_per_picture() -> None:
    unit = {"unit": "a.jpg", "relative_error": 0.0712, "psnr": None, "ssim": 0.5, "steps": 600, "status": "max_steps"}
    headings, rows = TABLE.filled([unit])
    assert headings == ["picture", "relative error", "PSNR (dB)", "SSIM", "steps", "status"]
    assert rows == [["a.jpg", "0.0712", "undefined", "0.500", "600", "max_steps"]]
