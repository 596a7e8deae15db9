"""The units in numbers: cells of the table, curves of the figure, and files that lack what is asked of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from safetensors.numpy import save_file

from fvlight.report import print_summary_table
from fvlight.report.run_data import parse_summary
from fvlight.report.transformations import (
    Curves,
    description_cells,
    description_headings,
    read_curves,
    transformations_caption,
    transformations_figure,
    transformations_of,
)
from tests.report.test_report import page_of, summary_of, write_run

ROTATION = {"share": 0.333, "low": -67.06, "high": 73.7, "tested": [-90, 90]}
CONTRAST = {"share": 0.625, "low": 0.485, "high": 2.0, "tested": [0, 2]}
UNKNOWN = {"share": None, "low": None, "high": None, "tested": [-90, 90]}
VALUES = {"rotation": np.array([-90.0, -45, 0, 45, 90]), "contrast": np.array([0.0, 0.5, 1, 2])}
IDENTITY = {"rotation": 0.0, "contrast": 1.0}


def described(units: int = 2, **changes: Any) -> dict[str, Any]:
    summary = summary_of(units, **changes)
    for entry in summary["units"]:
        numbers = {"contrast": dict(CONTRAST), "rotation": dict(ROTATION)}
        entry["description"] = {"combination_index": 0.71, "local_dimension": 3.456, "transformations": numbers}
    return summary


def activations(units: int, name: str, images: int = 2) -> np.ndarray:
    return np.random.default_rng(3).uniform(1, 5, (units, images, len(VALUES[name])))


def write_described(folder: Path, summary: dict[str, Any]) -> Path:
    write_run(folder, summary)
    tensors = {}
    for name, values in VALUES.items():
        tensors[name] = activations(len(summary["units"]), name).astype(np.float32)
        tensors[f"{name}.values"], tensors[f"{name}.identity"] = values, np.array(IDENTITY[name])
    save_file(tensors, folder / "transformations.safetensors")
    return folder


@pytest.mark.parametrize(
    ("numbers", "cell"),
    [
        (ROTATION, ("−67 to 74", "33%")),
        (CONTRAST, ("0.48 to ≥ 2", "62%")),
        (ROTATION | {"low": -90.0}, ("≤ −90 to 74", "33%")),
        (ROTATION | {"low": -90.0, "high": 90, "share": 1}, ("all", "100%")),
        (ROTATION | {"low": -1.44, "high": 1.36}, ("−1.4 to 1.4", "33%")),
        (UNKNOWN, ("–", "")),
        ({}, ("–", "")),
    ],
)
def test_ranges_are_written_plainly(numbers: dict[str, Any], cell: tuple[str, str]) -> None:
    summary = described(1)
    summary["units"][0]["description"]["transformations"] = {"rotation": numbers}
    (unit,) = parse_summary(summary).units
    assert description_cells(unit, ["rotation"]) == [("0.710", ""), ("3.46", ""), cell]


def test_columns_are_those_of_all_units() -> None:
    summary = described(3)
    del summary["units"][0]["description"]["transformations"]["contrast"]
    summary["units"][1]["description"]["transformations"] = {"new_kind": {}, "hue": {}}
    del summary["units"][2]["description"]
    units = parse_summary(summary).units
    assert transformations_of(units) == ["rotation", "hue", "new_kind"]
    headings = ["pair averages", "local dimension", "rotation (°)", "hue (°)", "new kind"]
    assert description_headings(units) == headings
    assert description_headings(parse_summary(summary_of()).units) == []
    assert [cell for cell, _ in description_cells(units[2], transformations_of(units))] == ["–"] * 5


def test_the_page_has_the_numbers_and_the_figure(tmp_path: Path) -> None:
    run = write_described(tmp_path / "run", described())
    page = page_of(run)
    row = r"<td>10</td>\s*<td>0.710</td><td>3.46</td><td>−67 to 74<br><span class=\"small\">33%</span></td>"
    assert re.search(row, page)
    assert page.count("data:image/png;base64,") == 5
    assert "What transformations leave of the activation" in page
    height, width, _ = imread(run / "figures" / "transformations.png").shape
    assert 300 <= height <= 500
    assert 500 <= width <= 800
    # the figure of an earlier report is not shown with a run that has none
    (run / "transformations.safetensors").unlink()
    assert page_of(run).count("data:image/png;base64,") == 4


def test_an_experiment_has_one_table_of_all_its_runs(tmp_path: Path) -> None:
    runs = {"first": described(1), "second": summary_of(1), "third": described(2)}
    summary = summary_of(0, experiment="e", runs=runs)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = page_of(tmp_path)
    table = page[page.index("The units in numbers") :]
    assert re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td>", table) == [("first", "10"), ("third", "10"), ("third", "11")]


def lines(figure: Figure, panel: int) -> list[np.ndarray]:
    """The curves of a panel, its two straight lines left out."""
    return [np.asarray(line.get_ydata()) for line in figure.axes[panel].get_lines() if len(line.get_xdata()) > 2]


def test_curves_are_relative_to_the_images_own_activation(tmp_path: Path) -> None:
    """Images that leave their unit silent have none."""
    summary = described()
    run_dir = write_described(tmp_path / "run", summary)
    run = parse_summary(summary)
    rotation, contrast = read_curves(run_dir, run)
    assert (rotation.name, contrast.name) == ("rotation", "contrast")
    raw = activations(2, "rotation")
    np.testing.assert_allclose(rotation.relative, raw / raw[:, :, [2]], rtol=1e-6)
    figure = transformations_figure(run, [rotation, contrast])
    assert len(figure.axes) == 4
    for unit in range(2):
        first, second, median = lines(figure, 2 * unit)
        np.testing.assert_allclose([first, second], rotation.relative[unit])
        np.testing.assert_allclose(median, rotation.relative[unit].mean(0))  # of two
        (tint,) = figure.axes[2 * unit].patches
        assert (tint.get_x(), tint.get_x() + tint.get_width()) == pytest.approx((-67.06, 73.7))
    raw[0, 1, 2] = -1.0
    save_file(
        {"rotation": raw.astype(np.float32), "rotation.values": VALUES["rotation"], "rotation.identity": np.array(0.0)},
        run_dir / "transformations.safetensors",
    )
    for entry in summary["units"]:
        del entry["description"]["transformations"]["contrast"]
    (silent,) = read_curves(run_dir, parse_summary(summary))
    assert np.isnan(silent.relative[0, 1]).all()
    assert np.isfinite(silent.relative[1]).all()
    assert np.isfinite(silent.relative[0, 0]).all()


def test_many_units_are_medians_with_bands() -> None:
    summary = described(30)
    summary["units"][7]["description"]["transformations"] = {"rotation": UNKNOWN}
    run = parse_summary(summary)
    relative = np.random.default_rng(0).uniform(0, 2, (30, 3, 5))
    relative[7] = np.nan
    figure = transformations_figure(run, [Curves("rotation", VALUES["rotation"], relative, 0.0)])
    assert len(figure.axes) == 1
    assert figure.axes[0].get_ylabel() == "29\nunits"
    (median,) = lines(figure, 0)
    each = np.sort([np.sort(relative[u], 0)[1] for u in range(30) if u != 7], axis=0)
    np.testing.assert_allclose(median, each[14])
    bands = [np.sort(band.get_paths()[0].vertices[:, 1]) for band in figure.axes[0].collections]
    assert bands[0][0] < bands[1][0] < bands[1][-1] < bands[0][-1]
    assert "the median of the units" in transformations_caption(run)
    assert "Thin lines" in transformations_caption(parse_summary(described(12)))


def test_units_without_a_chosen_lambda() -> None:
    """In the rows of a few units, and among many: all of them, too."""
    for units, known in ((2, 1), (13, 1), (13, 0)):
        summary = described(units)
        for entry in summary["units"][1:]:
            entry["description"] = {"combination_index": None, "transformations": {"rotation": UNKNOWN}}
        relative = np.full((units, 2, 5), np.nan)
        relative[:known] = 1
        figure = transformations_figure(parse_summary(summary), [Curves("rotation", VALUES["rotation"], relative, 0.0)])
        words = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert words == (["no λ chosen"] if units == 2 else [])


def test_curves_of_a_wrong_shape_are_named(tmp_path: Path) -> None:
    run_dir = write_described(tmp_path / "run", described(2))
    with pytest.raises(ValueError, match="'rotation' must be"):
        read_curves(run_dir, parse_summary(described(3)))


def test_the_terminal_shows_what_fits() -> None:
    for summary, words in ((described(), ("pair", "0.710", "3.46")), (summary_of(), ())):
        stream = io.StringIO()
        print_summary_table(summary, Path("report.html"), Console(file=stream, width=80))
        output = stream.getvalue()
        assert all(word in output for word in words)
        assert ("dimension" in output) == bool(words)
        assert max(len(line) for line in output.splitlines()) <= 80
