"""Runs of textures: settings, norms, files, resuming; activations against a plain loop over crops."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from matplotlib.image import imread
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fvlight import cli
from fvlight.application import build_network, build_task
from fvlight.errors import FvlightError
from fvlight.solvers import Evaluation
from fvlight.tasks import TextureTask
from tests.helpers import no_handlers, one_thread, relative_error  # noqa: F401  (two are fixtures for all tests)

SIZE = 12  # of the cell's window: textures have 23 pixels
CELL = ["task=texture", "network=energy_cell", f"network.options.size={SIZE}", "network.options.sigma=2.0"]
SHORT = [*CELL, "trainer=cpu", "solver.max_steps=12", "solver.inner_steps=3"]


@pytest.fixture(autouse=True)
def surroundings(no_handlers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """A folder of the test's own for all that the command writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        config = compose("config", overrides=[*CELL, *overrides])
    known = OmegaConf.masked_copy(config, [str(key) for key in config if key != "logger"])
    return OmegaConf.to_container(known, resolve=True)  # type: ignore[return-value]


def task_of(*overrides: str) -> TextureTask:
    config = settings(*overrides)
    task, _ = build_task(config, build_network(config))
    assert isinstance(task, TextureTask)
    return task


def plain_crops(texture: Tensor, places: int, sigma: float) -> Tensor:
    """All windowed crops (places², C, SIZE, SIZE) of a texture (C, S, S), cut out one by one."""
    axis = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    mask = torch.exp(-((radius / sigma) ** 4))
    where = [(i, j) for i in range(places) for j in range(places)]
    return torch.stack([texture.double()[:, i : i + SIZE, j : j + SIZE] * mask for i, j in where])


# -- settings ----------------------------------------------------------------------------------------------


def test_the_authors_settings_are_the_defaults() -> None:
    task = task_of()
    assert (task.adam.lr, task.patience.max_steps, task.restarts, task.worst) == (0.1, 700, 1, 0)
    assert task.crops_per_step is None
    assert task.texture.places == (SIZE - 1, SIZE - 1)
    assert task.sigma_ratio == 2.4
    assert task.alpha == 0


def test_every_setting_reaches_the_task() -> None:
    task = task_of(
        "seed=7", "restarts=3", "norm=6", "norm_fraction=0.5", "sigma_ratio=2.5", "every_place=true", "worst=0.25",
        "crops_per_step=4", "crops_at_once=50", "prior=total_variation", "prior.alpha=0.125",
        "parameterization.preconditioned=false", "solver.lr=0.3", "solver.betas=[0.8,0.95]", "solver.eps=1e-4",
        "solver.max_steps=17", "solver.patience=9", "solver.decay=0.6", "solver.at_once=5", "solver.inner_steps=2",
    )  # fmt: skip
    assert (task.seed, task.restarts, task.texture.norm, task.sigma_ratio) == (7, 3, 3.0, 2.5)
    assert task.texture.places == (SIZE, SIZE)
    assert (task.worst, task.crops_per_step, task.crops_at_once, task.alpha) == (0.25, 4, 50, 0.125)
    assert task.prior is not None
    assert task.texture._gain is None
    assert (task.adam.lr, task.adam.betas, task.adam.eps) == (0.3, (0.8, 0.95), 1e-4)
    assert (task.patience.max_steps, task.patience.patience, task.patience.decay) == (17, 9, 0.6)
    assert (task.pool.capacity, task.inner_steps, len(task.pool)) == (5, 2, 3)


def test_the_solver_can_still_be_chosen() -> None:
    assert settings("solver=adam")["solver"]["max_steps"] == 1000
    assert settings("solver.max_steps=3")["solver"]["max_steps"] == 3
    assert "lambda_grid" not in settings()


def test_the_norm_is_that_of_photographs_of_a_crops_size(tmp_path: Path) -> None:
    """The root mean square of the crops' norms is half the norm of the one patch that there is, SIZE pixels wide."""
    values = torch.randint(0, 256, (SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "photographs").mkdir()
    Image.fromarray(values.numpy()).save(tmp_path / "photographs" / "patch.png")
    config = settings("images=photographs", "norm_fraction=0.5")
    network = build_network(config)
    task, origin = build_task(config, network)
    assert "photographs" in origin
    grey = values.double() / 255  # the cell's input space
    assert task.texture.norm == pytest.approx(0.5 * float(grey.norm()), rel=1e-5)
    (texture,) = task.texture.textures(task.start(torch.tensor([0])))
    norms = plain_crops(texture, SIZE - 1, SIZE / 2.4).flatten(1).norm(dim=1)
    assert float(norms.square().mean().sqrt()) == pytest.approx(task.texture.norm, rel=1e-5)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["lambda_grid=coarse"], ["lambda_grid", "task=diverse"]),
        (["every_place=perhaps"], ["every_place=perhaps", "true", "false"]),
        (["worst=2"], ["worst=2", "[0, 1]"]),
        (["crops_per_step=0"], ["crops_per_step=0", "1"]),
        (["crops_per_step=0.5"], ["crops_per_step=0.5", "whole number"]),
        (["crops_at_once=0"], ["crops_at_once=0", "1"]),
        (["sigma_ratio=0"], ["sigma_ratio=0", "positive"]),
        (["sigma_ratio=wide"], ["sigma_ratio=wide", "number"]),
        (["norm=-1"], ["norm=-1", "positive"]),
        (["unit=3"], ["unit=3", "0 to 0"]),
        (["layer=complx"], ["'complx'", "'complex'"]),
        (["parameterization.preconditioned=perhaps"], ["perhaps", "true", "false"]),
    ],
)
def test_mistakes(typed: list[str], words: list[str]) -> None:
    config = settings(*typed)
    network = build_network(config)
    with pytest.raises(FvlightError) as caught:
        build_task(config, network)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# -- from the command --------------------------------------------------------------------------------------


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_run_writes_what_a_plain_loop_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SHORT, "restarts=2", "hydra.run.dir=out"]) == 0
    out = tmp_path / "out"
    found = load_file(out / "images.safetensors")
    side = 2 * SIZE - 1
    assert found["images"].shape == found["display"].shape == (1, 1, 1, 1, side, side)
    assert found["display"].dtype == torch.uint8
    assert found["activations"].shape == (1, SIZE - 1, SIZE - 1)

    network = build_network(settings())
    crops = plain_crops(found["images"][0, 0, 0], SIZE - 1, SIZE / 2.4)
    with torch.no_grad():
        expected = network.module.double()(crops).flatten()
    assert relative_error(found["activations"].flatten(), expected) < 1e-5

    summary = strict_json(out / "summary.json")
    assert (summary["task"], summary["network"], summary["layer"]) == ("texture", "energy_cell", "complex")
    assert (summary["image_size"], summary["texture_size"]) == ([SIZE] * 2, [side] * 2)
    assert (summary["places"], summary["norm"], summary["complete"]) == ([SIZE - 1] * 2, 1.0, True)
    (unit,) = summary["units"]
    assert unit["mean_activation"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert unit["least_activation"] == pytest.approx(float(expected.min()), rel=1e-4)
    assert unit["largest_activation"] == pytest.approx(float(expected.max()), rel=1e-5)
    assert (unit["steps"], unit["status"]) == (12, "max_steps")

    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["problem"], row["start"], row["step"]) for row in rows] == [
        (str(start), str(start), str(step)) for start in range(2) for step in (3, 6, 9, 12)
    ]
    best = max(float(row["mean_activation"]) for row in rows if row["step"] == "12")
    assert best < unit["mean_activation"] * 1.001  # the last row was taken before the last step
    assert float(rows[0]["mean_activation"]) < best

    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert lines[-1] == str(out / "report.html")
    for word in ("unit", "mean", "least", "largest", "steps", "status", "max_steps", "energy_cell, complex"):
        assert word in output
    assert "lambda" not in output
    page = (out / "report.html").read_text()
    assert "chosen" not in page.lower()
    assert "data:image/png" in page
    assert imread(out / "figures" / "textures.png").ndim == 3
    assert [path.name for path in (out / "figures").iterdir()] == ["textures.png"]


def test_resumed_textures_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted within a block, with places that differ from step to step; bit for bit."""
    typed = [*SHORT, "crops_per_step=9", "worst=0.5", "restarts=3", "solver.at_once=2"]
    assert cli.main([*typed, "hydra.run.dir=whole"]) == 0
    steps, evaluate = [0], TextureTask.evaluate

    def stopping(*arguments: Any) -> Evaluation:
        steps[0] += 1
        if steps[0] == 8:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextureTask, "evaluate", stopping)
        assert cli.main([*typed, "checkpoint_seconds=0", "hydra.run.dir=halves"]) == 130
    assert not (tmp_path / "halves" / "summary.json").exists()
    capsys.readouterr()
    assert cli.main(["resume=halves"]) == 0
    assert "going on from" in capsys.readouterr().err
    whole, halves = (load_file(tmp_path / name / "images.safetensors") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() == {"images", "display", "activations"}
    for name, value in whole.items():
        assert torch.equal(value, halves[name])
    units = [strict_json(tmp_path / name / "summary.json")["units"] for name in ("whole", "halves")]
    assert units[0] == units[1]
    metrics = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


def test_a_run_is_not_resumed_as_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SHORT, "hydra.run.dir=out"]) == 0
    before = (tmp_path / "out" / "images.safetensors").read_bytes()
    capsys.readouterr()
    assert cli.main(["resume=out", "task=diverse", "restarts=1"]) == 2
    assert "task=texture" in capsys.readouterr().err
    assert (tmp_path / "out" / "images.safetensors").read_bytes() == before
    assert cli.main(["resume=out"]) == 0  # the mistake is not remembered


def test_a_texture_that_becomes_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = TextureTask.evaluate

    def broken(*arguments: Any) -> Evaluation:
        score, figures = evaluate(*arguments)
        return Evaluation(score * float("nan"), figures)

    monkeypatch.setattr(TextureTask, "evaluate", broken)
    assert cli.main([*SHORT, "hydra.run.dir=bad"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    for word in ("NaN", "energy_cell: unit 0;", "solver.lr"):
        assert word in errors[0]
    summary = strict_json(tmp_path / "bad" / "summary.json")
    assert summary["complete"] is False
    assert summary["units"][0]["status"] == "nan"
    assert "status nan" in (tmp_path / "bad" / "report.html").read_text()


def test_an_experiment_of_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of images and one of textures, each with a table of its own in the report of both."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    cell = ", ".join(CELL[1:])
    short = "solver.max_steps=3"
    images = f"[{cell}, {short}, images_per_problem=2, restarts=1, 'lambda_grid.values=[0,1]']"
    (tmp_path / "conf" / "experiment" / "both.yaml").write_text(
        f"# @package _global_\nruns:\n  images: {images}\n  textures: [task=texture, {cell}, {short}]\n"
    )
    assert cli.main(["--config-dir", "conf", "experiment=both", "trainer=cpu", "hydra.run.dir=out"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    summary = strict_json(tmp_path / "out" / "summary.json")
    assert [part["task"] for part in summary["runs"].values()] == ["diverse", "texture"]
    assert summary["complete"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('href="images/report.html"') == page.count('href="textures/report.html"') == 1
    first, second = page.index("least activation"), page.index("diversity gain")
    assert first < page.index('href="textures/report.html"') < second < page.index('href="images/report.html"')
