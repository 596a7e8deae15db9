"""Curves over the phase: the arrays reach the axes, wherever the circle is cut open."""

from __future__ import annotations

import numpy as np
import pytest

from fvlight.report.mosaic import figure_png
from fvlight.report.phase_curves import CellCurve, centred, curve_figure, stacked


def test_dots_within_ten_degrees_stand_above_one_another() -> None:
    phases = np.array([40.0, -170.0, 42.0, 100.0, 47.0, 111.0])
    assert stacked(phases).tolist() == [1, 1, 2, 1, 3, 1]
    assert stacked(np.array([5.0, np.nan])).tolist() == [1, 1]
    assert len(stacked(np.empty(0))) == 0


def test_the_circle_is_cut_open_opposite_to_phase_0() -> None:
    assert centred(np.array([0.0, 179.0, 181.0, 359.0])).tolist() == [0, 179, -179, -1]


@pytest.mark.parametrize("subunits", [0, 3])
def test_curves_and_dots_are_drawn_where_they_belong(subunits: int) -> None:
    degrees = np.arange(0, 360, 2.0)
    response = np.cos(np.deg2rad(degrees - 30))
    parts = np.stack([response / (k + 2) for k in range(subunits)]) if subunits else np.empty((0, len(degrees)))
    cell = CellCurve("cell", response, parts, np.array([30.0, 350.0]), np.array([1.0, 0.7]))
    other = CellCurve("other", np.ones(180), parts, np.array([np.nan, 3.0]), np.array([np.nan, 1.0]))
    unborn = CellCurve("never begun", np.ones(180), parts, np.full(2, np.nan), np.full(2, np.nan))
    figure = curve_figure([cell, other, unborn])
    assert figure_png(figure).startswith(b"\x89PNG")
    above, _, _, below, _, _ = figure.axes
    *curves, dots = above.get_lines()[: subunits + 2]
    assert len(curves) == subunits + 1
    for curve, scale in zip(curves, [*(1 / (k + 2) for k in range(subunits)), 1], strict=True):
        x, y = curve.get_data()
        assert (np.diff(x) > 0).all()  # no stroke across the figure
        np.testing.assert_allclose(y, scale * np.cos(np.deg2rad(x - 30)), atol=1e-12)
    assert np.transpose(dots.get_data()).tolist() == [[30, 1], [-10, 0.7]]
    assert np.transpose(below.get_lines()[0].get_data()).tolist() == [[30, 1], [-10, 1]]
