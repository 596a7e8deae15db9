"""Galleries: every pixel of an image is a square of the sheet, in the row and column of its unit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from fvlight.report.gallery import (
    GalleryLayer,
    GalleryRow,
    UnitPortrait,
    gallery_caption,
    gallery_sheet,
    portrait_sheet,
)
from fvlight.report.mosaic import PLACEHOLDER, Sheet


def images(n: int, side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Without the grey and the white of a sheet."""
    return np.random.default_rng(seed).integers(0, 200, (n, channels, side, side), dtype=np.uint8)


def drawn(sheet: Sheet) -> np.ndarray:
    return np.rint(imread(io.BytesIO(sheet.png()))[..., :3] * 255).astype(np.uint8)


def place_of(image: np.ndarray, times: int, sheet: np.ndarray) -> tuple[int, int]:
    """(y, x) of the only place where an image (3, H, W) stands, enlarged so many times."""
    picture = np.kron(image.transpose(1, 2, 0), np.ones((times, times, 1), np.uint8))
    height, width, _ = picture.shape
    starts = np.argwhere((sheet[: 1 - height, : 1 - width] == picture[0, 0]).all(-1))
    (found,) = [(y, x) for y, x in starts if np.array_equal(sheet[y : y + height, x : x + width], picture)]
    return int(found[0]), int(found[1])


def test_a_row_per_unit_and_a_block_per_layer() -> None:
    small = [images(6, 5, seed=u) for u in range(3)]
    large = [images(6, 24, seed=10 + u) for u in range(2)]
    layers = [
        GalleryLayer("conv1_2", (6, 3, 5, 5), [GalleryRow(u, x) for u, x in enumerate(small)]),
        GalleryLayer("conv3_1", (6, 3, 24, 24), [GalleryRow(u, x) for u, x in enumerate(large)]),
    ]
    sheet = gallery_sheet(layers)
    page = drawn(sheet)
    for block, times in ((small, 19), (large, 4)):
        places = np.array([[place_of(image, times, page) for image in unit] for unit in block])
        assert (np.ptp(places[..., 0], axis=1) == 0).all()  # a unit's images stand in one row,
        assert (np.ptp(places[..., 1], axis=0) == 0).all()  # the units' in columns,
        assert (np.diff(places[..., 0], axis=0) > 0).all()  # in their order
        assert (np.diff(places[..., 1], axis=1) > 0).all()
    texts = [label.text for label in sheet.labels]
    assert [text for text in texts if text.startswith("unit")] == ["unit 0", "unit 1", "unit 2", "unit 0", "unit 1"]
    assert {"conv1_2", "conv3_1", "5 × 5 pixels", "24 × 24 pixels"} <= set(texts)
    assert gallery_caption(layers, 9).startswith("5 of 9 units of 2 layers")


def test_labels_do_not_stand_on_images() -> None:
    rows = [GalleryRow(511, images(6, side), "gain undefined") for side in (5,)]
    sheet = gallery_sheet([GalleryLayer("conv1_2", (6, 3, 5, 5), rows)])
    without = sheet.pixels.copy()
    changed = (drawn(sheet) != without).any(-1)
    covered = (without < 200).all(-1)
    assert changed.any()
    assert not (changed & covered).any()


def test_a_unit_without_images_is_grey() -> None:
    sheet = gallery_sheet([GalleryLayer("a", (4, 3, 8, 8), [GalleryRow(3, None, "no λ chosen")])])
    assert int((sheet.pixels == PLACEHOLDER).all(-1).sum()) == 4 * 96 * 96
    assert "no λ chosen" in [label.text for label in sheet.labels]


@pytest.mark.parametrize("n", [5, 6])
def test_a_texture_stands_beside_its_images_at_their_scale(n: int) -> None:
    found, texture = images(n, 24), images(1, 47, seed=5)[0]
    units = [
        UnitPortrait("conv3_1, unit 13", (n, 3, 24, 24), found, (3, 47, 47), texture, [("index", "0.91")]),
        UnitPortrait("conv3_1, unit 22", (n, 3, 24, 24), None, (3, 47, 47), None, [("index", "undefined")]),
    ]
    sheet = portrait_sheet(units)
    page = drawn(sheet)
    places = [place_of(image, 5, page) for image in found]
    assert len({y for y, _ in places}) == 2
    assert len({x for _, x in places}) == 3
    assert place_of(texture, 5, page)[1] > max(x for _, x in places) + 120
    assert int((sheet.pixels == PLACEHOLDER).all(-1).sum()) == n * 120**2 + 235**2
    assert {"0.91", "undefined", "conv3_1, unit 22"} <= {label.text for label in sheet.labels}
    for label in sheet.labels:
        assert 0 < label.y < sheet.height


def test_images_too_large_are_reduced_as_is_their_texture() -> None:
    unit = UnitPortrait("a", (6, 3, 200, 200), images(6, 200), (3, 399, 399), images(1, 399)[0], [])
    sheet = portrait_sheet([unit])
    ink = (sheet.pixels < 255).any(-1)
    columns = np.flatnonzero(np.diff(ink.any(0).astype(int)))
    widths = np.diff(columns)[::2].tolist()
    assert widths == [100, 100, 100, 200]
