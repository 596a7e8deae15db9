"""Runs of realizations from the command: files, settings, beginning again from another run, resuming, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from fvlight import cli
from fvlight.analysis.targets import random_targets
from fvlight.application import build_network, build_task
from fvlight.errors import FvlightError
from fvlight.solvers import Evaluation
from fvlight.tasks import RealizationTask
from fvlight.zoo import load_network
from tests.helpers import handlers_taken_off, no_handlers, one_thread, relative_error  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "layer=layer1.0.conv2", "image_size=[8,8]"]
CELL = ["task=realization", *NETWORK, "features=5", "trainer=cpu"]
SHORT = [*CELL, "targets=3", "solver.max_steps=12", "solver.inner_steps=4", "solver.lbfgs_steps=6"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("realizations") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"hydra.run.dir={folder}"]) == 0
    return folder


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        config = compose("config", overrides=[*CELL, *overrides])
    known = OmegaConf.masked_copy(config, [str(key) for key in config if key != "logger"])
    return OmegaConf.to_container(known, resolve=True)  # type: ignore[return-value]


def task_of(*overrides: str) -> RealizationTask:
    config = settings(*overrides)
    task, _ = build_task(config, build_network(config))
    assert isinstance(task, RealizationTask)
    return task


def summary_of(folder: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


# -- settings ----------------------------------------------------------------------------------------------


def test_the_papers_settings_are_the_defaults() -> None:
    task = task_of()
    assert (task.adam.lr, task.patience.max_steps, task.power, task.floor) == (0.05, 800, 2, 0.1)
    assert task.patience.patience > 800
    assert task.polish is not None
    assert (task.polish.max_evaluations, task.polish.memory, task.polish.gtol, task.polish.ftol) == (300, 10, 0, 0)
    assert task.targets.shape == (8, 5)
    assert task.response.parameterization.sd == 0.01
    aggregation = task.response.aggregation
    assert (aggregation.name, aggregation.size, aggregation.stride) == ("auto", 3, 2)


def test_every_setting_reaches_the_task() -> None:
    task = task_of(
        "seed=7", "targets=4", "canonical=0.25", "features=[1,3,8]", "aggregation.name=mean", "power=1", "floor=0.2",
        "image_size=[9,10]", "parameterization=scaled_fft", "parameterization.sd=0.5",
        "parameterization.decorrelated=false", "parameterization.decay_power=0.5", "solver.lr=0.3",
        "solver.betas=[0.8,0.95]", "solver.eps=1e-4", "solver.max_steps=17", "solver.patience=9", "solver.decay=0.6",
        "solver.at_once=5", "solver.inner_steps=2", "solver.lbfgs_steps=21", "solver.lbfgs_history=3",
    )  # fmt: skip
    assert (task.seed, task.power, task.floor) == (7, 1, 0.2)
    assert task.targets[3].tolist() == [1, 0, 0]
    torch.testing.assert_close(task.targets[:3], random_targets(3, 3, 7), rtol=0, atol=1e-15)
    image, pooling = task.response.parameterization, task.response.aggregation
    assert (image.size, image.sd, image.decorrelated, image.decay_power) == ((9, 10), 0.5, False, 0.5)
    assert (pooling.name, pooling.features) == ("mean", (1, 3, 8))
    assert (task.adam.lr, task.adam.betas, task.adam.eps) == (0.3, (0.8, 0.95), 1e-4)
    assert (task.patience.max_steps, task.patience.patience, task.patience.decay) == (17, 9, 0.6)
    assert (task.pool.capacity, task.inner_steps) == (5, 2)
    assert task.polish is not None
    assert (task.polish.max_evaluations, task.polish.max_iterations, task.polish.memory) == (21, 21, 3)
    assert task_of("solver.lbfgs_steps=0").polish is None


@pytest.mark.parametrize(
    ("canonical", "single"), [("0", []), ("1", [0, 1, 2, 3, 4]), ("0.5", [0, 1, 2, 3]), ("0.25", [0, 2])]
)
def test_a_share_of_the_targets_are_single_features(canonical: str, single: list[int]) -> None:
    """Spread evenly, each once: where there are no more, the rest is random."""
    targets = task_of("targets=8", f"canonical={canonical}").targets
    assert len(targets) == 8
    ones = [int(target.argmax()) for target in targets if target.max() == 1]
    assert ones == single
    drawn = random_targets(8 - len(single), 5, 0)
    torch.testing.assert_close(targets[: len(drawn)], drawn, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("parameterization", "options"),
    [("pixels", "sd=0.01"), ("fft", "decay_power=0, decorrelated=True, sd=0.01"), ("scaled_fft", "decay_power=1")],
)
def test_each_parameterization(parameterization: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*SHORT, "solver.max_steps=2", "solver.lbfgs_steps=1", f"parameterization={parameterization}"]
    assert cli.main([*typed, "hydra.run.dir=out"]) == 0
    said = summary_of(Path("out"))["parameterization"]
    assert said.startswith(f"{parameterization} (")
    assert options in said
    assert load_file("out/images.safetensors")["images"].shape == (3, 1, 1, 3, 8, 8)


def test_maps_of_geometry(capsys: pytest.CaptureFixture[str]) -> None:
    """Of SRNet, with a mask that is solved for."""
    typed = ["task=realization", "network=srnet", "network.weights=random", "layer=blocks.0", "image_size=[6,6]"]
    typed += ["features=4", "parameterization=geometry", "parameterization.continuous_mask=true", "targets=2"]
    typed += ["aggregation.name=center", "solver.max_steps=3", "solver.lbfgs_steps=2", "trainer=cpu"]
    assert cli.main([*typed, "hydra.run.dir=out"]) == 0, capsys.readouterr().err
    found = load_file("out/images.safetensors")
    assert found["raw"].shape == (2, 4, 6, 6)
    normals = found["images"][:, 0, 0, 1:4]
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, 6, 6))
    assert (Path("out") / "report.html").is_file()


# -- files -------------------------------------------------------------------------------------------------


def test_what_a_run_writes(done: Path) -> None:
    found = load_file(done / "images.safetensors")
    assert set(found) == {"images", "display", "raw", "targets", "responses"}
    assert found["images"].shape == found["display"].shape == (3, 1, 1, 3, 8, 8)
    assert found["display"].dtype == torch.uint8
    assert found["raw"].shape == (3, 3, 8, 8)
    rgb = torch.sigmoid(found["raw"])
    assert float((found["display"][:, 0, 0] / 255 - rgb).abs().max()) < 0.51 / 255
    network = load_network("cifar_resnet20", "random", 0)
    assert relative_error(found["images"][:, 0, 0], network.input_space.from_rgb(rgb)) < 1e-6
    with torch.no_grad():
        x = network.module.get_submodule("relu")(network.module.bn1(network.module.conv1(found["images"][:, 0, 0])))
        block = network.module.layer1[0]
        maps = block.conv2(block.relu1(block.bn1(block.conv1(x))))
    wanted = F.max_pool2d(maps, 3, 2).mean((2, 3))[:, :5]
    assert relative_error(found["responses"], wanted) < 1e-4
    torch.testing.assert_close(found["targets"].norm(dim=1), torch.ones(3).double())

    summary = summary_of(done)
    assert (summary["task"], summary["network"], summary["layer"]) == (
        "realization", "cifar_resnet20", "layer1.0.conv2",
    )  # fmt: skip
    assert (summary["features"], summary["power"], summary["floor"], summary["image_size"]) == (5, 2, 0.1, [8, 8])
    assert summary["aggregation"] == "max_mean, 3 x 3, stride 2"
    assert summary["targets"] == "1 random, 2 single features"
    assert summary["complete"] is True
    assert [unit["unit"] for unit in summary["units"]] == ["target 0", "target 1", "target 2"]
    for unit, response, target in zip(summary["units"], found["responses"], found["targets"], strict=True):
        assert unit["cosine"] == pytest.approx(float(F.cosine_similarity(response.double(), target, dim=0)), rel=1e-5)
        assert unit["projection"] == pytest.approx(float(response.double() @ target), rel=1e-5)
        assert (unit["steps"], unit["status"]) == (18, "max_steps")

    with (done / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["problem", "target", "step", "score", "cosine"]
    steps = ["4", "8", "12", "16", "18"]  # three blocks of the first stage, two of the second
    assert [(row["problem"], row["target"], row["step"]) for row in rows] == [
        (str(t), str(t), step) for t in range(3) for step in steps
    ]
    assert float(rows[4]["score"]) > float(rows[0]["score"])
    page = (done / "report.html").read_text()
    assert "data:image/png" in page


def test_a_table_ends_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([*SHORT, "hydra.run.dir=out"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    for word in ("cifar_resnet20, layer1.0.conv2", "target 2", "cosine", "max_steps"):
        assert word in output


def test_resumed_realizations_are_the_same(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted within the second stage; bit for bit."""
    steps, evaluate = [0], RealizationTask.evaluate

    def stopping(*arguments: Any) -> Evaluation:
        steps[0] += 1
        if steps[0] == 17:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealizationTask, "evaluate", stopping)
        assert cli.main([*SHORT, "checkpoint_seconds=0", "hydra.run.dir=halves"]) == 130
    capsys.readouterr()
    assert cli.main(["resume=halves"]) == 0
    assert "going on from" in capsys.readouterr().err
    whole, halves = (load_file(folder / "images.safetensors") for folder in (done, tmp_path / "halves"))
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        assert torch.equal(value, halves[name])
    assert summary_of(done)["units"] == summary_of(tmp_path / "halves")["units"]
    assert (done / "metrics.csv").read_bytes() == (tmp_path / "halves" / "metrics.csv").read_bytes()


def test_silent_targets_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """A dead class has no image; the run goes on without."""
    typed = ["task=realization", "network=densenet_bc", "network.options.depth=10", "network.options.growth=4"]
    typed += ["network.options.num_classes=4", "network.options.dead_class=1", "network.weights=random", "layer=fc"]
    typed += ["image_size=[8,8]", "targets=4", "canonical=1", "solver.max_steps=2", "solver.lbfgs_steps=2"]
    assert cli.main([*typed, "trainer=cpu", "hydra.run.dir=out"]) == 0, capsys.readouterr().err
    summary = summary_of(Path("out"))
    assert summary["aggregation"] == "identity"
    assert any("1 targets (1)" in text for text in summary["warnings"])
    assert summary["units"][1]["projection"] == 0
    assert summary["complete"] is True


# -- from another run --------------------------------------------------------------------------------------


def test_a_run_begins_where_another_ended(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_file(done / "images.safetensors")
    again = [*SHORT, f"start={done}", "solver.max_steps=1", "solver.lr=1e-12", "solver.lbfgs_steps=0"]
    for toward in ("targets", "response", "random"):
        assert cli.main([*again, f"toward={toward}", f"hydra.run.dir={toward}"]) == 0, capsys.readouterr().err
        after = load_file(f"{toward}/images.safetensors")
        torch.testing.assert_close(after["raw"], before["raw"], rtol=0, atol=1e-9)
        wanted = {
            "targets": before["targets"],
            "response": F.normalize(before["responses"].double(), dim=1),
            "random": random_targets(3, 5, 1),
        }[toward]
        torch.testing.assert_close(after["targets"], wanted, rtol=0, atol=1e-7)
        assert summary_of(Path(toward))["targets"] == f"{toward} of {done}"
    first = random_targets(3, 5, 0)
    assert not torch.allclose(after["targets"], first, atol=0.1)  # not the random targets of the run itself


def test_toward_the_prediction_of_an_inversion(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invert = ["task=inverse", *NETWORK, "features=5", "trainer=cpu", f"realizations={done}", "hydra.run.dir=inverse"]
    assert cli.main(invert) == 0, capsys.readouterr().err
    predicted = load_file("inverse/images.safetensors")["predicted"]
    for toward, key in (("predicted", "predicted"), ("targets", "targets")):
        typed = [*SHORT, "start=inverse", f"toward={toward}", "solver.max_steps=2", f"hydra.run.dir={toward}"]
        assert cli.main(typed) == 0, capsys.readouterr().err
        found = load_file(f"{toward}/images.safetensors")
        torch.testing.assert_close(found["targets"], load_file("inverse/images.safetensors")[key])
    assert predicted.shape == (3, 5)


# -- mistakes ----------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no targets": (["targets=0"], ["targets=0", "at least one"]),
    "half a target": (["targets=0.5"], ["targets=0.5", "whole number"]),
    "canonical": (["canonical=1.5"], ["canonical=1.5", "0 to 1"]),
    "power": (["power=-1"], ["power=-1"]),
    "power in words": (["power=two"], ["power=two", "number"]),
    "floor": (["floor=1"], ["floor=1"]),
    "aggregation": (["aggregation.name=max"], ["'max'", "max_mean"]),
    "pooling": (["aggregation.size=0"], ["size=0"]),
    "larger than the map": (["aggregation.size=9"], ["size=9", "8 x 8"]),
    "features": (["features=17"], ["features=17", "16"]),
    "feature twice": (["features=[1,1]"], ["twice"]),
    "one feature": (["features=1"], ["features=1", "2 or more"]),
    "layer": (["layer=layer1.0.conv9"], ["layer1.0.conv9", "layer1.0.conv2"]),
    "size": (["image_size=[8]"], ["image_size=[8]", "list of 2"]),
    "size of nothing": (["image_size=[0,8]"], ["(0, 8)", "1 pixel"]),
    "parameterization of another task": (["parameterization=sphere"], ["'sphere'", "pixels", "task=realization"]),
    "geometry of photographs": (["parameterization=geometry"], ["3 input channels", "SRNet"]),
    "spread": (["parameterization.sd=0"], ["sd=0", "positive"]),
    "truth value": (["parameterization=fft", "parameterization.decorrelated=1"], ["decorrelated=1", "true"]),
    "solver of another task": (["solver=adam"], ["solver.lbfgs_steps", "solver=adam", "leave out"]),
    "second stage": (["solver.lbfgs_steps=2.5"], ["solver.lbfgs_steps=2.5", "whole number"]),
    "history": (["solver.lbfgs_history=0"], ["memory=0", "1"]),
    "learning rate": (["solver.lr=0"], ["solver.lr=0", "positive"]),
    "setting of another task": (["lambda_grid.values=0"], ["'lambda_grid.values'", "task=diverse"]),
    "setting misspelt": (["canonicl=1"], ["'canonicl'", "'canonical'"]),
    "start nowhere": (["start=gone"], ["start=gone", "images.safetensors"]),
    "toward": (["start=DONE", "toward=target"], ["'target'", "'targets'"]),
    "toward what is not there": (["start=DONE", "toward=predicted"], ["toward=predicted", "no predicted", "inverse"]),
    "start of another kind": (["start=other"], ["start=other", "no raw", "realization"]),
    "start of another size": (["start=DONE", "image_size=[9,8]"], ["(3, 3, 8, 8)", "(3, 3, 9, 8)"]),
    "start of other features": (["start=DONE", "features=4"], ["(3, 5)", "4 features"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    save_file({"images": torch.zeros(1), "display": torch.zeros(1)}, "other/images.safetensors")
    given, words = MISTAKES[name]
    typed = [text.replace("DONE", str(done)) for text in given]
    taken = {text.partition("=")[0] for text in given}
    if "solver" in taken:
        taken |= {"solver.max_steps", "solver.inner_steps", "solver.lbfgs_steps"}
    rest = [text for text in SHORT if text.partition("=")[0] not in taken]
    assert cli.main([*rest, *typed, "hydra.run.dir=out"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]
    assert not (Path("out") / "summary.json").exists()


def test_units_of_their_own_under_transformations(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["unit=[4,1]", "power=0", "robust.shift=2", "robust.rotation=5", "hydra.run.dir=out"]
    assert cli.main([*SHORT, *given]) == 0, capsys.readouterr().err
    assert load_file("out/images.safetensors")["targets"].nonzero().tolist() == [[0, 4], [1, 1]]
    summary = summary_of(Path("out"))
    assert summary["targets"] == "units 4, 1"
    assert "shift=2" in summary["robust"]
    assert "robust" not in settings_of_run()
    assert cli.main([*SHORT, "unit=99", "hydra.run.dir=other"]) == 2
    assert "unit=99" in capsys.readouterr().err


def settings_of_run() -> dict[str, Any]:
    """What a run without transformations says."""
    assert cli.main([*SHORT, "hydra.run.dir=plain"]) == 0
    return summary_of(Path("plain"))


def test_a_network_without_a_size_wants_one() -> None:
    config = settings("image_size=null")
    assert build_task(config, build_network(config))[0].response.image_shape == (3, 32, 32)
    config = settings("network=vgg19_normalised", "layer=conv1_1", "image_size=null")
    network = build_network(config)
    with pytest.raises(FvlightError, match="image_size is not set"):
        build_task(config, network)
