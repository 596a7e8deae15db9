"""Runs of input reconstruction from the command: files, settings, resuming, mistakes; the claims of its experiment."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fvlight import cli
from fvlight.solvers import Evaluation
from fvlight.tasks import ReconstructionTask
from fvlight.zoo import load_network
from tests.helpers import full_map, handlers_taken_off, no_handlers, one_thread  # noqa: F401

NETWORK = ["network=cifar_resnet20", "network.weights=random", "layer=layer1.0.conv2"]
SHORT = ["task=reconstruction", *NETWORK, "image_size=[12,10]", "trainer=cpu"]
SHORT += ["solver.max_steps=12", "solver.inner_steps=4", "solver.lbfgs_steps=6"]


def save_pictures(folder: Path, count: int = 3) -> Path:
    """Smooth pictures of several sizes, one of them grey."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        noise = torch.randint(0, 256, (4, 5, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(noise.numpy()).resize((20 + 3 * i, 24), Image.Resampling.BICUBIC)
        (picture.convert("L") if i == 1 else picture).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures") / "folder")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("reconstruction") / "run"
    with handlers_taken_off():
        assert cli.main([*SHORT, f"image={pictures}", "jitter=1", f"hydra.run.dir={folder}"]) == 0
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_run_leaves_pictures_images_and_numbers(done: Path) -> None:
    summary, found = summary_of(done), load_file(done / "images.safetensors")
    network = load_network("cifar_resnet20", "random", 0)
    assert found["images"].shape == found["originals"].shape == found["display"].shape == (3, 1, 1, 3, 12, 10)
    assert torch.equal(found["shown_originals"], network.input_space.to_display(found["originals"]))
    assert [unit["unit"] for unit in summary["units"]] == ["0.png", "1.png", "2.png"]
    grey = network.input_space.to_rgb(found["originals"][1, 0, 0])
    torch.testing.assert_close(grey, grey[:1].expand(3, -1, -1), rtol=0, atol=1e-5)
    values, targets = (
        full_map(network.module, "layer1.0.conv2", found[key].flatten(0, 2)).detach() for key in ("images", "originals")
    )
    errors = (values - targets).flatten(1).norm(dim=1) / targets.flatten(1).norm(dim=1)
    for unit, error in zip(summary["units"], errors.tolist(), strict=True):
        assert unit["relative_error"] == pytest.approx(error, rel=1e-4)
        assert (unit["steps"], unit["status"]) == (18, "max_steps")
        assert 0 < unit["psnr"] < 60
        assert -1 <= unit["ssim"] <= 1
    assert summary["total_variation"] == pytest.approx(float(cli.configurations(SHORT)[""]["tv"]))
    assert summary["layer_shape"] == [16, 12, 10]
    assert summary["complete"] is True

    with (done / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["problem", "picture", "step", "score", "relative_error"]
    steps = ["4", "8", "12", "16", "18"]
    assert [(row["picture"], row["step"]) for row in rows] == [(f"{i}.png", step) for i in range(3) for step in steps]
    assert float(rows[4]["relative_error"]) < float(rows[0]["relative_error"])
    page = (done / "report.html").read_text()
    for word in ("Input reconstruction", "relative error", "0.png", "data:image/png", "shown_originals"):
        assert word in page


def test_a_table_ends_the_run(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([*SHORT, f"image={pictures / '0.png'}", "hydra.run.dir=out"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    for word in ("layer1.0.conv2: reconstructions", "0.png", "SSIM", "max_steps"):
        assert word in output


def test_resumed_reconstructions_are_the_same(
    done: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted within either stage, in the middle of a block; bit for bit."""
    typed = [*SHORT, f"image={pictures}", "jitter=1", "checkpoint_seconds=0"]
    whole = load_file(done / "images.safetensors")
    for stop in (6, 15):
        steps, evaluate = [0], ReconstructionTask.evaluate

        def stopping(*arguments: Any, steps: Any = steps, stop: int = stop, evaluate: Any = evaluate) -> Evaluation:
            steps[0] += 1
            if steps[0] == stop:
                raise KeyboardInterrupt
            return evaluate(*arguments)  # type: ignore[no-any-return]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReconstructionTask, "evaluate", stopping)
            assert cli.main([*typed, f"hydra.run.dir=halves{stop}"]) == 130
        assert cli.main([f"resume=halves{stop}"]) == 0
        assert "going on from" in capsys.readouterr().err
        halves = load_file(f"halves{stop}/images.safetensors")
        assert whole.keys() == halves.keys()
        for name, value in whole.items():
            assert torch.equal(value, halves[name])
        assert summary_of(done)["units"] == summary_of(tmp_path / f"halves{stop}")["units"]
        assert (done / "metrics.csv").read_bytes() == (tmp_path / f"halves{stop}" / "metrics.csv").read_bytes()


def test_starts_solvers_and_a_share_of_the_pictures(
    done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*SHORT, f"image={pictures}"]
    stay = ["solver=momentum", "solver.lr=1e-20", "solver.max_steps=1", "solver.lbfgs_steps=0"]
    assert cli.main([*typed, f"start={done}", *stay, "hydra.run.dir=again"]) == 0, capsys.readouterr().err
    torch.testing.assert_close(
        load_file("again/images.safetensors")["images"], load_file(done / "images.safetensors")["images"]
    )
    assert summary_of(Path("again"))["units"][0]["steps"] == 1
    two = ["pictures=2", f"start={pictures / '0.png'}", *stay, "hydra.run.dir=two"]
    assert cli.main([*typed, *two]) == 0, capsys.readouterr().err
    found = summary_of(Path("two"))["units"]
    assert [unit["unit"] for unit in found] == ["0.png", "1.png"]
    assert found[0]["relative_error"] < 1e-5 < 0.1 < found[1]["relative_error"]


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no picture": (["image=null"], ["image is not set", "image=FILE"]),
    "missing": (["image=gone.png"], ["gone.png"]),
    "corrupt": (["image=broken.png"], ["broken.png", "cannot read"]),
    "empty folder": (["image=empty"], ["no images", "empty"]),
    "no share": (["pictures=0"], ["pictures=0", "1 or more"]),
    "another size": (["resize=false"], ["24 x 20", "12 x 10", "resize=true"]),
    "truth value": (["resize=1"], ["resize=1", "true"]),
    "size": (["image_size=[12]"], ["image_size=[12]", "list of 2"]),
    "size of nothing": (["image_size=[0,8]"], ["(0, 8)", "1 pixel"]),
    "layer": (["layer=layer1.0.conv9"], ["layer1.0.conv9", "layer1.0.conv2"]),
    "weight": (["tv=-1"], ["tv=-1", "negative"]),
    "weight in words": (["lp=none"], ["lp=none", "number"]),
    "power": (["power=0.5"], ["power=0.5", "at least 1"]),
    "strength": (["anneal=0.5"], ["anneal=0.5", "1 or more"]),
    "jitter": (["jitter=12"], ["jitter=12", "12 x 10"]),
    "solver": (["solver=momentun"], ["'momentun'", "'momentum'"]),
    "solver by another name": (["solver.name=sgd"], ["'sgd'", "adam, momentum"]),
    "momentum": (["solver=momentum", "solver.momentum=1"], ["solver.momentum=1", "[0, 1)"]),
    "solver of another task": (["solver=adam"], ["solver.lbfgs_steps", "solver=adam", "leave out"]),
    "parameterization": (["parameterization=sphere"], ["'sphere'", "levels", "task=reconstruction"]),
    "start": (["start=gone"], ["start=gone", "images.safetensors"]),
    "start of another size": (["start=DONE", "image_size=[12,12]"], ["(3, 3, 12, 10)", "(3, 3, 12, 12)"]),
    "setting of another task": (["targets=3"], ["'targets'", "task=realization"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("broken.png").write_bytes((pictures / "0.png").read_bytes()[:99])
    given, words = MISTAKES[name]
    typed = [text.replace("DONE", str(done)) for text in given]
    taken = {text.partition("=")[0] for text in given}
    rest = [text for text in SHORT if text.partition("=")[0] not in taken]
    if "solver" in taken:
        rest = [text for text in rest if not text.startswith("solver.")]
    image = [] if "image" in taken else [f"image={pictures}"]
    assert cli.main([*rest, *image, *typed, "hydra.run.dir=out"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]
    assert not (Path("out") / "summary.json").exists()


def test_the_experiment_by_depth_is_of_the_layers_it_names() -> None:
    """And its two other runs have the weights and the solver that their names promise."""
    name = "experiment=gruen2016/reconstruction_depth"
    runs = cli.configurations([name, "image=FOLDER", "pictures=2", "tv=0.1", "solver.lbfgs_steps=7", "layer=conv1"])
    layers = [run for run in runs if "_" not in run]
    assert layers[0] == "conv1"
    assert layers[-1] == "inception5b"
    module = load_network("googlenet_bvlc", "random", 0).module
    order = [layer for layer, _ in module.named_modules()]
    assert sorted(layers, key=order.index) == layers
    for run, config in runs.items():
        assert config["layer"] == run.rpartition("_")[2]
        assert (config["image"], config["pictures"]) == ("FOLDER", 2)
    free, featurevis = runs["free_inception3b"], runs["featurevis_inception3b"]
    assert (free["lp"], free["tv"], free["solver"]["lbfgs_steps"]) == (0, 0, 7)
    assert (featurevis["lp"], featurevis["tv"], featurevis["power"], featurevis["anneal"]) == (1, 0.5, 6, 1)
    assert featurevis["parameterization"]["preconditioned"] is False
    solver = featurevis["solver"]
    assert (solver["name"], solver["lr"], solver["momentum"]) == ("momentum", 1, 0.9)
    assert (solver["max_steps"], solver["lbfgs_steps"]) == (100, 0)
    assert runs["conv1"]["tv"] == 0.1
