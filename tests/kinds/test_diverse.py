"""Runs of diverse images: what is said of each unit after the fit, in all files."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fvlight import cli
from fvlight.analysis.transformations import DEFAULTS
from fvlight.solvers import Evaluation
from fvlight.tasks import DiverseTask
from fvlight.zoo import load_network
from tests.helpers import no_handlers, one_thread  # noqa: F401  (fixtures)

SHORT = ["trainer=cpu", "solver.max_steps=15", "restarts=1", "images_per_problem=3", "lambda_grid.values=[0,0.1]"]
VGG = ["network=vgg19_normalised", "network.weights=random", "layer=conv1_2", "unit=[5,1]", *SHORT]
CELL = ["network=energy_cell", "network.options.size=12", "network.options.sigma=2.0", *SHORT]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Run the command into ``out``: its exit status, its summary and what it wrote to stderr."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        status = cli.main([*arguments, *([] if "resume=out" in arguments else ["hydra.run.dir=out"])])
        path = Path("out/summary.json")
        return status, json.loads(path.read_text()) if path.exists() else None, capsys.readouterr().err

    return call


def test_what_is_said_follows_from_the_saved_images(run: Callable[..., tuple[int, Any, str]]) -> None:
    """The network is run as it is on the images of the file, each turned about the middle; and on pair averages."""
    status, summary, _ = run(*VGG)
    assert status == 0
    images, curves = (load_file(f"out/{name}.safetensors") for name in ("images", "transformations"))
    network = load_network("vgg19_normalised", "random", 0)

    def read(image: torch.Tensor, unit: int) -> float:
        with torch.no_grad():
            return float(network.module.conv1_2(network.module.conv1_1(image[None]).relu())[0, unit])

    assert {name for name in curves if "." not in name} == set(DEFAULTS)
    for u, entry in enumerate(summary["units"]):
        (chosen,) = (k for k, point in enumerate(entry["sweep"]) if point["lambda"] == entry["lambda_selected"])
        templates, unit = images["images"][u, chosen], entry["unit"]
        own = entry["sweep"][chosen]["activations"]
        for name, transformation in DEFAULTS.items():
            assert curves[f"{name}.values"].tolist() == pytest.approx(transformation.values)
            assert float(curves[f"{name}.identity"]) == transformation.identity
            for i, value in ((0, 0), (2, -1)):
                changed = transformation(templates[i][None], transformation.values[value], network.input_space)[0]
                assert float(curves[name][u, i, value]) == pytest.approx(read(changed, unit), rel=1e-3, abs=1e-3)
            middle = transformation.values.index(transformation.identity)
            assert curves[name][u, :, middle].tolist() == pytest.approx(own, rel=1e-4)
            numbers = entry["description"]["transformations"][name]
            fires = curves[name][u] >= 0.5 * curves[name][u, :, [middle]]
            assert numbers["share"] == pytest.approx(float(fires.double().mean()))
            assert numbers["low"] <= transformation.identity <= numbers["high"]
            assert numbers["tested"] == [transformation.values[0], transformation.values[-1]]
        averages = [(templates[i] + templates[j]) / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
        mixed = [read(one * summary["norm"] / one.norm(), unit) for one in averages]
        assert entry["description"]["combination_index"] == pytest.approx(np.mean(mixed) / np.mean(own), rel=1e-4)
        assert 1 <= entry["description"]["local_dimension"] <= 2
    page = Path("out/report.html").read_text()
    assert "The units in numbers" in page
    assert Path("out/figures/transformations.png").read_bytes().startswith(b"\x89PNG")


def test_it_can_be_left_out(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, summary, _ = run(*CELL, "describe=false")
    assert status == 0
    assert "description" not in summary["units"][0]
    assert not Path("out/transformations.safetensors").exists()
    assert "The units in numbers" not in Path("out/report.html").read_text()
    # ... made up for, and left out again: nothing old is shown
    _, summary, _ = run("resume=out", "describe=true")
    assert summary["units"][0]["description"]["local_dimension"] > 1
    assert "The units in numbers" in Path("out/report.html").read_text()
    _, summary, _ = run("resume=out", "describe=false")
    assert "description" not in summary["units"][0]
    page = Path("out/report.html").read_text()
    assert "The units in numbers" not in page
    assert len(re.findall("data:image/png", page)) == 3


def test_a_setting_that_is_no_truth_value(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, summary, errors = run(*CELL, "describe=maybe")
    assert (status, summary) == (2, None)
    assert errors == "fvlight: describe=maybe: there are true and false\n"


def test_grey_images_have_no_hue(run: Callable[..., tuple[int, Any, str]]) -> None:
    _, summary, errors = run(*CELL)
    assert "hue" not in summary["units"][0]["description"]["transformations"]
    assert errors == ""
    assert ">hue" not in Path("out/report.html").read_text()


@pytest.mark.parametrize("place", [["position=mean", "distance_layer=pixels"], ["position=[0,2]"]])
def test_units_read_from_whole_images(place: list[str], run: Callable[..., tuple[int, Any, str]]) -> None:
    status, summary, _ = run(*VGG, "image_size=[9,7]", *place)
    assert status == 0
    images, curves = (load_file(f"out/{name}.safetensors") for name in ("images", "transformations"))
    network = load_network("vgg19_normalised", "random", 0)
    for u, entry in enumerate(summary["units"]):
        k = [point["lambda"] for point in entry["sweep"]].index(entry["lambda_selected"])
        changed = DEFAULTS["rotation"](images["images"][u, k], -90.0, network.input_space)
        with torch.no_grad():
            maps = network.module.conv1_2(network.module.conv1_1(changed).relu())[:, entry["unit"]]
        wanted = maps.mean((1, 2)) if place[0] == "position=mean" else maps[:, 0, 2]
        torch.testing.assert_close(curves["rotation"][u, :, 0], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("broken", [[1], [0, 1], [0, 1, 2, 3]], ids=["one lambda", "one unit", "all"])
def test_problems_that_became_nan(
    broken: list[int], run: Callable[..., tuple[int, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first step on, so that their last finite images are their starts; what is known is said."""
    evaluate = DiverseTask.evaluate

    def nan(task: DiverseTask, raw: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype | None) -> Evaluation:
        score, figures = evaluate(task, raw, rows, dtype)
        return Evaluation(score.where(~torch.isin(rows, torch.tensor(broken)), float("nan")), figures)

    monkeypatch.setattr(DiverseTask, "evaluate", nan)
    status, summary, errors = run(*VGG)
    assert status == 2
    assert "NaN" in errors
    for entry in summary["units"]:
        described = entry.get("description")
        assert (entry["lambda_selected"] is None) == (described is None or described["local_dimension"] is None)
    assert "became NaN" in Path("out/report.html").read_text()


def test_of_an_interrupted_run_what_is_there_is_described(
    run: Callable[..., tuple[int, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One problem at a time, stopped in the second unit's: the first one is described, the second is not yet."""
    from fvlight.training import StopOnInterrupt

    blocks: list[int] = []

    def stop(self: StopOnInterrupt, trainer: Any, task: DiverseTask, *_: Any) -> None:
        blocks.append(1)
        if task.pool.done.sum() == 2 and not self.requested:
            self.requested, trainer.should_stop = signal.SIGINT, True

    monkeypatch.setattr(StopOnInterrupt, "on_train_batch_end", stop)
    status, summary, _ = run(*VGG, "solver.at_once=1", "solver.inner_steps=5")
    assert (status, summary["complete"]) == (130, False)
    first, second = summary["units"]
    assert first["description"]["local_dimension"] >= 1
    assert second["lambda_selected"] is second["description"]["local_dimension"] is None
    page = Path("out/report.html").read_text()
    assert "The units in numbers" in page
    assert run("resume=out")[1]["units"][1]["description"]["local_dimension"] >= 1
