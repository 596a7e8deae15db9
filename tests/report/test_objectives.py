"""The report of realizations and inversions: numbers and pixels of the files reach figures, page and table."""

from __future__ import annotations

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

from fvlight.report import print_summary_table, write_report
from fvlight.report.mosaic import Cell
from fvlight.report.objectives import BAR_COLOUR, BARS, Inversion, inversion_sheet, realization_sheet

HOSTILE = "<script>alert('x')</script>[bold]$\\alpha$\n漢"
COMMON = {
    "network": "googlenet", "weights": "default", "layer": "inception4c", "features": 10, "power": 2,
    "parameterization": "fft (sd=0.01)", "aggregation": "max_mean, 3 x 3, stride 2", "image_size": [12, 12],
    "complete": True, "seed": 0, "precision": "64-true", "seconds": 12.3, "version": "0.1.0",
    "command": "fvlight task=...", "claims": [], "warnings": [],
}  # fmt: skip


def unit_vectors(count: int, features: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).exponential(1.0, (count, features)) ** 3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def display_of(count: int, channels: int = 3, side: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 1, 1, channels, side, side), dtype=np.uint8)


def write_files(folder: Path, summary: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    save_file(tensors, folder / "images.safetensors")
    return folder


def realization_summary(count: int, features: int = 10, **changes: Any) -> dict[str, Any]:
    targets = unit_vectors(count, features)
    units = [
        {
            "unit": f"target {i}", "largest_feature": int(targets[i].argmax()), "projection": 3.21 + i,
            "cosine": 0.97 - i / 1000, "steps": 800 + i, "status": "converged",
        }
        for i in range(count)
    ]  # fmt: skip
    return COMMON | {"task": "realization", "floor": 0.1, "features": features, "units": units} | changes


def write_realizations(folder: Path, count: int = 3, channels: int = 3, side: int = 12, **changes: Any) -> Path:
    tensors = {"display": display_of(count, channels, side), "targets": unit_vectors(count, 10)}
    return write_files(folder, realization_summary(count, **changes), tensors)


def inverse_tensors(count: int, features: int, known: bool, channels: int = 3, side: int = 12) -> dict[str, np.ndarray]:
    predicted = unit_vectors(count, features)
    tensors = {
        "display": display_of(count, channels, side), "predicted": predicted,
        "responses": unit_vectors(count, features, 1), "living": np.ones((count, features), np.uint8),
        "singular_values": np.sort(unit_vectors(count, features, 2)),
    }  # fmt: skip
    if known:
        targets = predicted + 0.03 * unit_vectors(count, features, 3)
        shares = unit_vectors(count, features, 4) * 0.5 ** np.arange(features)
        tensors["targets"] = targets / np.linalg.norm(targets, axis=1, keepdims=True)
        tensors["contributions"] = shares / shares.sum(1, keepdims=True)
    return tensors


def inverse_summary(tensors: dict[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    units = []
    for i, vector in enumerate(tensors["predicted"]):
        order = np.argsort(-vector)[:8]
        unit = {
            "unit": f"target {i}" if "targets" in tensors else f"photo {i}.jpg",
            "features": [{"feature": int(k), "weight": float(vector[k])} for k in order],
            "confidence": 0.9 - i / 100, "relative_gradient": 0.0123, "dead_features": i % 2, "status": "converged",
        }  # fmt: skip
        if "targets" in tensors:
            unit |= {"angle_predicted": 4.5 + i, "angle_living": 4.25 + i, "angle_response": 23.4 + i}
        units.append(unit)
    features = tensors["predicted"].shape[1]
    return COMMON | {"task": "inverse", "features": features, "dead": 1e-6, "units": units} | changes


def write_inversions(folder: Path, count: int = 3, features: int = 10, known: bool = True, **changes: Any) -> Path:
    tensors = inverse_tensors(count, features, known)
    return write_files(folder, inverse_summary(tensors, **changes), tensors)


def rewrite(run: Path, index: int, **changes: Any) -> None:
    """Change an entry of `units`."""
    summary = json.loads((run / "summary.json").read_text())
    summary["units"][index] |= changes
    (run / "summary.json").write_text(json.dumps(summary))


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def cells(*texts: object) -> str:
    return "".join(f"<td>{text}</td>" for text in texts)


def figures_of(run: Path) -> set[str]:
    return {path.name for path in (run / "figures").iterdir()}


def drawn(png: bytes) -> np.ndarray:
    return np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)


def bars_of(picture: np.ndarray) -> list[int]:
    """The widths of the bars in a picture, from top to bottom: runs of rows that have their colour."""
    widths = (picture == np.array(BAR_COLOUR)).all(-1).sum(1)
    starts = np.flatnonzero((widths > 0) & (np.roll(widths, 1) == 0))
    return [int(widths[start]) for start in starts]


# -- realizations ------------------------------------------------------------------------------------------


def test_the_page_of_realizations_states_what_the_files_hold(tmp_path: Path) -> None:
    run = write_realizations(tmp_path / "run")
    page = page_of(run)
    largest = unit_vectors(3, 10)[1].argmax()
    assert cells("target 1", largest, "4.21", "0.969", 801, "converged") in page
    for words in ("Realizations of target objectives", "3 realizations: target 0, target 1, target 2", "12 \u00d7 12"):
        assert words in page
    for words in ("λ", "diversity", 'class="banner', "Sweeps"):
        assert words not in page
    assert figures_of(run) == {"images.png"}
    assert page.count("data:image/png;base64,") == 1


def test_realizations_reach_the_figure_unchanged() -> None:
    """12 pixels are squares of 18, below the label of each image."""
    (unit,), image = realization_summary(1)["units"], display_of(1)[0, 0, 0]
    sheet = realization_sheet([unit], [image], Cell.fit(12, 12, 216, 216))
    expected = np.kron(image.transpose(1, 2, 0), np.ones((18, 18, 1), np.uint8))
    picture = drawn(sheet.png())
    rows, columns = np.nonzero((picture == expected[0, 0]).all(-1))
    assert any(np.array_equal(picture[y : y + 216, x : x + 216], expected) for y, x in zip(rows, columns, strict=True))
    assert [label.text for label in sheet.labels] == [f"target 0: feature {unit['largest_feature']}, cos 0.97"]


@pytest.mark.parametrize(
    ("count", "channels", "side"), [(1, 3, 224), (40, 3, 32), (3, 5, 16), (2, 1, 400), (24, 3, 112)]
)
def test_realizations_of_any_number_and_size(tmp_path: Path, count: int, channels: int, side: int) -> None:
    run = write_realizations(tmp_path / "run", count, channels, side)
    page = page_of(run)
    assert ("The first 24 of 40 realizations" in page) == (count == 40)
    assert ("reduced by a factor" in page) == (side == 400)
    height, width, _ = imread(run / "figures" / "images.png").shape
    assert 200 <= width <= 1500
    assert height <= 1500
    assert page.count("<td>converged</td>") == count


def test_states_of_realizations_are_told(tmp_path: Path) -> None:
    """A target that was never begun is a grey field."""
    run = write_realizations(tmp_path / "run", complete=False)
    rewrite(run, 0, cosine=None, projection=None, steps=0, status="interrupted")
    rewrite(run, 1, status="nan", cosine=None)
    rewrite(run, 2, status="max_steps")
    page = page_of(run)
    assert "This run is incomplete" in page
    for words in (
        "ended with values that are not finite (status nan): target 1.",
        "were interrupted: target 0.",
        "reached the limit on steps before they converged: target 2.",
    ):
        assert f"1 of 3 problems {words}" in page
    assert page.count("<td>undefined</td>") == 3
    grey = (drawn((run / "figures" / "images.png").read_bytes()) == 236).all(-1).sum()
    assert grey == pytest.approx(2 * (28 * 12) ** 2, rel=0.001)  # some edges of letters are as grey


# -- inversions --------------------------------------------------------------------------------------------


def test_the_page_of_inversions_states_what_the_files_hold(tmp_path: Path) -> None:
    run = write_inversions(tmp_path / "run")
    page = page_of(run)
    features = json.loads((run / "summary.json").read_text())["units"][1]["features"][:3]
    largest = ", ".join(f"{entry['feature']} ({entry['weight']:.2f})" for entry in features)
    assert cells("target 1", largest, "0.890", "0.0123", 1, "5.50°", "5.25°", "24.4°", "converged") in page
    assert "Inverse feature visualization" in page
    assert "features of the objectives" in page
    for words in ("λ", 'class="banner', "far from an optimum"):
        assert words not in page
    assert figures_of(run) == {"objectives.png", "angles.png", "contributions.png"}
    assert page.count("data:image/png;base64,") == 3


def test_images_without_targets_have_no_angles(tmp_path: Path) -> None:
    run = write_inversions(tmp_path / "run", known=False)
    page = page_of(run)
    assert "3 images: photo 0.jpg, photo 1.jpg, photo 2.jpg" in page
    assert "°" not in page
    assert '<th scope="col">angle' not in page
    assert figures_of(run) == {"objectives.png"}


def test_images_far_from_an_optimum_are_named(tmp_path: Path) -> None:
    run = write_inversions(tmp_path / "run", known=False)
    rewrite(run, 1, relative_gradient=0.51)
    rewrite(run, 2, relative_gradient=0.5)
    assert "1 of 3 images are far from an optimum (relative gradient above 0.5): photo 1.jpg. " in page_of(run)


def test_bars_are_the_largest_weights() -> None:
    """Of one scale over all images, which 0 and the largest weight span."""
    tensors = inverse_tensors(2, 12, known=True)
    units = inverse_summary(tensors)["units"]
    blocks = [
        Inversion(units[0], tensors["display"][0, 0, 0], tensors["predicted"][0], tensors["targets"][0]),
        Inversion(units[1], tensors["display"][1, 0, 0], tensors["predicted"][1]),
    ]
    sheet = inversion_sheet(blocks, Cell.fit(12, 12, 200, 200))
    picture, half = drawn(sheet.png()), sheet.width // 2
    top = max(max(block.weights) for block in blocks)
    weights = sorted(blocks[1].predicted.tolist(), reverse=True)[:8]
    assert bars_of(picture[:, half:]) == [max(1, round(weight / top * BARS)) for weight in weights]
    texts = [label.text for label in sheet.labels]
    order = np.argsort(-tensors["predicted"][0])[:8]
    for feature in order:
        assert f"{tensors['predicted'][0, feature]:.3f} ({tensors['targets'][0, feature]:.3f})" in texts
    assert [text for text in texts if text.isdigit()][:8] == [str(feature) for feature in order]


def test_lines_of_targets_stand_where_their_weight_is() -> None:
    """One feature predicted with weight 1 whose target weighs 0.5: the line is at half of the bar."""
    (unit,) = inverse_summary(inverse_tensors(1, 1, known=True))["units"]
    block = Inversion(unit, np.full((3, 12, 12), 255, np.uint8), np.array([1.0]), np.array([0.5]))
    picture = drawn(inversion_sheet([block], Cell.fit(12, 12, 200, 200)).png())
    row = picture[np.flatnonzero((picture == np.array(BAR_COLOUR)).all(-1).any(1))[3]]
    bar = np.flatnonzero((row == np.array(BAR_COLOUR)).all(-1))
    line = np.flatnonzero((row[bar[0] : bar[-1]] == 0).all(-1)) + bar[0]
    assert bar[-1] - bar[0] + 1 == BARS
    assert line.mean() == pytest.approx(bar[0] + BARS / 2, abs=1)


def test_negative_weights_go_to_the_left() -> None:
    (unit,) = inverse_summary(inverse_tensors(1, 2, known=False))["units"]
    block = Inversion(unit, np.zeros((3, 12, 12), np.uint8), np.array([-0.6, 0.8]))
    assert block.features == [1, 0]
    picture = drawn(inversion_sheet([block], Cell.fit(12, 12, 200, 200)).png())
    assert bars_of(picture) == [round(BARS * 0.8 / 1.4), round(BARS * 0.6 / 1.4)]
    rows = np.flatnonzero((picture == np.array(BAR_COLOUR)).all(-1).any(1))
    first, last = (np.flatnonzero((picture[row] == np.array(BAR_COLOUR)).all(-1)) for row in (rows[0], rows[-1]))
    assert last[-1] == first[0] - 1


@pytest.mark.parametrize(("count", "features", "known"), [(1, 1, True), (40, 10, False), (13, 512, True)])
def test_inversions_of_any_number(tmp_path: Path, count: int, features: int, known: bool) -> None:
    run = write_inversions(tmp_path / "run", count, features, known)
    page = page_of(run)
    assert (f"The first 12 of {count} images" in page) == (count > 12)
    height, width, _ = imread(run / "figures" / "objectives.png").shape
    assert 500 <= width <= 1400
    assert height <= 2000
    assert page.count("<td>converged</td>") == count


def test_undefined_inversions_survive(tmp_path: Path) -> None:
    """One that is wholly undefined, one whose features partly left the search."""
    run = tmp_path / "run"
    tensors = inverse_tensors(3, 10, known=True)
    summary = inverse_summary(tensors)
    nothing = dict.fromkeys(("confidence", "relative_gradient", "angle_predicted", "angle_living", "angle_response"))
    weightless = [{"feature": 0, "weight": None}]
    summary["units"][0] |= nothing | {"features": weightless, "status": "nan"}
    for name in ("predicted", "singular_values", "contributions"):
        tensors[name][0] = np.nan
    tensors["singular_values"][1, 7:] = tensors["contributions"][1, 7:] = np.nan
    page = page_of(write_files(run, summary, tensors))
    assert cells("target 0", *["undefined"] * 3, 0, *["undefined"] * 3, "nan") in page
    assert "1 of 3 problems ended with values that are not finite (status nan): target 0." in page
    assert figures_of(run) == {"objectives.png", "angles.png", "contributions.png"}
    for unit in summary["units"]:
        unit |= nothing
    (run / "summary.json").write_text(json.dumps(summary))
    for path in (run / "figures").iterdir():
        path.unlink()
    write_report(run)
    assert figures_of(run) == {"objectives.png", "contributions.png"}


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    run = write_inversions(tmp_path / "run")
    tensors = inverse_tensors(3, 10, known=True)
    save_file(tensors | {"targets": tensors["targets"][:2]}, run / "images.safetensors")
    with pytest.raises(ValueError, match="'targets' must be"):
        write_report(run)
    del tensors["predicted"]
    save_file(tensors, run / "images.safetensors")
    with pytest.raises(ValueError, match="'predicted'"):
        write_report(run)
    (run / "images.safetensors").unlink()
    assert "holds no images" in page_of(run)


# -- both --------------------------------------------------------------------------------------------------


def test_an_experiment_has_a_table_per_kind(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tensors = inverse_tensors(2, 10, known=True)
    keys = ("task", "network", "layer", "complete", "seconds", "units", "warnings")
    parts = {"make": realization_summary(2), "invert": inverse_summary(tensors), "photos": inverse_summary(tensors)}
    runs = {name: {key: part[key] for key in keys} for name, part in parts.items()}
    for unit in runs["photos"]["units"]:
        unit.pop("angle_living")
    summary = {"task": "experiment", "experiment": "ifv/gn4c", "complete": True, "seed": 0, "runs": runs}
    summary["angles"] = {"predicted": [12.345] * 300}
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    assert page.count("<h2>Realizations</h2>") == page.count("<h2>Predicted objectives</h2>") == 1
    rows = re.findall(r"<tr><td><a href=\"(\w+)/report.html\">\w+</a></td>(.*)</tr>", page)
    assert [name for name, _ in rows] == ["make", "make", "invert", "invert", "photos", "photos"]
    assert rows[2][1].endswith(cells("4.50°", "4.25°", "23.4°", "converged"))
    assert rows[4][1].endswith(cells("4.50°", "–", "23.4°", "converged"))
    assert "Chosen λ" not in page
    assert "12.345" not in page


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    hostile: dict[str, Any] = dict.fromkeys(("network", "layer", "command", "aggregation"), HOSTILE)
    for run in (write_realizations(tmp_path / "a", **hostile), write_inversions(tmp_path / "b", **hostile)):
        rewrite(run, 0, unit=HOSTILE, status=HOSTILE)
        page = page_of(run)
        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize("task", ["realization", "inverse"])
def test_the_table_fits_a_terminal(tmp_path: Path, task: str) -> None:
    """Each unit has one line of 80 characters, cut nowhere."""
    stream = io.StringIO()
    known = inverse_summary(inverse_tensors(23, 512, known=True), network="[red]net")
    summary = known if task == "inverse" else realization_summary(23, network="[red]net")
    print_summary_table(summary, tmp_path / "report.html", Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert lines[-1] == str(tmp_path / "report.html")
    assert lines[0].startswith("[red]net, inception4c: ")
    assert "… and 3 more" in lines
    rows = [re.findall(r"[^│]+", line) for line in lines if "target " in line][-20:]
    first = ["0.900", "0.0123", "0", "4.50°", "23.4°"] if task == "inverse" else ["3.21", "0.970", "800", "converged"]
    assert len(rows) == 20
    assert [cell.strip() for cell in rows[0]][2:] == first
    assert [row[0].strip() for row in rows] == [f"target {i}" for i in range(20)]
