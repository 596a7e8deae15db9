"""The report of a run: figures, self-contained page, terminal table, all from files alone."""

import ast
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from safetensors.numpy import save_file

import fvlight.report
from fvlight.report import figures, html, print_summary_table, write_report
from fvlight.report.figures import median_curve, tradeoff_figure
from fvlight.report.mosaic import Cell, Sheet
from fvlight.report.run_data import format_number, parse_summary, write_atomically

LAMBDAS = (0.0, 0.1, 1.0)
HOSTILE = "<script>alert('x')</script>[bold]$\\alpha$\n漢"


def point(lam: float, images: int = 2, **changes: Any) -> dict[str, Any]:
    relative = 1 / (1 + lam)
    entry = {
        "lambda": lam,
        "mean_activation": 40 * relative,
        "relative_activation": relative,
        "min_distance": 2.0 * (1 + lam),
        "diversity_gain": 1 + lam,
        "steps": 300,
        "status": "converged",
        "activations": [40 * relative] * images,
    }
    return entry | changes


def summary_of(units: int = 2, **changes: Any) -> dict[str, Any]:
    summary = {
        "task": "diverse",
        "network": "vgg19_normalised",
        "layer": "conv3_1",
        "distance_layer": "relu2_2",
        "convention": "code",
        "threshold": 0.9,
        "complete": True,
        "seed": 0,
        "images_per_problem": 2,
        "norm": 1325.8,
        "image_size": [8, 8],
        "precision": "32-true",
        "seconds": 12.3,
        "version": "0.1.0",
        "command": "fvlight diverse --units 10",
        "units": [
            {"unit": 10 + i, "lambda_selected": 0.1, "sweep": [point(lam) for lam in LAMBDAS]} for i in range(units)
        ],
        "claims": [
            {"claim": "A", "source": "Fig. 2", "measured": 2.5, "expected": "> 1", "holds": True},
            {"claim": "B", "source": "Fig. 3", "measured": 0.5, "expected": "> 1", "holds": False},
            {"claim": "C", "source": "Fig. 4", "measured": None, "expected": None, "holds": None},
        ],
        "warnings": ["weights were converted"],
    }
    return summary | changes


def write_run(folder: Path, summary: dict[str, Any], channels: int = 3, size: int = 8, images: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    shape = (len(summary["units"]), len(LAMBDAS), images, channels, size, size)
    display = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save_file({"display": display, "images": np.zeros(shape, np.float32)}, folder / "images.safetensors")
    return folder


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(("channels", "size"), [(3, 24), (1, 32), (3, 5), (5, 13), (12, 20)])
def test_figures_exist_and_have_a_readable_size(tmp_path: Path, channels: int, size: int) -> None:
    run = write_run(tmp_path / "run", summary_of(), channels, size)
    assert write_report(run) == run / "report.html"
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {"tradeoff.png", "images.png", "unit_10.png", "unit_11.png"}
    for name in names:
        height, width, _ = imread(run / "figures" / name).shape
        assert 300 <= height <= 2000
        assert 400 <= width <= 2000


def test_pixels_reach_the_figure_unchanged(tmp_path: Path) -> None:
    """A 5x5 image is found in the sheet as 5x5 squares of one colour each, at the expected magnification."""
    image = np.random.default_rng(1).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    cell = Cell.fit(5, 5, target=120, limit=1400)
    assert (cell.up, cell.height, cell.width) == (24, 120, 120)
    sheet = Sheet(301, 143)
    sheet.paste(cell.render(image), 17, 9)
    sheet.text(200, 70, "label")
    drawn = np.rint(imread(io.BytesIO(sheet.png()))[..., :3] * 255).astype(np.uint8)
    assert drawn.shape == (143, 301, 3)
    expected = np.kron(image.transpose(1, 2, 0), np.ones((24, 24, 1), np.uint8))
    assert np.array_equal(drawn[9:129, 17:137], expected)


def test_large_images_are_reduced_by_block_means() -> None:
    cell = Cell.fit(300, 299, target=120, limit=100)
    assert (cell.down, cell.up, cell.height, cell.width) == (3, 1, 100, 100)
    image = np.zeros((1, 300, 299), np.uint8)
    image[0, :3, :3] = 90
    small = cell.render(image)
    assert small.shape == (100, 100, 3)
    assert small[0, 0].tolist() == [90, 90, 90]
    assert small[1:].max() == 0


@pytest.mark.parametrize(
    ("channels", "size", "across", "up", "down"),
    [(2, 5, 2, 23, 1), (5, 13, 3, 5, 1), (4, 128, 2, 1, 2), (101, 36, 11, 1, 2)],
)
def test_each_channel_of_other_images_is_a_grey_tile(channels: int, size: int, across: int, up: int, down: int) -> None:
    """Tiles of 2 pixels' distance, row by row; each is what a grey image of the same magnification would be."""
    image = np.random.default_rng(2).integers(0, 256, (channels, size, size), dtype=np.uint8)
    cell = Cell.fit(size, size, target=120, limit=1400 // 6, channels=channels)
    assert (cell.up, cell.down, cell.across) == (up, down, across)
    side = size // down * up
    picture = cell.render(image)
    assert picture.shape == (cell.height, cell.width, 3)
    assert cell.width == across * (side + 2) - 2 <= 1400 // 6
    covered = np.zeros(picture.shape[:2], bool)
    for index in range(channels):
        y, x = index // across * (side + 2), index % across * (side + 2)
        blocks = image[index].reshape(size // down, down, size // down, down).mean((1, 3))
        expected = np.kron(np.rint(blocks), np.ones((up, up)))
        for colour in range(3):
            assert np.array_equal(picture[y : y + side, x : x + side, colour], expected)
        covered[y : y + side, x : x + side] = True
    assert (picture[~covered] == 255).all()


def test_page_is_self_contained(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", summary_of()))
    sources = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 4


def test_page_states_results_claims_and_settings(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", summary_of()))
    row = "<td>10</td><td>0.1</td><td>0.909</td><td>1.10</td><td>2.20</td><td>3 of 3</td>"
    assert row in page
    for words in (
        ">holds<",
        ">does not hold<",
        ">not decided<",
        "1325.8",
        "8 \u00d7 8",
        "relu2_2",
        "0, 0.1, 1",
    ):
        assert words in page
    assert "weights were converted" in page
    assert "fvlight diverse --units 10" in page
    assert 'class="banner' not in page


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    hostile = dict.fromkeys(("task", "network", "layer", "distance_layer", "command", "extra"), HOSTILE)
    units = [
        {
            "unit": f"../{HOSTILE}",
            "lambda_selected": None,
            "sweep": [point(lam, status=HOSTILE) for lam in LAMBDAS],
        }
    ]
    claims = [dict.fromkeys(("claim", "source", "measured", "expected", "holds"), HOSTILE)]
    summary = summary_of(units=0, **hostile) | {"units": units, "claims": claims, "warnings": [HOSTILE]}
    run = write_run(tmp_path / "run", summary)
    (run / "figures").mkdir()
    (run / "figures" / "phases.png").write_bytes(b"png")
    (run / "figures" / "captions.json").write_text(json.dumps({"phases.png": HOSTILE}))
    page = page_of(run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert not list(tmp_path.glob("*.png"))
    assert len(list((run / "figures").glob("unit_*.png"))) == 1


def test_nulls_and_nan_statuses_survive(tmp_path: Path) -> None:
    undefined = dict.fromkeys(("mean_activation", "relative_activation", "min_distance", "diversity_gain", "steps"))
    broken = [point(lam, status="nan", activations=[None, None]) | undefined for lam in LAMBDAS]
    settings = dict.fromkeys(("norm", "threshold", "seconds", "images_per_problem", "seed"))
    units = [{"unit": 10, "lambda_selected": None, "sweep": broken}]
    page = page_of(write_run(tmp_path / "run", summary_of() | settings | {"units": units}))
    assert "3 of 3 problems ended with values that are not finite" in page
    assert "No λ was chosen for unit 10" in page
    assert not re.search(r">\s*(None|nan)\s*<", page)


def test_mixed_statuses_are_counted(tmp_path: Path) -> None:
    summary = summary_of()
    summary["units"][0]["sweep"][2].update(status="nan", relative_activation=float("nan"))
    summary["units"][1]["sweep"][1].update(status="max_steps")
    page = page_of(write_run(tmp_path / "run", summary))
    assert "1 of 6 problems ended with values that are not finite (status nan): unit 10 at λ = 1." in page
    assert "1 of 6 problems reached the limit on steps before they converged: unit 11 at λ = 0.1." in page


def test_incomplete_run_without_images_carries_a_banner(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", summary_of(complete=False))
    (run / "images.safetensors").unlink()
    page = page_of(run)
    assert "This run is incomplete" in page
    assert "holds no images" in page
    assert [path.name for path in (run / "figures").iterdir()] == ["tradeoff.png"]


def test_incomplete_sweeps_and_empty_runs_do_not_stop_the_report(tmp_path: Path) -> None:
    summary = summary_of(complete=False)
    summary["units"][0]["sweep"] = summary["units"][0]["sweep"][:1]
    summary["units"][1].update(sweep=[], lambda_selected=None)
    run = write_run(tmp_path / "run", summary)
    page_of(run)
    assert (run / "figures" / "unit_11.png").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "summary.json").write_text(json.dumps({"complete": False}))
    assert "The run holds no results" in page_of(empty)


def test_many_units_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures.MAX_UNIT_FIGURES == html.MAX_UNIT_FIGURES == 32
    for module in (figures, html):
        monkeypatch.setattr(module, "MAX_UNIT_FIGURES", 4)
    run = write_run(tmp_path / "run", summary_of(units=13), size=4)
    page = page_of(run)
    assert len(list((run / "figures").glob("unit_*.png"))) == 4
    assert "The first 12 of 13 units" in page
    assert "9 more units have no figure of their own" in page


def test_extra_figures_are_embedded_and_stale_ones_are_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", summary_of())
    (run / "figures").mkdir()
    (run / "figures" / "phases.png").write_bytes(b"extra")
    (run / "figures" / "unit_999.png").write_bytes(b"stale")
    (run / "figures" / "captions.json").write_text(json.dumps({"phases.png": "Responses to shifted gratings."}))
    page = page_of(run)
    assert "Responses to shifted gratings." in page
    assert page.count("data:image/png;base64,") == 5
    (run / "figures" / "captions.json").write_text("{")
    assert "captions.json could not be read" in page_of(run)


def test_tradeoff_shows_the_values_of_the_file() -> None:
    summary = summary_of(units=9)
    for index, unit in enumerate(summary["units"]):
        unit["sweep"][1]["relative_activation"] = index / 10 if index else None
    run = parse_summary(summary)
    lambdas, medians = median_curve(run, "relative_activation")
    assert lambdas == list(LAMBDAS)
    assert medians == [1.0, pytest.approx(0.45), 0.5]
    left, right = tradeoff_figure(run).axes
    assert left.get_xscale() == "symlog"
    assert left.get_xlim()[0] <= 0
    assert any(np.array_equal(line.get_ydata(), medians) for line in left.get_lines())
    assert right.get_ylabel() == "minimum pairwise distance relative to λ = 0"
    for unit in summary["units"]:
        for entry in unit["sweep"]:
            entry["diversity_gain"] = None
    assert tradeoff_figure(parse_summary(summary)).axes[1].get_ylabel() == "minimum pairwise distance"


def test_display_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", summary_of())
    save_file({"display": np.zeros((2, 3, 8, 8), np.uint8)}, run / "images.safetensors")
    with pytest.raises(ValueError, match="'display' must be"):
        write_report(run)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (99.97, "100"),
        (0.06804, "0.0680"),
        (1325.8, "1326"),
        (-2.346, "-2.35"),
        (1e-7, "1.00e-07"),
        (123456.0, "1.23e+05"),
        (None, "undefined"),
        (float("inf"), "undefined"),
        (True, "undefined"),
    ],
)
def test_numbers_are_formatted_plainly(value: object, text: str) -> None:
    assert format_number(value) == text


def test_table_prints_the_path_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("long directory name " * 8) / "[bold]run" / "report.html"
    stream = io.StringIO()
    print_summary_table(summary_of(units=23, network="[red]net"), path, Console(file=stream, width=60))
    lines = stream.getvalue().splitlines()
    assert lines[-1] == str(path)
    assert "… and 3 more" in lines
    assert "[red]net, conv3_1" in lines[0]
    assert sum("0.909" in line for line in lines) == 20


def test_table_survives_nulls() -> None:
    stream = io.StringIO()
    summary = summary_of() | {"units": [{"unit": 3, "lambda_selected": None, "sweep": []}]}
    print_summary_table(summary, Path("report.html"), Console(file=stream, width=80))
    assert "none" in stream.getvalue()


def test_package_is_independent() -> None:
    """Only files link the report to a run; pyplot holds global state, torch is not needed."""
    folder = Path(fvlight.report.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                assert node.level <= 1
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert not name.startswith(("fvlight", "torch", "matplotlib.pyplot"))
