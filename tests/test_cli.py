"""The command: one line for every mistake, exit statuses, NaN, Ctrl-C, several jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fvlight import application, cli
from fvlight.command import networks
from fvlight.errors import FvlightError
from fvlight.solvers import Evaluation
from fvlight.tasks import DiverseTask
from fvlight.zoo import list_networks, load_network
from tests.helpers import called, no_handlers, one_thread  # noqa: F401  (fixtures; the last is for all tests)

SMALL = ["restarts=1", "images_per_problem=2", "lambda_grid.values=[0,1]", "solver.max_steps=3"]
VGG = ["network=vgg19_normalised", "norm=100"]
LIBRARY = ["network=torchvision/squeezenet1_1", "network.weights=random", "layer=features.0"]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes; Hydra's log handlers are taken off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FVLIGHT_WEIGHTS", raising=False)
    monkeypatch.delenv(cli.FULL_ERROR, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """See `called`."""
    return lambda *arguments: called(capsys, *arguments)


def strict_json(path: Path) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# -- mistakes ----------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """What some of the mistakes need to exist."""
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "photo.png").write_bytes(b"no image")
    (folder / "done" / "checkpoints").mkdir(parents=True)
    misfit = {"conv1_1.weight": torch.zeros(3, 3), "conv1_2.bias": torch.zeros(64)}  # with a hole between them
    save_file(misfit, folder / "misfit.safetensors")
    whole = folder / "whole.safetensors"
    save_file({"conv1_1.weight": torch.zeros(64, 3, 3, 3), "conv1_1.bias": torch.zeros(64)}, whole)
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    torch.save(torch.nn.Conv2d(1, 1, 1), folder / "weights.pth")  # a whole module, which only its own code can load
    (folder / "cut.pth").write_bytes((folder / "weights.pth").read_bytes()[:-500])


# what is typed, and what the line must name: the value, an alternative, the remedy
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "layer": (["layer=complx"], ["'complx'", "hubel_wiesel_cell", "'complex'"]),
    "distance layer": (["distance_layer=simpel"], ["'simpel'", "'simple'"]),
    "network": (["network=energy_sell"], ["network", "'energy_sell'", "'energy_cell'"]),
    "network of no likeness": (["network=qqq"], ["'qqq'", "corner_detector", "--list-networks"]),
    "network without its library": (["network=vgg16"], ["'vgg16'", "'torchvision/vgg16'", "'timm/vgg16'"]),
    "network without its ending": (["network=vgg19_norm"], ["'vgg19_norm'", "'vgg19_normalised'"]),
    "library without a network": (["network=torchvision"], ["'torchvision'", "torchvision/NAME", "--list-networks"]),
    "network of torchvision": (["network=torchvision/vgg91"], ["torchvision/vgg91", "'torchvision/vgg19'"]),
    "network of timm": (["network='timm/resnet81'"], ["'timm/resnet81'", "'timm/resnet18'"]),
    "network of an unknown tag": (
        ["network=timm/resnet50.a9_in1k"],
        ["timm/resnet50.a9_in1k", "'timm/resnet50.a3_in1k'"],
    ),
    "network of a sweep": (
        ["-m", "network=energy_cell,torchvision/vgg91", "hydra.sweep.dir=out"],
        ["torchvision/vgg91", "'torchvision/vgg19'"],
    ),
    "no layer": (
        ["network=torchvision/squeezenet1_1"],
        ["layer=NAME", "fvlight network=torchvision/squeezenet1_1 --list-layers"],
    ),
    "no layer in a library's": ([*LIBRARY, "layer=features.30"], ["features.30", "'features.10'"]),
    "no norm in a library's": (LIBRARY, ["'features.0'", "torchvision/squeezenet1_1", "images=FOLDER", "norm=NUMBER"]),
    "option of a library's": ([*LIBRARY, "+network.options.colour=1"], ["torchvision/squeezenet1_1", "colour"]),
    "shuffled weights that are not random": (
        [*LIBRARY, "network.shuffle=default", "network.weights=default"],
        ["shuffle=default", "weights=random"],
    ),
    "network's name": (["network.name=energy_sell"], ["'energy_sell'", "'energy_cell'"]),
    "network is a number": (["network=3"], ["int", "network", "solver"]),
    "network is null": (["network=null"], ["NoneType", "network", "solver"]),
    "key": (["sede=1"], ["'sede'", "'seed'"]),
    "nested key": (["solver.max_step=1"], ["'solver.max_step'", "'solver.max_steps'"]),
    "deep key": (["network.study.unti=1"], ["'network.study.unti'", "'network.study.unit'"]),
    "task": (["task=textur"], ["task", "'textur'", "'texture'"]),
    "task's name": (["task.name=textur"], ["'textur'", "'texture'"]),
    "setting of another task": (
        ["task=texture", "threshold=0.8"],
        ["'threshold'", "in this task", "task=diverse"],
    ),
    "lambdas of a texture": (["task=texture", "lambda_grid.values=0"], ["'lambda_grid.values'", "task=diverse"]),
    "grid of a texture": (["task=texture", "lambda_grid=coarse"], ["lambda_grid", "task=diverse"]),
    "setting of a texture": (["crops_per_step=2"], ["'crops_per_step'", "task=texture"]),
    "setting of a texture misspelt": (["task=texture", "crops_per_stp=2"], ["'crops_per_stp'", "'crops_per_step'"]),
    "option of another network": (
        ["network=vgg19", "network.options.cells=4"],
        ["'network.options.cells'", "'network.options.size'"],
    ),
    "experiment": (["experiment=cadena2018/fig9"], ["cadena2018/fig9'", "'cadena2018/fig9_corner'"]),
    "prior": (["prior=total_variance"], ["'total_variance'", "'total_variation'"]),
    "claims": (["claims=cornr"], ["'cornr'", "'corner'"]),
    "unit out of range": (["unit=7"], ["unit=7", "'complex'", "0 to 0"]),
    "unit negative": (["unit=-1"], ["unit=-1", "0 to 0"]),
    "range out of range": (["unit='0:9'"], ["unit=0:9", "1 units"]),
    "unit malformed": (["unit=abc"], ["unit=abc", "all", "[13,22]", "0:64"]),
    "unit in a list malformed": (["unit=[0,x]"], ["unit=x", "all", "0:64"]),
    "no unit": (["unit=[]"], ["unit=[]", "0 to 0"]),
    "weights missing": (VGG, ["vgg19_normalised.safetensors", "network.weights=FILE", "random"]),
    "weights nowhere": (
        [*VGG, "network.weights=gone.safetensors"],
        ["gone.safetensors", "default", "random"],
    ),
    "weights of a pickle": (
        [*VGG, "network.weights=weights.pth"],
        ["weights.pth", "more than tensors", "state_dict", "save_file"],
    ),
    "weights of a pickle truncated": ([*VGG, "network.weights=cut.pth"], ["cut.pth", "complete"]),
    "weights misfit": (
        [*VGG, "network.weights=misfit.safetensors"],
        ["misfit.safetensors", "conv1_1.bias", "(3, 3)", "(64, 3, 3, 3)"],
    ),
    "weights truncated": ([*VGG, "network.weights=cut.safetensors"], ["cut.safetensors", "complete"]),
    "weights of an analytic cell": (["network.weights=random"], ["analytic", "random", "default"]),
    "option": (["+network.options.colour=1"], ["hubel_wiesel_cell", "'colour'"]),
    "image broken": (["images=broken"], ["broken/photo.png", "out of the folder"]),
    "image folder empty": (["images=empty"], ["'empty'", ".jpg"]),
    "image folder missing": (["images=gone"], ["'gone'", "does not exist"]),
    "image folder a file": (["images=file"], ["'file'", "is a file"]),
    "no preset of the norm": (["layer=simple"], ["'simple'", "images=FOLDER", "norm=NUMBER"]),
    "lambda negative": (["lambda_grid.values=[0,-0.5]"], ["-0.5", "not negative"]),
    "lambda infinite": (["lambda_grid.values=[0,inf]"], ["lambda_grid.values=inf", "number"]),
    "grid without 0": (["lambda_grid.values=[1,2]"], ["lambda_grid.values=[1.0, 2.0]", "contain 0"]),
    "grid of words": (["lambda_grid.values=[0,x]"], ["lambda_grid.values=x", "number"]),
    "continuation": (["lambda_grid.continuation=up"], ["'up'", "ascending", "descending"]),
    "convention": (["convention=papers"], ["'papers'", "'paper'"]),
    "output below a file": (["hydra.run.dir=file/run"], ["file/run", "hydra.run.dir=DIR"]),
    "output of an old run": (["hydra.run.dir=done"], ["done", "resume=done", "another"]),
    "resume of nothing": (["resume=gone"], ["resume=gone", "no run", "overrides.yaml"]),
    "grammar of a list": (["unit=[1,2"], ["unit=[1,2", "quote", "'unit=[13,22]'"]),
    "no equals sign": (["nonsense"], ["nonsense"]),
    "sweep without -m": (["seed=0,1"], ["seed=0,1", "--multirun"]),
    "trainer's argument": (["+trainer.colour=1"], ["trainer", "'colour'"]),
    "trainer": (["trainer=cpus"], ["'cpus'", "'cpu'"]),
    "accelerator": (["trainer.accelerator=abacus"], ["abacus"]),
    "strategy": (["trainer.strategy=problem"], ["no strategy 'problem'", "did you mean 'problems'"]),
    "precision": (["trainer.precision=31"], ["trainer.precision=31", "32-true", "bf16-mixed"]),
    # on a CPU Lightning takes bfloat16 for it and says so in a warning only
    "half precision": (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "bf16-mixed"]),
    # Lightning would start a second `fvlight` that solves the same problems
    "ddp": (
        ["trainer=cpu", "trainer.devices=2", "trainer.strategy=ddp"],
        ["trainer.devices=2", "trainer.strategy=problems", "trainer.devices=1"],
    ),
    "problems at once": (["solver.at_once=many"], ["solver.at_once=many", "whole number", "auto"]),
    "seed": (["seed=abc"], ["seed=abc", "whole number"]),
    "seed with a fraction": (["seed=0.5"], ["seed=0.5", "whole number"]),
    "learning rate": (["solver.lr=fast"], ["solver.lr=fast", "number"]),
    "learning rate 0": (["solver.lr=0"], ["solver.lr=0", "positive"]),
    "betas": (["solver.betas=0.9"], ["solver.betas=0.9", "list of 2"]),
    "one beta": (["solver.betas=[0.9]"], ["solver.betas=[0.9]", "list of 2"]),
    "norm": (["norm=-1"], ["norm=-1", "positive"]),
    "norm not a number": (["norm=nan"], ["norm=nan", "number"]),
    "threshold": (["threshold=2"], ["threshold=2", "(0, 1]"]),
    "one image": (["images_per_problem=1"], ["images_per_problem=1", "2"]),
    "no start": (["restarts=0"], ["restarts=0", "1"]),
    "image size": (["image_size=64"], ["image_size=64", "list of 2"]),
    "image size in words": (["image_size=[big,64]"], ["image_size=big", "whole number"]),
    "image size too small": (["image_size=[16,16]"], ["image_size=[16, 16]", "'complex'", "larger"]),
    "yes or no": (["parameterization.preconditioned=perhaps"], ["perhaps", "true", "false"]),
    "seconds": (["checkpoint_seconds=often"], ["checkpoint_seconds=often", "number"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    prepare(tmp_path)
    given, words = MISTAKES[name]
    # settings for a run in a moment, should the mistake not be noticed
    taken = {text.partition("=")[0] for text in given}
    small = ["solver.max_steps=3"] if "task=texture" in given else SMALL
    rest = [text for text in small if text.partition("=")[0] not in taken]
    if not taken & {"hydra.run.dir", "resume"}:
        rest.append("hydra.run.dir=out")
    status, _, errors = run(*rest, *given)
    assert status == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith("fvlight: ")
    for word in words:
        assert word in errors[0]
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("name", ["layer", "network", "resume of nothing", "output below a file"])
def test_a_traceback_for_who_asks(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.setenv(cli.FULL_ERROR, "1")
    given, words = MISTAKES[name]
    status, _, errors = run(*SMALL, *given)
    assert status == 2
    assert errors[0].startswith("Traceback")
    assert words[0].strip("'") in "\n".join(errors)
    assert os.environ[cli.FULL_ERROR] == "1"


def test_a_defect_shows_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(DiverseTask, "evaluate", defect)
    status, _, errors = run(*SMALL, "hydra.run.dir=out")
    assert status == 1
    assert errors[0].startswith("Traceback")
    assert errors[-1] == "ZeroDivisionError: a defect of ours"


def test_an_interrupt_inside_a_step_stops_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the second Ctrl-C; Lightning would exit with status 1."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiverseTask, "evaluate", interrupt)
    status, _, errors = run(*SMALL, "hydra.run.dir=out")
    assert status == 130
    assert errors[-1] == "fvlight: stopped"
    assert "Traceback" not in "".join(errors)


def test_the_cause_is_found_below_other_errors() -> None:
    error = RuntimeError("Lightning wrapped it")
    error.__cause__ = FvlightError("two\n   lines")
    assert cli.explain(error) == "two lines"
    assert cli.explain(RuntimeError("a defect")) is None


@pytest.mark.parametrize(
    "name",
    [
        "network",
        "network of torchvision",
        "network of an unknown tag",
        "network of a sweep",
        "network without its library",
    ],
)
def test_a_network_that_does_not_exist_leaves_nothing_behind(name: str, run: Run, tmp_path: Path) -> None:
    assert run(*MISTAKES[name][0])[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_an_old_run_is_left_alone(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "hydra.run.dir=out")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(*SMALL, "seed=1", "hydra.run.dir=out")[0] == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


# -- good runs ---------------------------------------------------------------------------------------------


def test_a_run_ends_with_table_and_report(run: Run, tmp_path: Path) -> None:
    status, output, errors = run(*SMALL, f"hydra.run.dir={tmp_path / 'out'}")
    assert (status, errors) == (0, [])
    assert output.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").is_file()
    assert "hubel_wiesel_cell, complex" in output


def test_logger_csv(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "logger=csv", "hydra.run.dir=out")[0] == 0
    assert (tmp_path / "out" / "logs" / "version_0").is_dir()


def test_the_recorded_command_repeats_the_run(run: Run, tmp_path: Path) -> None:
    import shlex

    assert run(*SMALL, "seed=5", "hydra.run.dir=one")[0] == 0
    command = shlex.split(strict_json(tmp_path / "one" / "summary.json")["command"])
    assert command[0] == "fvlight"
    assert run(*command[1:], "hydra.run.dir=two")[0] == 0
    one, two = (tmp_path / name / "images.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_help_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["--help"])
    except SystemExit as end:
        status = end.code or 0
    assert status == 0
    text = capsys.readouterr().out
    for word in ("experiment", "network", "vgg19_normalised", "max_steps", "--list-layers", "--list-networks", "timm/"):
        assert word in text


# -- networks of libraries ---------------------------------------------------------------------------------


def test_a_library_network_runs_and_is_resumed(run: Run, tmp_path: Path) -> None:
    """All of it, and the second half after a stop is what an unbroken run gives."""
    settings = [*LIBRARY, "norm=10", "trainer=cpu", *SMALL, "solver.max_steps=6"]
    status, output, errors = run(*settings, "hydra.run.dir=whole")
    assert (status, errors) == (0, [])
    assert "torchvision/squeezenet1_1, features.0" in output
    assert "torchvision/squeezenet1_1" in (tmp_path / "whole" / "report.html").read_text()
    summary = strict_json(tmp_path / "whole" / "summary.json")
    assert (summary["network"], summary["weights"]) == ("torchvision/squeezenet1_1", "random")
    assert (summary["norm"], summary["image_size"]) == (5.0, [3, 3])
    images = load_file(tmp_path / "whole" / "images.safetensors")["images"]
    assert images.shape == (1, 2, 2, 3, 3, 3)
    torch.testing.assert_close(images.flatten(3).norm(dim=3), torch.full((1, 2, 2), 5.0))

    steps, evaluate = [0], DiverseTask.evaluate

    def stopping(*arguments: object) -> Evaluation:
        steps[0] += 1
        if steps[0] == 4:
            raise KeyboardInterrupt
        return evaluate(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiverseTask, "evaluate", stopping)
        halves = [*settings, "solver.inner_steps=1", "checkpoint_seconds=0", "hydra.run.dir=halves"]
        assert run(*halves)[0] == 130
    assert not (tmp_path / "halves" / "summary.json").exists()
    status, _, errors = run("resume=halves")
    assert status == 0
    assert errors == [f"going on from {tmp_path / 'halves' / 'checkpoints' / 'last.ckpt'}"]
    assert torch.equal(load_file(tmp_path / "halves" / "images.safetensors")["images"], images)


def test_the_networks_of_a_sweep(run: Run, tmp_path: Path) -> None:
    names = ["torchvision/squeezenet1_1", "timm/resnet18", "hubel_wiesel_cell"]
    layers = ["features.0", "conv1", "simple"]
    typed = [f"network={','.join(names[:2])}", "network.weights=random", "trainer=cpu", "norm=1", *SMALL]
    assert run("-m", *typed, f"layer={','.join(layers[:2])}", "hydra.sweep.dir=sweep")[0] == 2  # one has no conv1
    found = {path.parent.name: strict_json(path) for path in (tmp_path / "sweep").glob("*/summary.json")}
    assert {key: (value["network"], value["layer"]) for key, value in found.items()} == {
        "0": (names[0], layers[0]),
        "3": (names[1], layers[1]),
    }
    assert run("resume=sweep/3")[0] == 0


def test_library_networks_in_an_experiment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the list of defaults of an experiment's file, and among its runs."""
    experiments = tmp_path / "conf" / "experiment"
    experiments.mkdir(parents=True)
    network = "torchvision/squeezenet1_0"  # no other test's: Hydra keeps what it was told
    (experiments / "one.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /network: {network}\nlayer: features.0\n"
    )
    own = f"[network={network.replace('_0', '_1')}, network.weights=random, layer=features.1, distance_layer=pixels]"
    (experiments / "two.yaml").write_text(f"# @package _global_\nruns: {{a: {own}, b: [network=simple_cell]}}\n")
    folder = networks.conf_folder()
    (tmp_path / "conf" / networks.LIBRARY_CONFIG).write_text((folder / networks.LIBRARY_CONFIG).read_text())
    monkeypatch.setattr(networks, "conf_folder", lambda: tmp_path / "conf")
    common = ["--config-dir", "conf", "trainer=cpu", "norm=1", *SMALL]
    assert run(*common, "experiment=one", "network.weights=random", "hydra.run.dir=one")[0] == 0
    summary = strict_json(tmp_path / "one" / "summary.json")
    assert (summary["network"], summary["layer"]) == (network, "features.0")
    assert run(*common, "experiment=two", "hydra.run.dir=two")[0] == 0
    found = strict_json(tmp_path / "two" / "summary.json")["runs"]
    assert [part["network"] for part in found.values()] == [network.replace("_0", "_1"), "simple_cell"]


def test_what_one_kind_of_task_knows_reaches_only_its_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(settings: Any, parts: dict[str, Any], *_: Any) -> None:
        seen.update(parts)
        raise FvlightError("enough")

    monkeypatch.setattr(application, "run_experiment", look)
    typed = [
        "crops_per_step=25",
        "images_per_problem=4",
        "lambda_grid=coarse",
        "solver.lr=0.2",
        "restarts=2",
        "units=5",
    ]
    assert run("experiment=cadena2018/fig8_indices", *typed)[0] == 2
    texture, diverse = seen["texture_conv3_2"], seen["diverse_conv3_2"]
    assert (texture["crops_per_step"], diverse["images_per_problem"]) == (25, 4)
    assert len(diverse["lambda_grid"]["values"]) == 7
    assert "lambda_grid" not in texture
    assert "images_per_problem" not in texture
    assert "crops_per_step" not in diverse
    for part in seen.values():
        assert (part["solver"]["lr"], part["restarts"], part["units"]) == (0.2, 2, 5)
    seen.clear()
    assert run("experiment=cadena2018/fig8_indices", "~runs.diverse_conv3_4", "~runs.texture_conv3_4")[0] == 2
    assert len(seen) == 6
    status, _, error = run("experiment=cadena2018/fig8_indices", "crops_per_stepp=3")
    assert (status, "crops_per_stepp" in error[0]) == (2, True)


# -- lists -------------------------------------------------------------------------------------------------


def test_layers_are_listed_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    status, output, errors = run("--list-layers", "network=simple_cell", "network.options.cells=8")
    assert (status, errors) == (0, [])
    assert [" ".join(line.split()) for line in output.splitlines()[-2:]] == [
        "simple Conv2d 8 32 x 32 1 x 1",
        "rectified ReLU 8 32 x 32 1 x 1",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/resnet18.a1_in1k", "vgg19", "vgg19_normalised"])
def test_layers_need_no_weights(name: str, run: Run, tmp_path: Path) -> None:
    """Neither a file nor a download: the table has all convolutions, and nothing is complained of."""
    status, output, errors = run(f"network={name}", "--list-layers")
    assert (status, errors) == (0, [])
    names = [line.split()[0] for line in output.splitlines() if " Conv2d " in line]
    modules = load_network(name, "random").module.named_modules()
    convolutions = [path for path, part in modules if isinstance(part, torch.nn.Conv2d)]
    assert sorted(names) == sorted(convolutions)
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_weights_file_that_ends_early(run: Run, tmp_path: Path) -> None:
    prepare(tmp_path)
    status, output, errors = run("network=vgg19_normalised", "--list-layers", "network.weights=whole.safetensors")
    assert (status, errors) == (0, [])
    last = output.splitlines()[-1]
    for word in ("no weights", "conv1_2, conv2_1, conv2_2 and 12 more"):
        assert word in last


def test_layers_of_a_run(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "network=energy_cell", "hydra.run.dir=out")[0] == 0
    record = tmp_path / "out" / ".hydra" / "overrides.yaml"
    before = record.read_bytes()
    status, output, _ = run("resume=out", "--list-layers")
    assert status == 0
    assert "energy_cell" in output
    assert record.read_bytes() == before


def test_networks_are_listed(run: Run, tmp_path: Path) -> None:
    status, output, errors = run("--list-networks")
    assert (status, errors) == (0, [])
    lines = output.splitlines()
    assert lines[:-2] == list_networks()
    for line, library in zip(lines[-2:], ("torchvision", "timm"), strict=True):
        assert line.startswith(f"{library}/NAME ({len(list_networks(f'{library}/*'))} networks")
    status, output, errors = run("--list-networks", "torchvision/squeezenet*")
    assert (status, errors) == (0, [])
    assert output.splitlines() == ["torchvision/squeezenet1_0", "torchvision/squeezenet1_1"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--list-networks", "resnet"], ["'resnet'", "'timm/*resnet*'"]),
        (["--list-networks", "a", "b"], ["a b", "one pattern"]),
        (["--list-layers", "network=vgg19_norm"], ["'vgg19_norm'", "'vgg19_normalised'"]),
        (["--list-layers", "network=torchvision/vgg91"], ["torchvision/vgg91", "'torchvision/vgg19'"]),
        (["--list-layers", "network=simple_cell", "-m"], ["-m", "--list-layers"]),
        (["--list-layers", "nonsense"], ["nonsense"]),
        (["--list-layers", "network=simple_cell", "network.seed=abc"], ["network.seed=abc", "whole number"]),
        (["--list-layers", "network=simple_cell", "+network.options.colour=1"], ["simple_cell", "'colour'"]),
        (["--list-layers", "network=simple_cell", "network.weights=random"], ["analytic", "random"]),
        (["--list-layers", "network=vgg19_normalised", "network.weights=gone.pth"], ["gone.pth"]),
        (["--list-layers", "resume=gone"], ["resume=gone", "no run"]),
    ],
)
def test_a_list_that_can_t_be_made(given: list[str], words: list[str], run: Run, tmp_path: Path) -> None:
    status, output, errors = run(*given)
    assert (status, output) == (2, "")
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]
    assert list(tmp_path.iterdir()) == []


# -- NaN ---------------------------------------------------------------------------------------------------


def test_one_problem_becomes_nan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third problem's score is NaN from its second block on; nobody else notices."""
    settings = ["restarts=1", "images_per_problem=2", "lambda_grid.values=[0,1,3,4]", "solver.max_steps=8"]
    settings += ["solver.inner_steps=4"]
    assert run(*settings, "hydra.run.dir=good")[0] == 0
    evaluate, calls = DiverseTask.evaluate, []

    def broken(task: DiverseTask, raw: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype | None) -> Evaluation:
        calls.append(1)
        score, figures = evaluate(task, raw, rows, dtype)
        return Evaluation(torch.where((rows == 2) & (len(calls) > 4), float("nan"), score), figures)

    monkeypatch.setattr(DiverseTask, "evaluate", broken)
    status, output, errors = run(*settings, "hydra.run.dir=bad")
    assert status == 2
    assert len(errors) == 1, errors
    for word in ("fvlight: ", "NaN", "unit 0 at lambda 3", "solver.lr", "bad"):
        assert word in errors[0]
    assert "lambda 1" not in errors[0]
    for name in ("images.safetensors", "metrics.csv", "report.html", "checkpoints/last.ckpt"):
        assert (tmp_path / "bad" / name).is_file()
    summary, good = (strict_json(tmp_path / name / "summary.json") for name in ("bad", "good"))
    words = [entry["status"] for entry in summary["units"][0]["sweep"]]
    assert words == ["max_steps", "max_steps", "nan", "max_steps"]
    assert summary["complete"] is False
    assert any("NaN" in text and "lambda 3" in text for text in summary["warnings"])
    one, other = (load_file(tmp_path / name / "images.safetensors")["images"] for name in ("good", "bad"))
    for k in (0, 1, 3):
        assert torch.equal(one[:, k], other[:, k])
        assert summary["units"][0]["sweep"][k] == good["units"][0]["sweep"][k]
    assert other.isfinite().all()
    assert not torch.equal(one[:, 2], other[:, 2])  # it stopped after its first block
    assert summary["units"][0]["sweep"][2]["steps"] == 4


def test_all_problems_become_nan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = DiverseTask.evaluate

    def broken(*arguments: object) -> Evaluation:
        score, figures = evaluate(*arguments)  # type: ignore[arg-type]
        return Evaluation(score * float("nan"), figures)

    monkeypatch.setattr(DiverseTask, "evaluate", broken)
    status, _, errors = run(*SMALL, "hydra.run.dir=bad")
    assert status == 2
    assert len(errors) == 1
    assert strict_json(tmp_path / "bad" / "summary.json")["complete"] is False


# -- a process of its own ----------------------------------------------------------------------------------


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fvlight", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )  # type: ignore[call-overload, no-any-return]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = start("layer=complx", "hydra.run.dir=out")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output == ""
    assert errors.startswith("fvlight: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")


def test_ctrl_c_then_resume(tmp_path: Path, run: Run) -> None:
    """The first Ctrl-C ends the run between two blocks, everything is written; the rest comes later."""
    out = tmp_path / "out"
    endless = ["solver.max_steps=100000", "solver.patience=100000", "checkpoint_seconds=0", "restarts=1"]
    # seven problems, five at a time: two never began
    grid = ["lambda_grid=coarse", "solver.at_once=5", "images_per_problem=2"]
    process = start(*endless, *grid, f"hydra.run.dir={out}")
    wait_for(out / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"fvlight resume={out}" in errors.splitlines()[-1]
    for name in ("images.safetensors", "metrics.csv", "report.html"):
        assert (out / name).is_file()
    summary = strict_json(out / "summary.json")
    sweep = summary["units"][0]["sweep"]
    assert summary["complete"] is False
    assert [entry["status"] for entry in sweep] == ["interrupted"] * 7
    assert all(entry["steps"] > 0 for entry in sweep[:5])
    assert all(entry["steps"] == 0 and entry["mean_activation"] is None for entry in sweep[5:])
    images = load_file(out / "images.safetensors")["images"]
    assert images[:, :5].flatten(3).norm(dim=3).gt(0).all()
    assert not images[:, 5:].any()

    steps = sweep[0]["steps"] + 10
    status, _, errors = run(f"resume={out}", f"solver.max_steps={steps}")
    assert status == 0, errors
    summary = strict_json(out / "summary.json")
    assert summary["complete"] is True
    assert [entry["steps"] for entry in summary["units"][0]["sweep"]] == [steps] * 7
    assert f"solver.max_steps={steps}" in summary["command"]


@pytest.mark.slow
def test_console_entry_helps() -> None:
    code = "import sys; from fvlight.cli import main; sys.argv = ['fvlight', '--help']; sys.exit(main())"
    for command in (["-m", "fvlight", "--help"], ["-c", code]):
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "network" in done.stdout
        assert done.stderr == ""


@pytest.mark.slow
def test_multirun_runs_every_job(tmp_path: Path) -> None:
    process = start("-m", "seed=0,1", *SMALL, "hydra.sweep.dir=sweep")
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    first, second = (tmp_path / "sweep" / name for name in ("0", "1"))
    assert [strict_json(folder / "summary.json")["seed"] for folder in (first, second)] == [0, 1]
    assert (first / "images.safetensors").read_bytes() != (second / "images.safetensors").read_bytes()


def test_multirun_tells_of_the_job_that_failed(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("-m", "threshold=2,0.5", *SMALL, "hydra.sweep.dir=sweep")
    assert status == 2
    assert len(errors) == 1
    assert "threshold=2" in errors[0]
    assert (tmp_path / "sweep" / "1" / "summary.json").is_file()  # the others ran all the same
