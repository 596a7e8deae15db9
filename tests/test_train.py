"""scripts/train.py: a tiny training from the command line, errors in one line, and the start of those that shipped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from fvlight.zoo import load_network
from tests.conftest import REPOSITORY
from tests.helpers import no_handlers, one_thread  # noqa: F401  (fixtures; the second is for all tests)
from tests.zoo.training.test_densenet import write_images

pytestmark = pytest.mark.usefixtures("no_handlers")
TRAINED = REPOSITORY / "zoo" / "trained"


@pytest.fixture(name="train")
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    specification = importlib.util.spec_from_file_location("train", REPOSITORY / "scripts" / "train.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr("fvlight.zoo.training.base.keep_freed_memory", lambda: True)  # for the whole process
    return module


def test_a_training_writes_weights_and_figures_and_can_be_asked_again(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", {"train": 4, "test": 1})
    command = [
        "experiment=train/densenet_bc_without_4", f"images={images}", "depth=10", "growth=4", "epochs=2", "batch=9",
        "trainer.accelerator=cpu", "hydra.run.dir=out",
    ]  # fmt: skip
    for _ in range(2):
        assert train.main(command) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[-1] == str(tmp_path / "out" / "densenet.safetensors")
        assert printed[0].startswith("test_accuracy_of_seen_classes: ")
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert [step for step, _ in summary["losses"]] == [8]  # 36 images in batches of 9, twice
        assert summary["command"].startswith("python scripts/train.py experiment=train/densenet_bc_without_4 ")
        assert summary["settings"]["without"] == 4
    with safe_open(printed[-1], "pt") as file:
        metadata = file.metadata()
    assert (metadata["recipe"], metadata["steps"], metadata["seed"]) == ("densenet", "8", "0")
    assert json.loads(metadata["first_losses"]) == summary["losses"]
    card = (tmp_path / "out" / "densenet.md").read_text()
    assert "DenseNet-BC on CIFAR-10 by the published recipe" in card
    assert "36 images of images, class 4 left out; tested on 10" in " ".join(card.split())
    shown = "python scripts/train.py experiment=train/densenet_bc_without_4 images=images depth=10 growth=4 epochs=2"
    assert shown in card  # without this machine's folders
    assert str(tmp_path) not in card
    assert f"| test accuracy of seen classes | {summary['figures']['test_accuracy_of_seen_classes']:.4g} |" in card
    network = load_network("densenet_bc", printed[-1], growth=4, depth=10)
    with torch.no_grad():
        assert network.module(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no experiment ''"),
        (["experiment=train/srnett"], "no experiment 'train/srnett' in zoo/training/conf: did you mean 'train/srnet'"),
        (["experiment=train/srnet"], "volumes=[FILE,...] (to train on) and held_out=FILE"),
        (["experiment=train/srnet", "volume=a"], "no setting 'volume' in experiment=train/srnet: did you mean"),
        (["experiment=train/srnet", "volumes=a.npy", "held_out=b.npy"], "there is no volume 'a.npy'"),
        (["experiment=train/densenet_bc"], "images=FILE.zip or FOLDER must be given"),
        (["experiment=train/densenet_bc", "images=none.zip"], "images=none.zip can't be read"),
        (["experiment=train/densenet_bc", "images=none.zip", "out=a.pth"], "out=a.pth is not a .safetensors"),
    ],
)
def test_errors_are_one_line(
    train: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ")
    assert message in line


def test_ctrl_c_before_the_first_step_is_one_line(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fvlight.zoo.training.densenet.recipe", interrupted)
    assert train.main(["experiment=train/densenet_bc", "hydra.run.dir=out"]) == 130
    assert capsys.readouterr().err == "train: stopped\n"


# -- the first steps of the trainings whose weights shipped ------------------------------------------------------


def first_loss(name: str) -> float:
    """The mean loss of the first hundred steps, as the file says."""
    path = TRAINED / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    with safe_open(path, "pt") as file:
        (_, loss), *_ = json.loads(file.metadata()["first_losses"])
    return float(loss)


def number_in(path: Path, key: str) -> float:
    with safe_open(path, "pt") as file:
        return float(file.metadata()[key])


def losses(train: ModuleType, *arguments: str) -> list[float]:
    assert train.main([*arguments, "trainer.accelerator=cpu", "hydra.run.dir=out"]) == 0
    return [loss for _, loss in json.loads(Path("out/summary.json").read_text())["losses"]]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "experiment"),
    [("densenet_bc_22_12", "densenet_bc"), ("densenet_bc_22_12_without_4", "densenet_bc_without_4")],
)
def test_densenet_begins_as_the_one_that_shipped(
    train: ModuleType, name: str, experiment: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in the same order: what differs is rounding, which 100 steps at a rate of 0.1 blow up."""
    expected = first_loss(name)
    monkeypatch.setattr("fvlight.zoo.training.densenet.DenseNetRecipe.measure", lambda self, folder: {})
    archive = shared / "cifar10" / "cifar10_jpeg75.zip"
    found = losses(train, f"experiment=train/{experiment}", f"images={archive}", "+trainer.max_steps=200")
    assert found[0] == pytest.approx(expected, rel=0.03)
    assert found[1] < 0.95 * found[0]


@pytest.mark.slow
@pytest.mark.long
def test_srnet_begins_as_the_one_that_shipped(train: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On sixty crops of the same sort, which may be easier or harder: the loss beside that of bilinear upscaling."""
    expected, bilinear = first_loss("srnet"), number_in(TRAINED / "srnet.safetensors", "bilinear_loss")
    monkeypatch.setattr("fvlight.zoo.training.srnet.SRNetRecipe.measure", lambda self, folder: {})
    volumes = shared / "volumes"
    found = losses(
        train, "experiment=train/srnet", f"volumes=[{volumes / 'volume_rm_t0020.npz'}]", "crops=60",
        f"held_out={volumes / 'volume_C60Large.npz'}", "+trainer.max_steps=200",
    )  # fmt: skip
    easier = number_in(Path("out/srnet.safetensors"), "bilinear_loss") / bilinear
    assert found[0] == pytest.approx(easier * expected, rel=0.2)
    assert found[1] < 0.8 * found[0]
