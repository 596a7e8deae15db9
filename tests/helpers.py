"""Oracles that several test files share: full maps, gradient supports, and what a module looked like."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from fvlight import cli
from fvlight.network import split_call

Box = tuple[tuple[int, int], tuple[int, int]]  # (first, last + 1) row, (first, last + 1) column


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over largest expected magnitude."""
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    assert expected.abs().max() > 0, "an oracle that is zero everywhere can't tell right from wrong"
    return float((value - expected).abs().max() / expected.abs().max())


class _Enough(Exception):
    """The layer has been read."""


def full_map(module: nn.Module, layer: str, images: Tensor, first_call: bool = False) -> Tensor:
    """A layer's output in evaluation mode, from the module's own forward, before anything changes it.

    ``relu_1`` is the second output of ``relu``, as in `Network.resolve`; ``first_call`` leaves after the first.
    """
    path, call = split_call(layer, dict(module.named_modules()))
    found: list[Tensor] = []
    modes = {part: part.training for part in module.modules()}

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output.clone())
        if first_call:
            raise _Enough

    handle = module.get_submodule(path).register_forward_hook(keep)
    try:
        module.eval()(images)
    except _Enough:
        pass
    finally:
        handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return found[call]


def snapshot(module: nn.Module) -> dict[str, Any]:
    """All that a readout must leave as it was; compare with `==`."""
    parts = dict(module.named_modules())
    hook_names = [name for name in vars(module) if name.endswith("_hooks")]
    return {
        "state": {name: value.clone().numpy().tobytes() for name, value in module.state_dict().items()},
        "modes": {name: part.training for name, part in parts.items()},
        "hooks": {(name, kind): dict(getattr(part, kind)) for name, part in parts.items() for kind in hook_names},
        "requires_grad": {name: value.requires_grad for name, value in module.named_parameters()},
        "grads": {name: value.grad is None for name, value in module.named_parameters()},
        "inplace": {name: getattr(part, "inplace", None) for name, part in parts.items()},
        "classes": {name: type(part) for name, part in parts.items()},
    }


def supports(
    maps: Callable[[Tensor], Tensor],
    units: Sequence[tuple[int, int]],
    size: int,
    channels: int = 3,
    images: int = 4,
) -> list[Box]:
    """For each unit the box of pixels that its gradient reaches, over random images in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images // 2, channels, size, size, generator=generator, dtype=torch.float64)
    x = torch.cat([x, -x]).requires_grad_()  # of the two signs a rectified linear unit lets one through
    y = maps(x)
    boxes = []
    for row, column in units:
        mix = torch.randn(y.shape[:2], generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((y[:, :, row, column] * mix).sum(), x, retain_graph=True)
        seen = gradient.abs().sum((0, 1)) > 0
        rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
        boxes.append(((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)))
    return boxes


def windows(size: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int], unit: tuple[int, int]) -> Box:
    """The box that a receptive field says a unit sees."""
    rows, columns = ((o + u * j, o + u * j + r) for r, j, o, u in zip(size, stride, offset, unit, strict=True))
    return rows, columns


def interior_unit(size: int, field: Any) -> tuple[int, int]:
    """A unit near the middle of an image of ``size`` pixels; its window and the next one's lie inside."""
    unit = tuple(((size - r) // 2 - o) // j for r, j, o in zip(field.size, field.stride, field.offset, strict=True))
    for last in (0, 1):
        box = windows(field.size, field.stride, field.offset, (unit[0] + last, unit[1] + last))
        assert all(first >= 0 and end <= size for first, end in box), "the image is too small for this layer"
    return unit  # type: ignore[return-value]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random biases and normalisation statistics: defaults of 0 and 1 would hide that they were left out."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> None:
        like.data.copy_(low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64))

    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            draw(part.running_mean, -0.2, 0.2)
            draw(part.running_var, 0.5, 1.5)
            draw(part.weight, 0.5, 1.5)
            draw(part.bias, -0.2, 0.2)
        elif isinstance(part, nn.Conv2d) and part.bias is not None:
            draw(part.bias, -0.2, 0.2)
    return module


def built(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with random weights of its own seed, in float64 and evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(build(), seed).double().eval()


@cache
def torchvision_network(name: str) -> nn.Module:
    """A torchvision network with random weights, float64, shared by all tests: don't change it."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    build = getattr(torchvision.models, name)
    if name != "vgg19":
        return built(lambda: build(weights=None, num_classes=2, **options))

    def without_classifier() -> nn.Module:  # its 120 million weights are of no use here
        vgg = torchvision.models.VGG(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"]), 2, False)
        vgg.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512 * 49, 2))
        return vgg

    return built(without_classifier)


class Residual(nn.Module):
    """Branches of different crops meet: 5 × 3 then 3 × 3 taps, and a strided shortcut of one tap."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 8, (5, 3), padding=(2, 1), stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = self.again(torch.relu_(self.norm(self.wide(x))))
        y += self.shortcut(x)
        return self.relu(y)


class Branches(nn.Module):
    """An inception block: 1 × 1, dilated 3 × 3, average pooling, part of the channels; concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.point = nn.Conv2d(6, 4, 1)
        self.dilated = nn.Conv2d(6, 4, 3, padding=2, dilation=2)
        self.pooled = nn.AvgPool2d(3, stride=1, padding=1)
        self.after = nn.Conv2d(14, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.relu(self.stem(x), inplace=True)
        branches = [self.point(x), self.dilated(x), self.pooled(x)[:, :4], x[:, 4:]]
        return self.after(torch.cat(branches, dim=1) * 0.5)


class Functional(nn.Module):
    """Poolings and activations as functions, padded and with ceil mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        functional = torch.nn.functional
        x = functional.max_pool2d(torch.relu(self.a(x)), 3, stride=2, padding=1, ceil_mode=True)
        x = functional.avg_pool2d(functional.elu(self.b(x)), 2, ceil_mode=True)
        return self.c(x)


def _chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2), nn.LeakyReLU(0.1, inplace=True),
        nn.LocalResponseNorm(3),
        nn.AvgPool2d(2, padding=1), nn.Conv2d(8, 4, (1, 3), padding=(0, 1)),
    )  # fmt: skip


# name: (module, its last layer, others before it)
TOYS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "chain": (_chain, "7", ("3", "2", "0")),
    "residual": (Residual, "relu_1", ("first", "norm", "shortcut")),
    "branches": (Branches, "after", ("stem", "point", "dilated", "pooled")),
    "functional": (Functional, "c", ("a", "b")),
}
# (network, layer, an earlier layer): modest receptive fields
LAYERS = [
    ("vgg19", "features.10", "features.7"),  # conv3_1, behind two poolings
    ("vgg19", "features.9", "features.2"),
    ("resnet50", "maxpool", "conv1"),
    ("resnet50", "layer1.0", "layer1.0.downsample"),
    ("resnet50", "layer1.1.conv2", "layer1.0"),
    ("resnet50", "layer2.0.conv2", "layer1.2.conv2"),
    ("googlenet", "maxpool2", "maxpool1"),  # both with ceil mode
    ("googlenet", "inception3a", "inception3a.branch1"),
    ("squeezenet1_1", "features.3", "features.2"),  # concatenation behind a ceil-mode pooling
    ("squeezenet1_1", "features.6.squeeze", "features.4"),
]


@cache
def toy(name: str) -> nn.Module:
    """One of `TOYS` in float64, shared by all tests: don't change it."""
    return built(TOYS[name][0])


def save_pictures(folder: Path, count: int, noise: tuple[int, int], size: tuple[int, int]) -> Path:
    """``0.png``, ``1.png``, … of (height, width) ``size``, each a row higher than the last, and a file that is none.

    Random numbers of (rows, columns) ``noise``, interpolated; the fifth picture is grey.
    """
    generator = np.random.default_rng(0)
    for i in range(count):
        picture = Image.fromarray(generator.integers(0, 256, (*noise, 3), dtype=np.uint8))
        picture = picture.resize((size[1], size[0] + i))
        (picture.convert("L") if i == 4 else picture).save(folder / f"{i}.png")
    (folder / "2b.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 3 MB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk: mounting one takes root's rights")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a log file may still be open


@contextmanager
def handlers_taken_off() -> Iterator[None]:
    """Takes off the log handlers that Hydra leaves behind."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """`handlers_taken_off` for a whole test."""
    with handlers_taken_off():
        yield


@pytest.fixture(name="script")
def benchmark_script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that a file of tests is named after; take `one_thread` as well, which its ``--threads`` changes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    module = import_module(request.path.stem.removeprefix("test_"))
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)  # for the whole process: not in a test
    return module


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """The command in this process: exit status, standard output, lines of standard error."""
    capsys.readouterr()
    status = cli.main(list(arguments))
    output, errors = capsys.readouterr()
    return status, output, errors.splitlines()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Problems this small are solved soonest by one thread: several wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
