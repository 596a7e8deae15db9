"""Networks of other projects: built from their own classes, loaded from their own checkpoints, nothing run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fvlight import FvlightError, InputSpace, Network, cli
from fvlight.zoo import load_network
from tests.helpers import no_handlers, one_thread  # noqa: F401  (fixtures; the second is for all tests)

PACKAGE = "someones_project"
SOURCE = """
from pathlib import Path

import lightning as L
import torch
from torch import nn

Path(__file__).with_name("imported").touch()


class Net(nn.Module):
    def __init__(self, classes=3, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 5, 3))
        self.head = nn.Linear(5, classes)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


class Lit(L.LightningModule):
    def __init__(self, classes=3, settings=None):
        super().__init__()
        self.save_hyperparameters()
        self.model, self.teacher = Net(classes), nn.Linear(1, 1)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def function():
    return Net()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be imported, which leaves a file when it is."""
    folder = tmp_path / "src" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def module(name: str = "Lit", **arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return getattr(importlib.import_module(f"{PACKAGE}.models"), name)(**arguments)


def trained(folder: Path, **arguments: Any) -> tuple[nn.Module, Path]:
    """Somebody's LightningModule after a step of training, and the checkpoint that Lightning wrote of it."""
    lit = module("Lit", **arguments)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(TensorDataset(torch.rand(4, 1, 8, 8))))
    trainer.save_checkpoint(folder / "last.ckpt")
    return lit.model.eval(), folder / "last.ckpt"


def load(weights: Any, name: str = "Net", **options: Any) -> Network:
    return load_network(
        "lightning_checkpoint", str(weights), **{"target": f"{PACKAGE}.models.{name}", "trusted": [PACKAGE], **options}
    )


def assert_computes_like(network: Network, original: nn.Module) -> None:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(network.module(images), original(images))


@pytest.mark.usefixtures("restored_environment")
def test_a_lightning_checkpoint(project: Path, tmp_path: Path) -> None:
    original, path = trained(tmp_path, classes=4)
    network = load(path, prefix="model.", arguments={"classes": 4}, input={"size": 8, "channels": 1, "mean": [0.5]})
    assert_computes_like(network, original)
    assert not network.module.training
    assert network.name == "Net"
    assert network.input_space == InputSpace(channels=1, mean=(0.5,))
    assert network.image_size == (8, 8)
    whole = load(path, "Lit", arguments={"classes": 4})
    assert_computes_like(whole, original)
    assert "model.features.3" in whole.layers


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_plain_files(prefix: str, suffix: str, project: Path, tmp_path: Path) -> None:
    original = module("Net").eval()
    tensors = {f"{prefix}{name}": value for name, value in original.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    assert_computes_like(load(path, prefix=prefix), original)


def test_random_weights_depend_on_the_seed_alone(project: Path) -> None:
    first, again, other = (load("random", seed=seed).module.head.weight for seed in (1, 1, 2))  # type: ignore[union-attr]
    assert isinstance(first, Tensor)
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


# -- what is refused -------------------------------------------------------------------------------------------


def test_nothing_is_imported_from_a_package_that_is_not_trusted(project: Path) -> None:
    with pytest.raises(FvlightError, match=rf"'{PACKAGE}.models.Net' is not loaded.*'trusted=\[{PACKAGE}\]'"):
        load("random", trusted=[])
    assert not (project / "imported").exists()
    load("random")
    assert (project / "imported").exists()


@pytest.mark.usefixtures("restored_environment")
def test_a_checkpoint_whose_hyperparameters_are_objects_is_not_loaded(project: Path, tmp_path: Path) -> None:
    _, path = trained(tmp_path, settings=argparse.Namespace(rate=0.1))
    with pytest.raises(FvlightError, match=r"holds more than tensors \(argparse.Namespace\).*save its state_dict\(\)"):
        load(path, prefix="model.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "modell."}, ["network.prefix=modell.", "model., teacher."]),
        ({"prefix": ""}, ["do not fit Net", "missing (features.0.weight", "unexpected (model.features.0.weight"]),
        ({"arguments": {"classes": 7}}, ["2 of another shape", "head.weight"]),
        ({"arguments": {"clases": 7}}, ["can't be built", "'clases'", "network.arguments"]),
        ({"target": None}, ["network.target="]),
        ({"target": f"{PACKAGE}.models.Nett"}, ["Nett"]),
        ({"target": f"{PACKAGE}.models.function"}, ["function", "Module"]),
        ({"target": "no_such_package.Net", "trusted": ["no_such_package"]}, ["no_such_package", "PYTHONPATH"]),
        ({"weights": "default"}, ["network.checkpoint=FILE"]),
        ({"weights": "nowhere.ckpt"}, ["nowhere.ckpt"]),
        ({"input": {"sise": 3}}, ["'sise'", "'size'", "network.input"]),
        ({"input": {"size": [3]}}, ["network.input.size=[3]"]),
        ({"input": {"mean": [0.1, 0.2]}}, ["network.input.mean=[0.1, 0.2]", "3 channels"]),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], words: list[str], project: Path, tmp_path: Path) -> None:
    lit = module()
    torch.save({"state_dict": lit.state_dict()}, tmp_path / "last.ckpt")
    options = {"weights": tmp_path / "last.ckpt", "prefix": "model.", **options}
    with pytest.raises(FvlightError) as caught:
        load(**options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# -- on the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def typed(project: Path, tmp_path: Path) -> list[str]:
    torch.save({"state_dict": module().state_dict()}, tmp_path / "last.ckpt")
    return [
        "network=lightning_checkpoint", f"network.target={PACKAGE}.models.Net", f"trusted=[{PACKAGE}]",
        "network.arguments={classes: 3}", f"network.checkpoint={tmp_path / 'last.ckpt'}", "network.prefix=model.",
        "network.input={size: 8, channels: 1, mean: [0.5], std: [0.25]}", "layer=features.3",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_handlers")
def test_a_run(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["norm=3", "unit=[0,2]", "images_per_problem=2", "lambda_grid.values=[0,1]", "solver.max_steps=3"]
    assert cli.main([*typed, *settings, "hydra.run.dir=out"]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["network"], summary["layer"]) == ("lightning_checkpoint", "features.3")
    assert summary["weights"] == str(tmp_path / "last.ckpt")
    capsys.readouterr()
    assert cli.main([*typed, "--list-layers"]) == 0
    assert "features.3" in capsys.readouterr().out
    # without a checkpoint, layers can be listed all the same, and nothing else
    without = [text for text in typed if not text.startswith("network.checkpoint=")]
    assert cli.main([*without, "--list-layers"]) == 0
    assert cli.main([*without, *settings, "hydra.run.dir=none"]) == 2
    assert "network.checkpoint=FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_a_shell(typed: list[str], tmp_path: Path, project: Path) -> None:
    """As a user would: the package found by PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project.parent), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, "-m", "fvlight", *typed, "--list-layers"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "features.3" in ended.stdout
