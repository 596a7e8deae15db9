"""Runs of inversions from the command: realizations, pictures, other runs' images; files, space, noise, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvlight import cli
from fvlight.analysis.inverse import angles, predict
from fvlight.application import build_network, build_task
from fvlight.errors import FvlightError
from fvlight.pictures import fitted
from fvlight.solvers import Evaluation
from fvlight.tasks import InverseTask, RealizationTask
from tests.helpers import handlers_taken_off, no_handlers, one_thread  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "layer=layer1.0.conv2", "image_size=[8,8]"]
COMMON = [*NETWORK, "features=5", "trainer=cpu"]
SHORT = ["task=inverse", *COMMON]
REALIZE = ["task=realization", *COMMON, "targets=3", "solver.max_steps=30", "solver.lbfgs_steps=10"]
DENSE = ["network=densenet_bc", "network.options.depth=10", "network.options.growth=4", "network.weights=random"]
DENSE += ["network.options.num_classes=5", "network.options.dead_class=1", "layer=fc", "image_size=[8,8]"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def realized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of realizations that has ended."""
    folder = tmp_path_factory.mktemp("realizations") / "run"
    with handlers_taken_off():
        assert cli.main([*REALIZE, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def inverted(realized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its inversion."""
    folder = tmp_path_factory.mktemp("inversions") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"realizations={realized}", f"hydra.run.dir={folder}"]) == 0
    return folder


def picture(path: str, size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    """Write a picture of smooth noise; as it is read, (3, h, w)."""
    values = np.random.default_rng(seed).integers(40, 216, (*size, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return torch.from_numpy(values).permute(2, 0, 1) / 255


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        config = compose("config", overrides=[*SHORT, *overrides])
    known = OmegaConf.masked_copy(config, [str(key) for key in config if key != "logger"])
    return OmegaConf.to_container(known, resolve=True)  # type: ignore[return-value]


def summary_of(folder: Path | str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


def tensors_of(folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "images.safetensors")


# -- settings ----------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_task(realized: Path) -> None:
    config = settings(
        f"realizations={realized}", "seed=7", "network.seed=0", "power=1", "dead=0.02", "noise=0.5",
        "noise_samples=3", "critical_space=true", "solver.at_once=4",
    )  # fmt: skip
    task, origin = build_task(config, build_network(config))
    assert isinstance(task, InverseTask)
    assert (task.seed, task.power, task.threshold, task.samples, task.rows_at_once) == (7, 1, 0.02, 32, 4)
    assert task.noise == (0.5, 3)
    assert origin == f"realizations={realized}"
    config = settings(f"realizations={realized}")
    task, _ = build_task(config, build_network(config))
    assert (task.power, task.threshold, task.noise, task.samples, task.rows_at_once) == (2, 1e-3, None, 0, None)


# -- files -------------------------------------------------------------------------------------------------


def test_what_a_run_writes(realized: Path, inverted: Path) -> None:
    before, found = tensors_of(realized), tensors_of(inverted)
    assert set(found) == {
        "images", "display", "raw", "predicted", "responses", "singular_values", "living", "targets", "contributions",
    }  # fmt: skip
    for name in ("images", "display", "raw", "targets"):
        assert torch.equal(found[name], before[name])
    torch.testing.assert_close(found["responses"], before["responses"].double(), rtol=1e-4, atol=1e-5)
    assert found["predicted"].shape == found["singular_values"].shape == found["contributions"].shape == (3, 5)
    assert found["predicted"].dtype == torch.float64
    assert bool(((found["predicted"] * found["responses"]).sum(1) >= 0).all())

    summary = summary_of(inverted)
    assert (summary["task"], summary["features"], summary["power"]) == ("inverse", 5, 2)
    assert (summary["dead_threshold"], summary["noise"], summary["critical_space"]) == (1e-3, "none", False)
    assert summary["images"] == f"realizations={realized}"
    assert summary["complete"] is True
    predicted, response = (angles(found[name], found["targets"]) for name in ("predicted", "responses"))
    for i, unit in enumerate(summary["units"]):
        assert unit["unit"] == f"target {i}"
        assert unit["angle_predicted"] == pytest.approx(float(predicted[i]))
        assert unit["angle_response"] == pytest.approx(float(response[i]))
        assert len(unit["features"]) == 5
        top = unit["features"][0]
        assert top["weight"] == pytest.approx(float(found["predicted"][i, top["feature"]]))
        values = found["singular_values"][i]
        assert unit["confidence"] == pytest.approx(float(1 - values[0] / values[1]))
        assert 0 < unit["relative_gradient"] < 1
        assert unit["status"] == "converged"

    with (inverted / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["problem", "image", "step", "confidence", "relative_gradient"]
    assert [(row["problem"], row["image"], row["step"]) for row in rows] == [(str(i), str(i), "1") for i in range(3)]
    assert float(rows[2]["confidence"]) == pytest.approx(summary["units"][2]["confidence"])
    assert "data:image/png" in (inverted / "report.html").read_text()


def test_targets_do_not_leak_through_files(realized: Path, inverted: Path) -> None:
    """The run's targets taken away, and exchanged: the same predictions to the last bit."""
    for name in ("without", "wrong"):
        changed = tensors_of(realized)
        targets = changed.pop("targets")
        if name == "wrong":
            changed["targets"] = targets.flip(0).contiguous()
        Path(name).mkdir()
        save_file(changed, f"{name}/images.safetensors")
        assert cli.main([*SHORT, f"realizations={name}", f"hydra.run.dir=from_{name}"]) == 0
        found = tensors_of(f"from_{name}")
        for key in ("predicted", "responses", "singular_values", "living"):
            assert torch.equal(found[key], tensors_of(inverted)[key])
        assert ("targets" in found) == (name == "wrong")
    assert "angle_predicted" not in summary_of("from_without")["units"][0]


def test_resumed_inversions_are_the_same(inverted: Path, realized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls, keep = [0], InverseTask._keep

    def stopping(task: InverseTask, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        keep(task, *arguments)

    init = InverseTask.__init__

    def one_by_one(task: InverseTask, *arguments: Any, **options: Any) -> None:
        init(task, *arguments, **options)
        task.pool.capacity = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InverseTask, "__init__", one_by_one)
        patch.setattr(InverseTask, "_keep", stopping)
        typed = [*SHORT, f"realizations={realized}", "checkpoint_seconds=0", "hydra.run.dir=halves"]
        assert cli.main(typed) == 130
        patch.setattr(InverseTask, "_keep", keep)
        capsys.readouterr()
        assert cli.main(["resume=halves"]) == 0
    assert "going on from" in capsys.readouterr().err
    whole, halves = tensors_of(inverted), tensors_of("halves")
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, halves[name], rtol=1e-4, atol=1e-4)  # in float32, one by one


# -- pictures ----------------------------------------------------------------------------------------------


def test_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its pixels are the image, its features those of the network's Jacobian there."""
    rgb = picture("photo.png")
    assert cli.main([*SHORT, "image=photo.png", "hydra.run.dir=out"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert "photo.png" in output
    found, summary = tensors_of("out"), summary_of("out")
    torch.testing.assert_close(found["display"][0, 0, 0] / 255, rgb, rtol=0, atol=1e-6)
    assert not {"targets", "contributions"} & set(found)
    (unit,) = summary["units"]
    assert unit["unit"] == "photo.png"
    assert "angle_predicted" not in unit
    config = settings("image=photo.png")
    task, _ = build_task(config, build_network(config))
    raw = torch.logit(rgb.double())
    rows = torch.autograd.functional.jacobian(lambda u: task.response(u[None])[0], raw).flatten(1)
    with torch.no_grad():
        wanted = predict((rows @ rows.T)[None], task.response(raw[None]), 2)
    assert float(angles(found["predicted"], wanted.objective)) < 0.1
    assert unit["confidence"] == pytest.approx(float(wanted.gap), rel=1e-2)
    assert unit["relative_gradient"] == pytest.approx(float(wanted.gradient), rel=1e-2)


def test_a_folder_of_pictures_also_below_and_of_one_name() -> None:
    picture("photos/a.png", seed=1)
    picture("photos/below/a.png", seed=2)
    assert cli.main([*SHORT, "image=photos", "hydra.run.dir=out"]) == 0
    assert [unit["unit"] for unit in summary_of("out")["units"]] == ["a.png", "below/a.png"]
    found = tensors_of("out")
    assert found["predicted"].shape == (2, 5)
    assert not torch.equal(found["display"][0], found["display"][1])


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (40, 16), (5, 9)])
def test_pictures_of_another_size_are_resized_to_their_middle(size: tuple[int, int]) -> None:
    """A picture that is red in the middle and green at the ends of its longer side."""
    height, width = size
    values = np.zeros((*size, 3), dtype=np.uint8)
    values[..., 1] = 255
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    values[top : top + side, left : left + side] = (255, 0, 0)
    values[height // 2, width // 2] = (128, 0, 0)
    Image.fromarray(values).save("photo.png")
    assert cli.main([*SHORT, "image=photo.png", "resize=true", "hydra.run.dir=out"]) == 0
    display = tensors_of("out")["display"][0, 0, 0].float()
    assert display.shape == (3, 8, 8)
    inner = display[:, 1:-1, 1:-1]
    assert float(inner[0].mean()) > 200
    assert float(inner[1].mean()) < 20


@pytest.mark.parametrize("parameterization", ["fft", "scaled_fft"])
def test_a_picture_by_its_coefficients(parameterization: str, capsys: pytest.CaptureFixture[str]) -> None:
    rgb = picture("photo.png")
    typed = [*SHORT, "image=photo.png", f"parameterization={parameterization}", "hydra.run.dir=out"]
    assert cli.main(typed) == 0, capsys.readouterr().err
    found = tensors_of("out")
    assert found["raw"].shape == (1, 2, 3, 8, 5)
    torch.testing.assert_close(found["display"][0, 0, 0] / 255, rgb, rtol=0, atol=1e-6)


# -- images of other runs ----------------------------------------------------------------------------------


def test_a_run_in_place_of_a_picture(realized: Path, inverted: Path) -> None:
    """As the images look, rounded to 256 levels; targets are not taken from them."""
    assert cli.main([*SHORT, f"image={realized}", "hydra.run.dir=out"]) == 0
    found, known = tensors_of("out"), tensors_of(inverted)
    assert [unit["unit"] for unit in summary_of("out")["units"]] == [f"run {i}" for i in range(3)]
    assert "targets" not in found
    assert float((found["display"].int() - known["display"].int()).abs().max()) <= 1
    assert float(angles(found["responses"], known["responses"]).max()) < 2


def test_transfer_from_a_grey_cell_to_a_network_of_colours(capsys: pytest.CaptureFixture[str]) -> None:
    """Visualised in one network, inverted in another one: every image of the run, grey as three channels."""
    cell = ["network=energy_cell", "network.options.size=8", "network.options.sigma=2.0", "restarts=1"]
    cell += ["images_per_problem=2", "lambda_grid.values=[0,1]", "solver.max_steps=3", "trainer=cpu"]
    assert cli.main([*cell, "hydra.run.dir=cell"]) == 0
    assert cli.main([*SHORT, "image=cell", "hydra.run.dir=out"]) == 0, capsys.readouterr().err
    shown, found = tensors_of("cell")["display"], tensors_of("out")
    assert found["display"].shape == (4, 1, 1, 3, 8, 8)
    before = shown.flatten(0, 2).expand(-1, 3, -1, -1).int().clamp(1, 254)  # black and white have no logit
    assert float((found["display"][:, 0, 0].int() - before).abs().max()) <= 1
    assert all(unit["features"][0]["weight"] is not None for unit in summary_of("out")["units"])


def test_transfer_between_networks(realized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["task=inverse", *DENSE, "trainer=cpu", f"image={realized}", "hydra.run.dir=out"]
    assert cli.main(typed) == 0, capsys.readouterr().err
    summary = summary_of("out")
    assert (summary["network"], summary["features"], summary["aggregation"]) == ("densenet_bc", 5, "identity")
    for unit in summary["units"]:
        assert unit["dead_features"] == 1
        assert 0 <= unit["confidence"] <= 1
        assert 0 <= unit["relative_gradient"] <= 1


# -- space and noise ---------------------------------------------------------------------------------------


def test_a_critical_space(capsys: pytest.CaptureFixture[str]) -> None:
    """Of logits with a dead class; that it is the right one is for `tests/tasks`."""
    realize = ["task=realization", *DENSE, "trainer=cpu", "targets=4", "canonical=0", "solver.max_steps=20"]
    assert cli.main([*realize, "solver.lbfgs_steps=5", "hydra.run.dir=r"]) == 0
    typed = ["task=inverse", *DENSE, "trainer=cpu", "realizations=r", "critical_space=true", "hydra.run.dir=out"]
    assert cli.main(typed) == 0, capsys.readouterr().err
    found, summary = tensors_of("out"), summary_of("out")
    assert summary["critical_space"] is True
    basis = found["critical_space"]
    assert basis.shape[0] == 5
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-10)
    assert float(basis[1].abs().max()) < 1e-3  # nothing of the dead class
    assert not found["predicted"][:, 1].any()
    assert (Path("out") / "report.html").is_file()


def test_noise(realized: Path, inverted: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        typed = [*SHORT, f"realizations={realized}", "noise=0.1", "noise_samples=3", f"seed={seed}"]
        assert cli.main([*typed, "network.seed=0", f"hydra.run.dir={name}"]) == 0
    one, same, other = (tensors_of(name)["predicted"] for name in ("one", "same", "other"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, tensors_of(inverted)["predicted"])
    assert summary_of("one")["noise"] == "0.1, 3 samples"


# -- mistakes ----------------------------------------------------------------------------------------------


def test_a_picture_that_answers_to_nothing_harms_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("photos/a.png", seed=1)
    picture("photos/b.png", seed=2)
    predict_one = InverseTask._predict

    def refused(task: InverseTask, row: int, *arguments: Any) -> None:
        if row == 0:
            raise FvlightError("no living feature")
        predict_one(task, row, *arguments)

    monkeypatch.setattr(InverseTask, "_predict", refused)
    assert cli.main([*SHORT, "image=photos", "hydra.run.dir=out"]) == 0, capsys.readouterr().err
    summary = summary_of("out")
    assert summary["warnings"] == ["no feature answers to a.png: there is nothing to infer"]
    assert [unit["status"] for unit in summary["units"]] == ["nan", "converged"]
    assert summary["units"][0]["features"][0]["weight"] is None
    assert summary["complete"] is True
    assert (Path("out") / "report.html").is_file()


def test_pictures_that_all_answer_to_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The dead class is the only feature."""
    picture("photo.png")
    typed = ["task=inverse", *DENSE, "trainer=cpu", "features=[1]", "image=photo.png", "hydra.run.dir=out"]
    assert cli.main(typed) == 0, capsys.readouterr().err
    summary = summary_of("out")
    assert summary["warnings"] == ["no feature answers to photo.png: there is nothing to infer"]
    assert summary["units"][0]["dead_features"] == 1
    assert (Path("out") / "report.html").is_file()


def prepare(realized: Path) -> None:
    """What some of the mistakes need to exist."""
    picture("photo.png")
    picture("large.png", (12, 16))
    Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8)).save("even.png")
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save("nan.tif")
    Image.fromarray(np.full((8, 8), 3.5, dtype=np.float32)).save("range.tif")
    Path("broken.png").write_bytes(b"no image")
    Path("empty").mkdir()
    (Path("unfinished") / ".hydra").mkdir(parents=True)
    picture("unfinished/figures/figure.png")
    for name in ("nan", "raw", "begun", "maps", "another"):
        found = tensors_of(realized)
        if name == "nan":
            found["raw"][1, 0, 0, 0] = float("nan")
        elif name == "raw":
            del found["raw"]
        elif name == "begun":
            found["responses"][2] = float("nan")
        elif name == "maps":
            found["display"] = torch.zeros(1, 1, 1, 5, 8, 8, dtype=torch.uint8)
        else:
            found["responses"] = found["responses"].flip(0).contiguous() * 1.5
        Path(name).mkdir()
        save_file(found, f"{name}/images.safetensors")


PHOTO = "image=photo.png"
RUN = "realizations=RUN"
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], ["neither image nor realizations", "image=FILE", "realizations=DIRECTORY"]),
    "both": ([PHOTO, RUN], ["image and realizations"]),
    "no file": (["image=gone.png"], ["gone.png", "No such file"]),
    "no image": (["image=broken.png"], ["broken.png"]),
    "no image in a folder": (["image=empty"], ["'empty'", ".png"]),
    "a run without images": (["image=unfinished"], ["unfinished", "images.safetensors", "ended"]),
    "a run of maps": (["image=maps"], ["maps", "5 channels"]),
    "even": (["image=even.png"], ["even.png", "one colour"]),
    "NaN in a file": (["image=nan.tif"], ["nan.tif"]),
    "numbers beyond 1 in a file": (["image=range.tif"], ["range.tif"]),
    "NaN in parameters": (["realizations=nan"], ["image 1", "NaN"]),
    "size": (["image=large.png"], ["large.png", "12 x 16", "8 x 8", "resize=true"]),
    "resize": (["image=large.png", "resize=1"], ["resize=1", "true and false"]),
    "no realizations": (["realizations=gone"], ["gone", "images.safetensors"]),
    "run without raw": (["realizations=raw"], ["realizations=raw", "no parameters", "image="]),
    "run that was interrupted": (["realizations=begun"], ["1 of its 3", "resume=begun"]),
    "realizations of another size": ([RUN, "image_size=[9,8]"], ["(3, 8, 8)", "(3, 9, 8)", "image_size"]),
    "realizations of other features": ([RUN, "features=4"], ["5 features", "4", "features"]),
    "realizations of a parameterization": ([RUN, "parameterization=fft"], ["(3, 8, 8)", "parameterization"]),
    "realizations of other weights": ([RUN, "network.seed=5"], ["layer, aggregation or weights"]),
    "realizations of another layer": ([RUN, "layer=layer1.1.conv2"], ["layer, aggregation or weights"]),
    "realizations of another aggregation": ([RUN, "aggregation.name=center"], ["layer, aggregation or weights"]),
    "responses that are not these": (["realizations=another"], ["layer, aggregation or weights"]),
    "more features than parameters": (
        [PHOTO, "features=null", "image_size=[2,2]", "aggregation.name=mean", "resize=true"],
        ["16 features of 12 parameters", "features=N", "larger"],
    ),
    "power": ([PHOTO, "power=-1"], ["power=-1"]),
    "dead": ([PHOTO, "dead=1"], ["dead=1", "below 1"]),
    "noise": ([PHOTO, "noise=-0.5"], ["sigma=-0.5"]),
    "noise in words": ([PHOTO, "noise=loud"], ["noise=loud", "number"]),
    "no samples of noise": ([PHOTO, "noise=0.5", "noise_samples=0"], ["samples=0"]),
    "space without targets": ([PHOTO, "critical_space=true"], ["known targets", "realizations"]),
    "space": ([RUN, "critical_space=maybe"], ["critical_space=maybe", "true and false"]),
    "rows": ([PHOTO, "solver.at_once=0"], ["at_once=0", "1"]),
    "geometry": ([PHOTO, "parameterization=geometry"], ["3 input channels"]),
    "setting of another task": ([PHOTO, "targets=3"], ["'targets'", "task=realization"]),
    "setting misspelt": ([PHOTO, "critical_spce=true"], ["'critical_spce'", "'critical_space'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, realized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(realized)
    given, words = MISTAKES[name]
    typed = [text.replace("RUN", str(realized)) for text in given]
    taken = {text.partition("=")[0] for text in given}
    rest = [text for text in SHORT if text.partition("=")[0] not in taken]
    assert cli.main([*rest, *typed, "hydra.run.dir=out"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("fvlight: ")
    for word in words:
        assert word in errors[0]
    assert not (Path("out") / "summary.json").exists()


def test_a_parameterization_that_has_no_parameters_for_pictures(
    realized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Maps of geometry: a photograph is no surface."""
    typed = ["task=inverse", "network=srnet", "network.weights=random", "layer=blocks.0", "image_size=[8,8]"]
    typed += ["features=4", "parameterization=geometry", f"image={realized}", "trainer=cpu", "hydra.run.dir=out"]
    assert cli.main(typed) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "parameterization=geometry" in error
    assert "pixels or fft" in error


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_numbers_that_are_no_picture(value: float) -> None:
    rgb = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb[0, 0, 0] = value
    with pytest.raises(FvlightError, match=r"photo: its numbers are not between 0 and 1"):
        fitted("photo", rgb, (8, 8), False)


def test_an_interrupted_run_of_realizations_is_not_inverted(capsys: pytest.CaptureFixture[str]) -> None:
    """One of three has begun when Ctrl-C ends it between two blocks."""
    import signal

    evaluate, calls = RealizationTask.evaluate, [0]

    def interrupted(*arguments: Any) -> Evaluation:
        calls[0] += 1
        if calls[0] == 5:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealizationTask, "evaluate", interrupted)
        assert cli.main([*REALIZE, "solver.at_once=1", "hydra.run.dir=part"]) == 130
    assert summary_of("part")["complete"] is False
    capsys.readouterr()
    assert cli.main([*SHORT, "realizations=part", "hydra.run.dir=out"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "2 of its 3 images have no response" in error
    assert cli.main(["resume=part"]) == 0
    assert cli.main([*SHORT, "realizations=part", "hydra.run.dir=out2"]) == 0
    shutil.rmtree("part")
