"""From a configuration to a task and a run; every file of the configuration composes and builds."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from fvlight import application, cli
from fvlight.analysis import cadena2018, reinbold2020
from fvlight.application import build_network, build_task, network_to_list
from fvlight.cli import in_order
from fvlight.command.networks import add_library_networks
from fvlight.errors import FvlightError
from fvlight.kinds import KINDS
from fvlight.network import Network
from fvlight.tasks.diverse import LAMBDAS
from fvlight.zoo import list_networks, load_network
from fvlight.zoo.foreign import NAME as FOREIGN
from fvlight.zoo.registry import BUILDERS
from tests.helpers import no_handlers, one_thread  # noqa: F401  (fixtures; the second is for all tests)

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
GROUP_FILES = [name for name in FILES if "/" in name]
EXPERIMENTS = [name.partition("/")[2] for name in FILES if name.startswith("experiment/")]
NETWORKS = [name.partition("/")[2] for name in FILES if name.startswith("network/") and FOREIGN not in name]


def composed(*overrides: str) -> Any:
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def settings(*overrides: str) -> dict[str, Any]:
    """A configuration as plain values; where loggers write is Hydra's to say, in a run."""
    config = composed(*overrides)
    known = OmegaConf.masked_copy(config, [key for key in config if key != "logger"])
    return OmegaConf.to_container(known, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def raw(name: str) -> dict[str, Any]:
    """A file's own keys."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")) or {}
    content.pop("defaults", None)
    return content


# -- the files of the configuration ------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUP_FILES)
def test_every_file_composes_and_prevails(name: str) -> None:
    group, _, option = name.partition("/")
    plain = OmegaConf.to_container(composed(f"{group}={option}"), resolve=False)
    glob = (CONF / f"{name}.yaml").read_text().startswith("# @package _global_")
    where = plain if glob else plain.get(group) or {}
    for key, value in raw(name).items():
        assert where[key] == value
    assert settings(f"{group}={option}")["seed"] == 0


def weights_at_hand(name: str) -> str:
    """Analytic cells know their weights; those of the others are not in the repository."""
    return "default" if name.endswith(("_cell", "_detector")) else "random"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_file_fits_its_builder(name: str) -> None:
    chosen = settings(f"network={name}")["network"]
    assert chosen["name"] == name
    parameters = inspect.signature(BUILDERS[name]).parameters
    for key, value in chosen["options"].items():
        assert parameters[key].default == value  # the file says what the builder does without it
    study = chosen["study"]
    network = build_network(settings(f"network={name}", f"network.weights={weights_at_hand(name)}"))
    assert network.name == name
    assert set(study["norms"]) <= set(network.layers)
    assert study["layer"] in network.layers
    assert study["distance_layer"] in (*network.layers, "auto", "pixels")


def test_every_network_of_the_zoo_has_a_file() -> None:
    assert list_networks() == sorted(NETWORKS)


def parts(*overrides: str) -> list[dict[str, Any]]:
    config = settings(*overrides)
    if not config["runs"]:
        return [config]
    typed = [text for text in overrides if not text.startswith("experiment=")]
    return [settings(*in_order(changes, typed)) for changes in config["runs"].values()]


# Not the paper's grid: what is asked of the first two needs no other lambda, the third's was chosen on other cells.
GRIDS = {
    "cadena2018/fig1_phase_curves": [0],
    "quality/restarts": [0],
    "quality/prior": [0, 0.32, 1.28, 5.12],  # the prior is costly
    "cadena2018/fig11_v1": [0, 1.28, 2.56, 5.12],
}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith(("ifv/", "gruen2016/"))])
def test_every_experiment_builds_its_task(name: str) -> None:
    assert settings(f"experiment={name}")["claims"] in cadena2018.CLAIMS
    for config in parts(f"experiment={name}"):
        config["network"]["weights"] = weights_at_hand(config["network"]["name"])
        if config["prior"]["name"] == "pixelcnn":
            config["prior"]["weights"] = "random"
        network = build_network(config)
        if measured := config["network"]["name"] == "resnet50_v1":  # on the user's photographs
            config["norm"] = 1000
        task, origin = build_task(config, network)
        assert task.units
        assert ("number given" if measured else "preset") in origin
        if config["task"]["name"] == "diverse":
            assert task.lambdas == pytest.approx(GRIDS.get(name, LAMBDAS), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("gruen2016/")])
def test_every_experiment_about_pictures_builds_its_task(name: str, tmp_path: Path) -> None:
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
    key = "images" if name.endswith("comparison") else "image"
    assert settings(f"experiment={name}")["claims"] in application.CLAIMS
    for config in parts(f"experiment={name}", f"{key}={tmp_path}", "pictures=2"):
        config["network"]["weights"] = "random"
        task, origin = build_task(config, build_network(config))
        assert len(task.names) == 2
        assert str(tmp_path) in origin


SHARED = ("network", "layer", "power", "features", "aggregation", "parameterization", "image_size")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("ifv/")])
def test_every_experiment_inverts_what_it_realized(name: str) -> None:
    """In the same network, with the same power, …: nothing else tells a realization's own from another power."""
    config = settings(f"experiment={name}")
    assert config["claims"] in reinbold2020.CLAIMS
    runs: dict[str, dict[str, Any]] = {}
    for run, changes in config["runs"].items():
        mine = settings(*in_order(changes, []))
        for key in application.SIBLINGS:
            if (other := mine.get(key)) is not None:
                assert all(runs[other][shared] == mine[shared] for shared in SHARED)  # it is run before
        runs[run] = mine
    assert {mine["task"]["name"] for mine in runs.values()} == {"realization", "inverse"}
    first = next(iter(runs.values()))
    first["network"]["weights"], first["targets"] = "random", 3
    task, origin = build_task(first, build_network(first))
    assert len(task.targets) == 3
    assert "random" in origin
    assert task.polish is not None


def test_what_makes_a_run_of_an_experiment_is_not_overridden() -> None:
    runs = parts("experiment=cadena2018/fig5_random_weights", "network.weights=my.safetensors", "unit=3")
    assert [run["network"]["weights"] for run in runs] == ["my.safetensors", "random", "random"]
    assert [run["network"]["seed"] for run in runs] == [0, 0, 1]
    assert {run["unit"] for run in runs} == {3}


def test_the_papers_grid() -> None:
    assert settings()["lambda_grid"]["values"] == pytest.approx([0] + [0.02 * 2**k for k in range(11)])
    coarse = settings("lambda_grid=coarse")["lambda_grid"]["values"]
    assert coarse == pytest.approx([0] + [0.02 * 4**k for k in range(6)])


def test_every_kind_of_task_has_a_file() -> None:
    for name in KINDS:
        assert settings(f"task={name}")["task"] == {"name": name}
    assert sorted(KINDS) == [name.partition("/")[2] for name in FILES if name.startswith("task/")]


def test_a_kind_of_task_that_does_not_exist() -> None:
    with pytest.raises(FvlightError, match=r"no task 'textures'.*'texture'"):
        build_task(settings("task.name=textures"), load_network("energy_cell"))


# -- the task ----------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_task() -> None:
    config = settings(
        "seed=7", "restarts=3", "images_per_problem=4", "threshold=0.7", "convention=code", "norm=6",
        "norm_fraction=0.5", "distance_layer=simple", "lambda_grid.values=[4,0,1]",
        "lambda_grid.continuation=descending", "prior=total_variation", "prior.alpha=0.25",
        "parameterization.preconditioned=false", "solver.lr=0.3", "solver.betas=[0.8,0.95]",
        "solver.eps=1e-4", "solver.max_steps=17", "solver.patience=9", "solver.decay=0.6", "solver.at_once=5",
        "solver.inner_steps=2",
    )  # fmt: skip
    task, origin = build_task(config, build_network(config))
    assert (task.seed, task.restarts, task.images_per_problem, task.threshold) == (7, 3, 4, 0.7)
    assert task.convention.name == "code"
    assert task.parameterization.norm == 3.0
    assert "6" in origin
    assert task.reader.distance_layer == "simple"
    assert task.lambdas == [0.0, 1.0, 4.0]
    assert task.continuation == "descending"
    assert task.prior is not None
    assert task.alpha == 0.25
    assert task.parameterization._gain is None
    assert (task.adam.lr, task.adam.betas, task.adam.eps) == (0.3, (0.8, 0.95), 1e-4)
    assert (task.patience.max_steps, task.patience.patience, task.patience.decay) == (17, 9, 0.6)
    stages = 3 + 1  # a chain begins with its first lambda solved twice
    assert (task.pool.capacity, task.inner_steps, len(task.pool)) == (5, 2, stages * 3)


def test_one_lambda_may_be_typed_without_brackets() -> None:
    config = settings("lambda_grid.values=0")
    assert build_task(config, build_network(config))[0].lambdas == [0.0]


def test_network_options_and_seed_reach_the_builder() -> None:
    def filters(*overrides: str) -> torch.Tensor:
        return build_network(settings(*overrides)).module.get_submodule("simple").weight.detach()

    assert filters("network.options.cells=5", "network.options.size=24").shape == (5, 1, 24, 24)
    assert torch.equal(filters(), filters())
    assert not torch.equal(filters(), filters("network.seed=1"))


def test_an_image_larger_than_the_window_is_read_in_its_middle() -> None:
    config = settings("image_size=[40,36]")
    task, _ = build_task(config, build_network(config))
    assert task.reader.image_shape == (1, 40, 36)


# -- networks of libraries, weights ------------------------------------------------------------------------


def library(name: str, *overrides: str) -> dict[str, Any]:
    """The settings of a network of a library, as the command makes them."""
    add_library_networks([f"network={name}"])
    return settings(f"network={name}", *overrides)


# one with the tag of its weights, one by an old name
@pytest.mark.parametrize(
    "name", ["torchvision/squeezenet1_1", "timm/resnet18", "timm/resnet18.a1_in1k", "timm/tv_resnet34"]
)
def test_the_settings_of_a_library_network(name: str) -> None:
    config = library(name, "seed=3")
    assert config["layer"] is None
    chosen = config["network"]
    ours = settings("network=vgg19_normalised")["network"]
    assert chosen["name"] == name
    assert (chosen["weights"], chosen["seed"], chosen["options"], chosen["shuffle"]) == ("default", 3, {}, "")
    assert chosen["study"].keys() == ours["study"].keys()  # everything that other settings refer to
    first = {"torchvision": "features.0", "timm": "conv1"}[name.partition("/")[0]]
    config = library(name, "network.weights=random", f"layer={first}", "norm=4")
    network = build_network(config)
    task, _ = build_task(config, network)
    assert network.name == name
    assert (task.reader.units, task.reader.distance_layer, task.units) == (64, "pixels", [0])
    assert task.parameterization.norm == 2.0


def test_library_options_and_seed_reach_the_builder() -> None:
    def weights(*overrides: str) -> torch.Tensor:
        config = library("torchvision/squeezenet1_1", "network.weights=random", *overrides)
        return build_network(config).module.state_dict()["classifier.1.weight"]

    assert weights("+network.options.num_classes=7").shape[0] == 7
    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("seed=1"))


def test_without_a_layer_the_network_is_not_even_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights may be hundreds of megabytes to download."""

    def build(_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(application, "build_network", build)
    config = library("torchvision/vgg19")
    with pytest.raises(FvlightError, match=r"layer=NAME \(fvlight network=torchvision/vgg19 --list-layers"):
        application.run(config, tmp_path, None, "")
    with pytest.raises(AssertionError, match="built"):
        application.run({**config, "layer": "features.0"}, tmp_path, None, "")


def test_a_norm_for_a_layer_of_a_library_network() -> None:
    """Nothing is known of natural patches here: the error says what to give."""
    config = library("torchvision/squeezenet1_1", "network.weights=random", "layer=features.3.squeeze")
    with pytest.raises(FvlightError) as caught:
        build_task(config, build_network(config))
    for word in ("'features.3.squeeze'", "'torchvision/squeezenet1_1'", "images=FOLDER", "norm=NUMBER"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def squeezenet_file(tmp_path: Path) -> Path:
    """A file of weights that no seed below draws."""
    path = tmp_path / "weights.safetensors"
    save_file(load_network("torchvision/squeezenet1_1", "random", 99).module.state_dict(), path)
    return path


def test_shuffled_weights(squeezenet_file: Path) -> None:
    """The values of the file within each filter bank, in another order."""
    typed = ["network.weights=random", f"network.shuffle={squeezenet_file}"]
    shuffled = build_network(library("torchvision/squeezenet1_1", *typed)).module.state_dict()
    trained = load_network("torchvision/squeezenet1_1", str(squeezenet_file)).module.state_dict()
    for key, value in trained.items():
        if key.endswith("weight"):
            assert not torch.equal(shuffled[key], value)
            assert torch.equal(shuffled[key].flatten().sort().values, value.flatten().sort().values)
        else:
            assert torch.equal(shuffled[key], value)
    with pytest.raises(FvlightError, match=r"shuffle=.*weights=random"):
        build_network(library("torchvision/squeezenet1_1", typed[1]))


def test_any_weights_will_do_for_a_list_of_layers(squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ones in place of the default, which might be downloaded; a given file is read."""
    asked: list[tuple[str, str, str]] = []

    def load(name: str, weights: str, seed: int, *, shuffle: str, **options: Any) -> Network:
        asked.append((name, weights, shuffle))
        return load_network(name, weights, seed, shuffle=shuffle, **options)

    monkeypatch.setattr("fvlight.zoo.load_network", load)
    squeezenet = "torchvision/squeezenet1_1"
    for typed in ([], ["network.weights=random"], ["network.weights=random", "network.shuffle=default"]):
        network_to_list(library(squeezenet, *typed))
        assert asked == [(squeezenet, "random", "")]
        asked.clear()
    network_to_list(settings("network=vgg19_normalised"))
    network_to_list(library(squeezenet, f"network.weights={squeezenet_file}"))
    assert asked == [("vgg19_normalised", "random", ""), (squeezenet, str(squeezenet_file), "")]
    assert network_to_list(settings("network=energy_cell")).name == "energy_cell"
    assert asked[-1] == ("energy_cell", "default", "")


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["network=energy_cell", "+network.options.colour=1"], "'colour'"),
        (["network=vgg19_normalised", "network.weights=gone.safetensors"], "gone.safetensors"),
        (["network=energy_cell", "network.weights=random"], "analytic"),
    ],
)
def test_a_list_of_layers_is_no_way_around_an_error(typed: list[str], text: str) -> None:
    with pytest.raises(FvlightError, match=text):
        network_to_list(settings(*typed))


# -- claims ------------------------------------------------------------------------------------------------


def test_claims_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FvlightError, match=r"'cornr'.*'corner'"):
        application.conclude({"claims": "cornr"}, {}, {}, tmp_path)
    assert application.conclude({"claims": None}, {}, {}, tmp_path) == []


@pytest.mark.parametrize(
    ("claims", "left_out", "missing"),
    [
        ("invariance_of_units", "random_0", "trained"),
        ("shifts_and_averages", "texture_conv3_1", "texture_X beside its diverse_X"),
        ("shifts_and_averages", "diverse_conv3_1", "texture_X beside its diverse_X"),
        ("natural_prior", "prior", "without"),
        ("dead_directions", "realize", "invert"),
    ],
)
def test_claims_about_a_run_that_was_left_out(
    claims: str, left_out: str, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After hours of the others: what they have found is kept."""
    there = {left_out: SimpleNamespace()}
    assert application.conclude({"claims": claims}, there, there, tmp_path) == []  # type: ignore[arg-type]
    said = f"claims={claims}: not measured, they need the run {missing}, which was left out\n"
    assert capsys.readouterr().err == said


# -- experiments -------------------------------------------------------------------------------------------


def check_claims(claims: list[dict[str, Any]], figure: Path) -> None:
    assert claims
    for claim in claims:
        assert claim["source"].startswith("Cadena 2018")
        assert claim["claim"]
        assert claim["holds"] in (True, False, None)
        assert claim["expected"] not in ("", None)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_handlers")
def test_corner_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reduced = ["restarts=1", "solver.max_steps=60", "lambda_grid.values=[0,0.08,0.32]"]
    run = ["experiment=cadena2018/fig9_corner", *reduced, f"hydra.run.dir={tmp_path}"]
    assert cli.main(run) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["network"] == "corner_detector"
    check_claims(summary["claims"], tmp_path / "figures" / "pair_averages.png")
    output = capsys.readouterr().out
    for claim in summary["claims"]:
        assert claim["claim"] in output
    report = (tmp_path / "report.html").read_text()
    assert "averages" in report


@pytest.mark.usefixtures("no_handlers")
def test_complex_cells_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reduced = ["restarts=1", "solver.max_steps=30", "lambda_grid=coarse"]
    run = ["experiment=cadena2018/fig2_complex_cells", *reduced, f"hydra.run.dir={tmp_path}"]
    assert cli.main(run) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["task"] == "experiment"
    assert summary["complete"] is True
    runs = raw("experiment/cadena2018/fig2_complex_cells")["runs"]
    assert list(summary["runs"]) == list(runs)
    for name, changes in runs.items():
        own = json.loads((tmp_path / name / "summary.json").read_text())
        assert own["network"] == settings(*changes)["network"]["name"]
        assert own["units"] == summary["runs"][name]["units"]
        assert {point["steps"] for point in own["units"][0]["sweep"]} == {30}  # what was typed reached it
        assert (tmp_path / name / "images.safetensors").is_file()
    check_claims(summary["claims"], tmp_path / "figures" / "phases.png")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
