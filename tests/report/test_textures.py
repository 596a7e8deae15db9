"""The report of textures: the numbers and pixels of the files reach the figure, the page and the table."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from safetensors.numpy import save_file

from fvlight.report import figures, print_summary_table, textures, write_report
from fvlight.report.textures import TextureBlock, TextureUnit, texture_sheet, texture_units

HOSTILE = "<script>alert('x')</script>[bold]$\\alpha$\n漢"


def activations_of(units: int, side: int) -> np.ndarray:
    """Between 10 and 50, other ones for each unit."""
    return np.random.default_rng(3).uniform(10, 50, (units, side - 1, side - 1)).astype(np.float32)


def summary_of(activations: np.ndarray, **changes: Any) -> dict[str, Any]:
    side = activations.shape[1] + 1
    units = [
        {
            "unit": 10 + u,
            "mean_activation": float(values.mean()),
            "least_activation": float(values.min()),
            "largest_activation": float(values.max()),
            "steps": 300 + u,
            "status": "converged",
        }
        for u, values in enumerate(activations)
    ]
    summary = {
        "task": "texture", "network": "vgg19_normalised", "weights": "default", "layer": "conv3_1", "restarts": 1,
        "norm": 1325.8, "image_size": [side, side], "texture_size": [2 * side - 1] * 2, "places": [side - 1] * 2,
        "complete": True, "seed": 0, "precision": "32-true", "seconds": 12.3, "version": "0.1.0",
        "command": "fvlight task=texture", "units": units, "claims": [], "warnings": [],
    }  # fmt: skip
    return summary | changes


def write_run(folder: Path, units: int = 2, side: int = 8, channels: int = 3, **changes: Any) -> Path:
    folder.mkdir()
    activations = activations_of(units, side)
    (folder / "summary.json").write_text(json.dumps(summary_of(activations, **changes)))
    shape = (units, 1, 1, channels, 2 * side - 1, 2 * side - 1)
    display = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save_file({"display": display, "activations": activations}, folder / "images.safetensors")
    return folder


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def block_of(activations: np.ndarray, channels: int = 3) -> TextureBlock:
    side = activations.shape[0] + 1
    display = np.random.default_rng(1).integers(0, 256, (channels, 2 * side - 1, 2 * side - 1), dtype=np.uint8)
    (unit,) = texture_units(summary_of(activations[None]))
    return TextureBlock(unit, display, activations)


def drawn(png: bytes) -> np.ndarray:
    return np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)


def place_of(picture: np.ndarray, sheet: np.ndarray) -> tuple[int, int]:
    """Where a picture stands in a sheet, pixel by pixel; it does exactly once."""
    height, width, _ = picture.shape
    views = np.lib.stride_tricks.sliding_window_view(sheet, (height, width), (0, 1))
    corner = (sheet[: views.shape[0], : views.shape[1]] == picture[0, 0]).all(-1)
    found = [(y, x) for y, x in np.argwhere(corner) if (sheet[y : y + height, x : x + width] == picture).all()]
    assert len(found) == 1
    return int(found[0][0]), int(found[0][1])


# -- the figure --------------------------------------------------------------------------------------------


def test_textures_and_maps_reach_the_figure_unchanged() -> None:
    """15 pixels are squares of 16, 7 places squares of 34; the map's colours are viridis' from 0 to its largest."""
    block = block_of(activations_of(1, 8)[0])
    sheet = drawn(texture_sheet([block]).png())
    texture = np.kron(block.texture.transpose(1, 2, 0), np.ones((16, 16, 1), np.uint8))
    y, x = place_of(texture, sheet)
    shares = block.activations / block.activations.max()
    colours = matplotlib.colormaps["viridis"](shares)[..., :3]
    places = np.kron(np.rint(colours * 255).astype(int), np.ones((34, 34, 1), int))
    right = x + texture.shape[1]
    found = sheet[y : y + places.shape[0], right:].astype(int)
    distance = [np.abs(found[:, at : at + places.shape[1]] - places).max() for at in range(150)]
    assert min(distance) <= 1
    bar = sheet[y : y + places.shape[0], right + int(np.argmin(distance)) + places.shape[1] + 11 + 6]
    ends = np.rint(np.array([matplotlib.colormaps["viridis"](value)[:3] for value in (1.0, 0.0)]) * 255)
    assert np.abs(bar[[0, -1]] - ends).max() <= 1


@pytest.mark.parametrize(
    ("values", "limits"), [((10, 50), (0, 50)), ((-5, 20), (-5, 20)), ((-9, -2), (-9, 0)), ((0, 0), (0, 0))]
)
def test_zero_is_among_the_colours(values: tuple[float, float], limits: tuple[float, float]) -> None:
    activations = np.full((4, 4), values[0], np.float32)
    activations[1, 2] = values[1]
    block = block_of(activations)
    assert block.limits == limits
    assert block.coloured().shape == (3, 4, 4)
    texture_sheet([block]).png()


def test_places_are_told_as_centres_of_crops() -> None:
    """A crop of 24 pixels that begins at 0 ends at 23, about 11.5; with all places the last ends at 46."""
    block = block_of(np.ones((23, 23), np.float32))
    assert block.texture.shape[1] == 47
    assert block.centres(0) == block.centres(1) == (11.5, 33.5)
    whole = TextureBlock(block.unit, block.texture, np.ones((24, 24), np.float32))
    assert whole.centres(0) == (11.5, 34.5)
    assert whole.centres(0)[1] + 11.5 == 46


@pytest.mark.parametrize(("units", "across", "width"), [(1, 1, 700), (2, 2, 1500), (4, 2, 1500), (24, 3, 1500)])
def test_the_figure_stays_readable(tmp_path: Path, units: int, across: int, width: int) -> None:
    run = write_run(tmp_path / "run", units, side=24)
    write_report(run)
    found = imread(run / "figures" / "textures.png")
    assert width / 2 < found.shape[1] <= width
    assert found.shape[0] <= 2000
    blocks = [block_of(activations_of(units, 24)[u]) for u in range(units)]
    texts = [label for label in texture_sheet(blocks).labels if label.text.startswith("unit ")]
    assert len(texts) == units
    assert len({label.x for label in texts}) == across


@pytest.mark.parametrize(("channels", "side"), [(1, 1), (1, 252), (5, 6), (2, 1)])
def test_textures_of_any_size_and_channels(tmp_path: Path, channels: int, side: int) -> None:
    shape = (2, max(side - 1, 1), max(side - 1, 1))
    run = write_run(tmp_path / "run", channels=channels, side=max(side, 2))
    if side == 1:
        display = np.zeros((2, 1, 1, channels, 1, 1), np.uint8)
        save_file({"display": display, "activations": np.ones(shape, np.float32)}, run / "images.safetensors")
    page = page_of(run)
    assert "data:image/png" in page
    assert ("reduced by a factor" in page) == (side == 252)


def test_many_units_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, textures):
        monkeypatch.setattr(module, "MAX_TEXTURES", 3)
    page = page_of(write_run(tmp_path / "run", units=5))
    assert "The first 3 of 5 units" in page
    assert page.count("<td>converged</td>") == 5


# -- the page ----------------------------------------------------------------------------------------------


def test_the_page_states_what_the_files_hold(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = page_of(run)
    unit = json.loads((run / "summary.json").read_text())["units"][1]
    numbers = [f"{unit[key]:.1f}" for key in ("mean_activation", "least_activation", "largest_activation")]
    cells = ["11", *numbers, "301", "converged"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    for words in ("Shift-invariant textures", "8 \u00d7 8", "15 \u00d7 15", "7 \u00d7 7", "in no crop"):
        assert words in page
    for words in ("λ", "lambda", "diversity", 'class="banner'):
        assert words not in page
    sources = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert all(source.startswith("data:") for source in sources)
    assert page.count("data:image/png;base64,") == 1
    assert {path.name for path in (run / "figures").iterdir()} == {"textures.png"}
    assert page_of(run).count("data:image/png;base64,") == 1  # the old figure is not taken for another's


def test_every_place_leaves_nothing_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", places=[8, 8])
    assert "in no crop" not in page_of(run)


def test_states_are_told(tmp_path: Path) -> None:
    """One unit that never began, one that became NaN: grey, and named in the banners."""
    run = write_run(tmp_path / "run", units=3, complete=False)
    summary = json.loads((run / "summary.json").read_text())
    undefined = dict.fromkeys(("mean_activation", "least_activation", "largest_activation"))
    summary["units"][0] |= undefined | {"steps": 0, "status": "interrupted"}
    summary["units"][2] |= {"status": "nan"}
    (run / "summary.json").write_text(json.dumps(summary))
    activations = activations_of(3, 8)
    activations[0] = np.nan
    display = np.zeros((3, 1, 1, 3, 15, 15), np.uint8)
    save_file({"display": display, "activations": activations}, run / "images.safetensors")
    page = page_of(run)
    assert "This run is incomplete" in page
    assert "1 of 3 problems ended with values that are not finite (status nan): unit 12." in page
    assert "1 of 3 problems were interrupted: unit 10." in page
    assert "<td>undefined</td>" in page
    picture = drawn((run / "figures" / "textures.png").read_bytes())
    grey = (picture == 236).all(-1).sum()
    assert grey == pytest.approx(240**2 + 238**2, rel=0.01)  # a texture of 15 · 16 pixels, a map of 7 · 34


def test_a_run_without_images_has_its_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "images.safetensors").unlink()
    page = page_of(run)
    assert "holds no images" in page
    assert page.count("<td>converged</td>") == 2


def test_activations_that_are_missing_or_misshapen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    display = np.zeros((2, 1, 1, 3, 15, 15), np.uint8)
    save_file({"display": display}, run / "images.safetensors")
    with pytest.raises(ValueError, match="'activations'"):
        write_report(run)
    save_file({"display": display, "activations": np.zeros((2, 49), np.float32)}, run / "images.safetensors")
    with pytest.raises(ValueError, match="'activations' must be"):
        write_report(run)


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    hostile: dict[str, Any] = dict.fromkeys(("network", "layer", "command", "extra"), HOSTILE)
    run = write_run(tmp_path / "run", **hostile)
    summary = json.loads((run / "summary.json").read_text())
    summary["units"][0] |= {"unit": HOSTILE, "status": HOSTILE}
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


# -- the table ---------------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    summary = summary_of(activations_of(23, 8), network="[red]net")
    print_summary_table(summary, tmp_path / "report.html", Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert lines[-1] == str(tmp_path / "report.html")
    assert lines[0].startswith("[red]net, conv3_1")
    assert re.findall(r"\w+", lines[2]) == ["unit", "mean", "least", "largest", "steps", "status"]
    assert "… and 3 more" in lines
    assert sum("converged" in line for line in lines) == 20
    unit = TextureUnit.from_json(summary["units"][0])
    numbers = [f"{value:.1f}" for value in (unit.mean, unit.least, unit.largest) if value is not None]
    assert re.findall(r"[\w.]+", lines[4]) == ["10", *numbers, "300", "converged"]
