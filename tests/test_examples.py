"""The example projects and the pages about them, run as a user would run them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fvlight.training.visualization import GAP, HEADER, SIDE
from tests.helpers import one_thread  # noqa: F401  (for all tests)

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")


def run(folder: Path, *command: str, **environment: str) -> str:
    """A program in a folder; its standard output."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH"), environment.pop("PYTHONPATH", "")]))
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def loaded(path: Path) -> Any:
    """A script as a module, not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def orientation(image: Tensor) -> float:
    """Degrees by which the bars of an image (H, W) are turned, clockwise from horizontal: by the power spectrum."""
    image = image.double()
    power = torch.fft.fft2(image - image.mean()).abs().square()
    fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in image.shape)
    angle = torch.atan2(-fx[None, :], fy[:, None])  # of the bars, which run across the wave
    mean = (power * torch.exp(2j * angle)).sum()
    return math.degrees(float(mean.angle()) / 2) % 180


def turned(angle: float, other: float) -> float:
    """Degrees between two orientations."""
    return abs((angle - other + 90) % 180 - 90)


# -- the classifier --------------------------------------------------------------------------------------------


def test_the_classifier_s_data_are_what_they_are_said_to_be() -> None:
    images, classes = loaded(EXAMPLES / "lightning_classifier" / "train.py").gratings(60, 3).tensors
    assert images.shape == (60, 1, 24, 24)
    assert set(classes.tolist()) == set(range(6))
    for image, label in zip(images, classes.tolist(), strict=True):
        assert turned(orientation(image[0]), 30 * label) < 12


@pytest.mark.slow
def test_the_classifier(tmp_path: Path) -> None:
    """Each class is shown as gratings of its own orientation."""
    output = run(tmp_path, sys.executable, str(EXAMPLES / "lightning_classifier" / "train.py"))
    accuracy = re.search(r"accuracy (\d\.\d+)", output)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9
    folder = tmp_path / "logs" / "gratings" / "version_0" / "feature_visualization"
    names = [f"{layer}-epoch=00{epoch}.png" for layer in ("features.4", "head") for epoch in (2, 5)]
    assert sorted(path.name for path in folder.iterdir()) == names
    picture = torch.tensor(np.asarray(Image.open(folder / "head-epoch=005.png").convert("L"))) / 255
    for label in range(6):
        for row in range(2):
            x, y = 2 * GAP + label * (SIDE + GAP), 2 * HEADER - GAP + row * (SIDE + GAP)
            image = picture[y : y + SIDE : 4, x : x + SIDE : 4]
            magnified = image.repeat_interleave(4, 0).repeat_interleave(4, 1)
            assert torch.equal(magnified, picture[y : y + SIDE, x : x + SIDE])
            assert turned(orientation(image), 30 * label) < 12


# -- the Hydra project -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_hydra_project(tmp_path: Path) -> None:
    """At the chosen lambda the six images are of the cell's six orientations."""
    script = str(EXAMPLES / "hydra_project" / "run.py")
    output = run(tmp_path, sys.executable, script, "experiment=orientations", "hydra.run.dir=out")
    assert "report.html" in output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["network"] == "orientation_cell"
    (unit,) = summary["units"]
    lambdas = [point["lambda"] for point in unit["sweep"]]
    assert lambdas == [0, 1.28, 20.48]
    chosen = lambdas.index(unit["lambda_selected"])
    assert unit["sweep"][chosen]["relative_activation"] > 0.8
    images = load_file(tmp_path / "out" / "images.safetensors")["images"][0, chosen, :, 0]
    found = sorted(round(orientation(image) / 30) % 6 for image in images)
    assert found == [0, 1, 2, 3, 4, 5]


# -- the page --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """With the example's model and data for those of the reader."""
    watching, solving, loading = snippets("python")
    script = [
        "import train, torch; from torch.utils.data import DataLoader",
        "model, loader = train.Classifier(), DataLoader(train.gratings(64, 0), 32)",
        *(watching, "trainer.save_checkpoint('last.ckpt')", solving, loading),
        "print(visualization.images['head'].shape, network.image_size, network.input_space.channels)",
        "theirs = network.module.state_dict()",
        "names = [name for name in theirs if not name.endswith('num_batches_tracked')]",
        "assert all(torch.equal(model.state_dict()[name], theirs[name]) for name in names)",
    ]
    path = str(EXAMPLES / "lightning_classifier")
    output = run(tmp_path, sys.executable, "-c", "\n".join(script), PYTHONPATH=path).splitlines()
    assert output[-2:] == ["torch.Size([2, 2, 6, 1, 14, 14])", "torch.Size([6, 2, 1, 24, 24]) (24, 24) 1"]


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    train = loaded(EXAMPLES / "lightning_classifier" / "train.py")
    torch.save({"state_dict": train.Classifier().state_dict()}, tmp_path / "last.ckpt")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (text,) = snippets("sh")
    command = f"{sys.executable} -m fvlight "
    assert text.count("\nfvlight ") == 2
    shell = f"set -e\nbase=$PYTHONPATH\n{text}".replace("\nfvlight ", f'\nPYTHONPATH="$PYTHONPATH:$base" {command}')
    output = run(tmp_path, "sh", "-c", shell)
    assert "features.4" in output
    assert list(tmp_path.rglob("report.html"))


def test_its_configuration_is_the_example_s() -> None:
    (text,) = snippets("yaml")
    assert text in (EXAMPLES / "hydra_project" / "conf" / "project.yaml").read_text()


def test_the_pages_lead_to_files_that_there_are() -> None:
    for page in (ROOT / "docs" / "lightning.md", *EXAMPLES.rglob("README.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), link
