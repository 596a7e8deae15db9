"""The files of a run: their form, their content against a plain forward, and how they are written."""

from __future__ import annotations

import csv
import errno
import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fvlight import cli, results
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.results import write_atomically, write_images, write_metrics, write_summary
from fvlight.zoo import load_network
from tests.helpers import handlers_taken_off, one_thread  # noqa: F401  (a fixture for all tests)

COMMON = ["solver.max_steps=30", "solver.inner_steps=10", "trainer=cpu"]
RUNS = {
    "cell": ["images_per_problem=3", "restarts=2", "lambda_grid.values=[2,0,0.5]"],
    "vgg": [
        "network=vgg19_normalised", "network.weights=random", "layer=conv2_1", "unit=[5,1]",
        "images_per_problem=2", "lambda_grid.values=[0,0.3]",
    ],
}  # fmt: skip
SHAPES = {"cell": (1, 3, 3, 1, 32, 32), "vgg": (2, 2, 2, 3, 10, 10)}


def command(folder: Path, *settings: str) -> int:
    """The command in this process, without the log handlers that Hydra leaves behind."""
    with handlers_taken_off():
        return cli.main([*settings, f"hydra.run.dir={folder}"])


def strict_json(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module", params=sorted(RUNS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run_dir(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / kind
    assert command(folder, *RUNS[kind], *COMMON) == 0
    return folder


@pytest.fixture(scope="module")
def summary(run_dir: Path) -> Any:
    return strict_json(run_dir / "summary.json")


@pytest.fixture(scope="module")
def tensors(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "images.safetensors")


@pytest.fixture(scope="module")
def network(kind: str) -> Network:
    if kind == "vgg":
        return load_network("vgg19_normalised", "random", 0)
    return load_network("hubel_wiesel_cell")


def test_the_files_of_a_run(run_dir: Path, kind: str) -> None:
    for name in ("summary.json", "images.safetensors", "metrics.csv", "report.html", "checkpoints/last.ckpt"):
        assert (run_dir / name).stat().st_size > 0
    assert (run_dir / ".hydra" / "overrides.yaml").is_file()
    pictures = list((run_dir / "figures").glob("*.png"))
    assert pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert not list(run_dir.rglob("*.part"))


def test_summary_has_the_keys_that_others_read(summary: Any, kind: str) -> None:
    assert summary["task"] == "diverse"
    assert summary["network"] == {"cell": "hubel_wiesel_cell", "vgg": "vgg19_normalised"}[kind]
    assert summary["layer"] == {"cell": "complex", "vgg": "conv2_1"}[kind]
    assert summary["threshold"] == {"cell": 0.8, "vgg": 0.9}[kind]
    assert summary["claims"] == []
    assert summary["complete"] is True
    assert [entry["unit"] for entry in summary["units"]] == {"cell": [0], "vgg": [5, 1]}[kind]
    for entry in summary["units"]:
        assert [point["lambda"] for point in entry["sweep"]] == {"cell": [0, 0.5, 2], "vgg": [0, 0.3]}[kind]
        for point in entry["sweep"]:
            wanted = {
                "lambda",
                "mean_activation",
                "relative_activation",
                "min_distance",
                "diversity_gain",
                "steps",
            }
            assert wanted <= point.keys()


def test_derived_numbers_follow_from_the_measured_ones(summary: Any) -> None:
    for entry in summary["units"]:
        first = entry["sweep"][0]
        kept = []
        for point in entry["sweep"]:
            activations = point["activations"]
            assert point["mean_activation"] == pytest.approx(math.fsum(activations) / len(activations), rel=1e-6)
            relative = point["mean_activation"] / first["mean_activation"]
            assert point["relative_activation"] == pytest.approx(relative, rel=1e-6)
            gain = point["min_distance"] / first["min_distance"]
            assert point["diversity_gain"] == pytest.approx(gain, rel=1e-6)
            if relative >= summary["threshold"]:
                kept.append(point["lambda"])
        assert entry["lambda_selected"] == max(kept)


def test_images_lie_on_the_sphere_in_the_documented_form(tensors: dict[str, Tensor], summary: Any, kind: str) -> None:
    assert set(tensors) == {"images", "display"}
    assert tensors["images"].shape == tensors["display"].shape == SHAPES[kind]
    assert tensors["images"].dtype == torch.float32
    assert tensors["display"].dtype == torch.uint8
    norms = tensors["images"].double().flatten(3).norm(dim=3)
    torch.testing.assert_close(norms, torch.full_like(norms, summary["norm"]), rtol=1e-5, atol=0)


def test_display_copy_is_the_images_on_a_screen(tensors: dict[str, Tensor], kind: str) -> None:
    images, display = tensors["images"].double(), tensors["display"].double()
    if kind == "vgg":
        mean = torch.tensor([123.68, 116.779, 103.939], dtype=torch.float64).view(3, 1, 1)
        wanted = (images + mean).clamp(0, 255)
    else:
        wanted = 127.5 + 127.5 * images / images.abs().amax((-1, -2, -3), keepdim=True)
    assert (display - wanted).abs().max() <= 0.5 + 1e-3


def forward(network: Network, images: Tensor) -> dict[str, Tensor]:
    """All layers of a sequential network one after the other, as far as they fit the images."""
    values = {}
    for name, module in network.module.named_children():
        if min(images.shape[-2:]) < 2 and isinstance(module, torch.nn.MaxPool2d):
            break
        if isinstance(module, torch.nn.Conv2d) and min(images.shape[-2:]) < module.kernel_size[0]:
            break
        images = module(images).clone()
        values[name] = images.clone()
    return values


def test_summary_is_what_a_plain_forward_of_the_saved_images_gives(
    tensors: dict[str, Tensor], summary: Any, network: Network
) -> None:
    for u, entry in enumerate(summary["units"]):
        for k, point in enumerate(entry["sweep"]):
            with torch.no_grad():
                values = forward(network, tensors["images"][u, k])
            response = values[summary["layer"]]
            assert response.shape[2:] == (1, 1)
            torch.testing.assert_close(
                response[:, entry["unit"], 0, 0], torch.tensor(point["activations"]), rtol=1e-4, atol=1e-4
            )
            features = values[summary["distance_layer"]].flatten(1).double()
            distances = [(a - b).norm().item() for a, b in combinations(features, 2)]
            scale = math.sqrt(features.shape[1]) if summary["convention"] == "code" else 1
            assert point["min_distance"] == pytest.approx(min(distances) / scale, rel=1e-4)


def test_metrics_tell_how_each_problem_went(run_dir: Path, summary: Any) -> None:
    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        steps.setdefault((row["unit"], row["lambda"], row["start"]), []).append(int(row["step"]))
        assert all(math.isfinite(float(row[key])) for key in ("score", "mean_activation", "min_distance"))
    for entry in summary["units"]:
        for point in entry["sweep"]:
            starts = [
                steps[str(entry["unit"]), repr(float(point["lambda"])), str(start)]
                for start in range(summary["restarts"])
            ]
            assert all(taken == sorted(set(taken)) for taken in starts)
            assert point["steps"] in [taken[-1] for taken in starts]
    assert len(steps) == sum(len(entry["sweep"]) for entry in summary["units"]) * summary["restarts"]


def without_time(path: Path) -> Any:
    content = strict_json(path)
    return {key: value for key, value in content.items() if key not in ("seconds", "command")}


def test_the_same_seed_gives_the_same_files(run_dir: Path, kind: str, tmp_path: Path) -> None:
    assert command(tmp_path / "again", *RUNS[kind], *COMMON) == 0
    assert command(tmp_path / "other", *RUNS[kind], *COMMON, "seed=1", "network.seed=0") == 0
    names = ["images.safetensors", "metrics.csv"]
    names += [path.relative_to(run_dir).as_posix() for path in (run_dir / "figures").iterdir()]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (run_dir / name).read_bytes(), name
    for name in names[:2]:
        assert (tmp_path / "other" / name).read_bytes() != (run_dir / name).read_bytes(), name
    mine = without_time(run_dir / "summary.json")
    assert without_time(tmp_path / "again" / "summary.json") == mine
    assert without_time(tmp_path / "other" / "summary.json")["units"] != mine["units"]


# -- writing -----------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda place: place.write_text("old"))

    def fail(place: Path) -> None:
        place.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FvlightError, match="No space left") as caught:
        write_atomically(path, fail)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_below_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FvlightError, match=r"hydra\.run\.dir"):
        write_atomically(tmp_path / "file" / "below", lambda place: place.write_text("x"))


def test_the_file_takes_its_place_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    replace, seen = results.os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((source.read_text(), target.exists()))
        replace(source, target)

    monkeypatch.setattr(results.os, "replace", watch)
    write_atomically(path, lambda place: place.write_text("whole"))
    assert seen == [("whole", False)]
    assert path.read_text() == "whole"


@pytest.fixture
def nan_is_refused(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_summary_refuses_what_is_no_json(value: float, nan_is_refused: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_summary(nan_is_refused, {"a": value})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    content = {"λ": [1, 2.5, None, "ü"], "b": {"c": True}}
    assert strict_json(write_summary(tmp_path, content)) == content
    images = torch.randn(1, 2, 3, 1, 4, 5, generator=torch.Generator().manual_seed(0)).transpose(4, 5)
    display = images.to(torch.uint8)
    loaded = load_file(write_images(tmp_path, images, display))
    assert torch.equal(loaded["images"], images)
    assert torch.equal(loaded["display"], display)
    path = write_metrics(tmp_path, ["a", "b"], [[1, 0.1], ["x,y", 2e-300]])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "0.1"], ["x,y", "2e-300"]]
