"""scripts/sample_prior.py and scripts/benchmark_prior.py: a picture, figures against closed forms, errors in a line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fvlight.priors import PixelCNN
from fvlight.zoo import load_network
from fvlight.zoo.pixelcnn import PixelCNN as Model
from fvlight.zoo.pixelcnn_weights import load_pixelcnn
from tests.helpers import one_thread  # noqa: F401  (for all tests)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))


@pytest.fixture
def sampling(scripts: None) -> ModuleType:
    return import_module("sample_prior")


@pytest.fixture
def benchmark(scripts: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = import_module("benchmark_prior")
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)  # for the whole process: not in a test
    return module


def test_a_picture_of_samples(sampling: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.png"
        command = ["--weights", "random", "--count", "3", "--size", "8", "--zoom", "2", "--out", str(path)]
        assert sampling.main([*command, "--seed", str(seed)]) == 0
        path_line, bits_line = capsys.readouterr().out.splitlines()
        assert path_line == str(path)
        assert bits_line.endswith(" bits per dimension")
        pictures.append(np.asarray(Image.open(path)))
    first, second, third = pictures
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    assert np.array_equal(first[::2, ::2], first[1::2, 1::2])  # each pixel a square
    assert first[16:, 16:].max() == 0  # there is no fourth
    assert first[:16, :16].std() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "10"], "--size 10 --zoom 4: at least 1 image, of a multiple of 4 pixels"),
        (["--count", "0"], "--count 0"),
        (["--out", "a.jpg"], "--out 'a.jpg' is not a .png file"),
        (["--weights", "none.safetensors"], "no weights of PixelCNN++ at 'none.safetensors'"),
    ],
)
def test_errors_are_one_line(
    sampling: ModuleType, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sampling.main(["--weights", "random", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sample_prior: ")
    assert words in line


def closed_form(filters: int, resnets: int, mixtures: int, side: int) -> int:
    """Multiply-adds of an image: channels in times out times taps of each convolution, at its resolution."""
    f = filters
    total = (4 * f * (6 + 3 + 2) + f * 10 * mixtures) * side**2

    def resnet(taps: int, others: int, pixels: int) -> int:
        return (2 * f * f * taps + 2 * others * f + 2 * f * 2 * f * taps) * pixels

    for level in range(3):
        pixels = (side // 2**level) ** 2
        total += resnets * (resnet(6, 0, pixels) + resnet(4, f, pixels))
        total += (resnets + (level < 2)) * (resnet(6, f, pixels) + resnet(4, 2 * f, pixels))
        if level < 2:  # halved, and doubled again: each tap of a transposed one meets each pixel that comes in
            total += 2 * f * f * (6 + 4) * pixels // 4
    return total


def test_multiply_adds_in_closed_form(benchmark: ModuleType) -> None:
    """Of the prior; what the network's are is tested with scripts/benchmark_readout.py."""
    space = load_network("vgg19", "random").input_space
    images = torch.zeros(1, 3, 24, 24)
    models = {"small": PixelCNN(load_pixelcnn("random"), space), "other": PixelCNN(Model(3, 2, 1).eval(), space)}
    with torch.no_grad():
        values = benchmark.values(models, images)
        found = {name: benchmark.multiply_adds(values[f"{name}, float32"]) for name in models}
    assert found == {"small": closed_form(8, 1, 2, 24), "other": closed_form(3, 2, 1, 24)}


def test_it_prints_ratios(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "Model", lambda: Model(4, 1, 1))
    assert benchmark.main(["--weights", "random", "--images", "2", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["VGG-19", "PixelCNN++", "PixelCNN++"]
    assert sum("x VGG-19's" in line for line in lines) == 3 + 4
    assert benchmark.main(["--weights", "random", "--images", "0"]) == 2
    assert "benchmark_prior: --images 0" in capsys.readouterr().err
