"""The figure of all networks' measures, and the table's cells."""

from __future__ import annotations

import numpy as np

from fvlight.analysis.map_comparison import MEASURES
from fvlight.report.map_quality import HEADINGS, TABLE, measures_figure


def numbers(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


VALUES = {
    "one": {
        "guided": {"share": numbers(0.4, 0.3, 0.5), "conservation": numbers(900.0, 1.0, 2e3)},
        "lrp": {"share": numbers(0.2, 0.1, 0.3), "conservation": numbers(1e-5, 1e-6, 1e-4)},
    },
    "other": {"guided": {"share": numbers(0.6, None, None)}},
}  # fmt: skip


def test_the_figure_shows_every_mean_and_interval() -> None:
    figure = measures_figure(VALUES, {"guided": "guided backpropagation"})
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in shown] == ["share in 10 %", "conservation error"]
    share, error = shown
    assert np.asarray(share.lines[0].get_xdata()).tolist() == [0.4, 0.2]
    assert np.asarray(share.lines[1].get_xdata())[0] == 0.6
    segments = [np.asarray(one) for lines in share.collections for one in lines.get_segments()]  # type: ignore[attr-defined]
    ends = [one[:, 0].tolist() for one in segments if np.isfinite(one).all() and len(one)]
    assert ends == [[0.3, 0.5], [0.1, 0.3]]
    assert (share.get_xscale(), error.get_xscale()) == ("linear", "log")
    assert [text.get_text() for text in share.get_yticklabels()] == ["guided backpropagation", "lrp"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]


def test_the_table_has_a_cell_per_measure_that_applies() -> None:
    units = [
        {"unit": "guided backpropagation", "share": {"value": 0.4, "low": 0.3, "high": 0.5}},
        {"unit": "lrp", "share": {"value": 0.25, "low": None, "high": None}, "entropy": {"value": None}},
    ]
    headings, rows = TABLE.filled(units)
    assert headings == ["method", "share in 10 %"]
    assert rows == [["guided backpropagation", "0.400 [0.300, 0.500]"], ["lrp", "0.250"]]


def test_every_measure_has_a_heading() -> None:
    assert set(HEADINGS) == set(MEASURES)
