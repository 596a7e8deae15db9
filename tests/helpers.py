"""Oracles that several test files share: hooked full maps, gradient supports, and what a module looked like."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

Box = tuple[tuple[int, int], tuple[int, int]]  # (first, last + 1) row, (first, last + 1) column


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over largest expected magnitude."""
    assert value.shape == expected.shape
    assert expected.abs().max() > 0, "an oracle that is zero everywhere can't tell right from wrong"
    return float((value.double() - expected.double()).abs().max() / expected.double().abs().max())


def full_map(module: nn.Module, layer: str, images: Tensor) -> Tensor:
    """A layer's (last) output in evaluation mode, from the module's own forward, before anything changes it."""
    found: list[Tensor] = []
    modes = {part: part.training for part in module.modules()}
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, y: found.append(y.clone()))
    try:
        module.eval()(images)
    finally:
        handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return found[-1]


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


def support(maps: Callable[[Tensor], Tensor], unit: tuple[int, int], size: int, channels: int = 3) -> Box:
    """The box of input pixels whose gradient to a unit is not zero, over random images in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, channels, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    read = maps(images)[:, :, unit[0], unit[1]]
    mix = torch.randn(read.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((read * mix).sum(), images)
    seen = gradient.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def windows(size: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int], unit: tuple[int, int]) -> Box:
    """The box that a receptive field says a unit sees."""
    rows, columns = ((o + u * j, o + u * j + r) for r, j, o, u in zip(size, stride, offset, unit, strict=True))
    return rows, columns


def interior_unit(size: int, field: Any) -> tuple[int, int]:
    """A unit near the middle of an image of ``size`` pixels; its window and the next one's lie inside."""
    unit = tuple(((size - r) // 2 - o) // j for r, j, o in zip(field.size, field.stride, field.offset, strict=True))
    for last in (0, 1):
        box = windows(field.size, field.stride, field.offset, (unit[0] + last, unit[1] + last))
        assert all(0 <= first and end <= size for first, end in box), "the image is too small for this layer"
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
