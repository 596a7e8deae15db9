"""Both indices of units from real runs, against a slow computation that uses nothing of fvlight."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fvlight import InputSpace, Network
from fvlight.analysis.population import diversity_gains, indices_of_layers
from fvlight.solvers import Patience
from fvlight.tasks import DiverseTask, TextureTask
from fvlight.zoo import load_network
from tests.helpers import one_thread  # noqa: F401  (a fixture for the whole module)


def small_network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU()]
    return Network(nn.Sequential(*layers), "small", InputSpace(channels=2, photographic=False))


def vgg19(shared: Path) -> Network:
    return load_network("vgg19_normalised", str(shared / "weights" / "vgg19_normalised_to_conv3_4.safetensors"))


def slow_indices(read: nn.Module, unit: int, sweep: Tensor, texture: Tensor, relative: float) -> tuple[float, float]:
    """Linear-combination and shift-invariance index of one unit from its images (L, n, C, H, W) and its texture."""

    def activation(image: Tensor) -> float:
        return float(read(image[None])[0, unit].squeeze())

    means = [sum(activation(image) for image in images) / len(images) for images in sweep]
    images = sweep[max(k for k, mean in enumerate(means) if mean >= relative * means[0])]
    templates = [activation(image) for image in images]
    averages = []
    for one, other in combinations(images, 2):
        average = (one + other) / 2
        norm = sum(image.norm() for image in images) / len(images)
        averages.append(activation(average * norm / average.norm()))
    size, crops = images.shape[-1], []
    middle = (size - 1) / 2
    mask = torch.tensor(
        [
            [math.exp(-((math.hypot(y - middle, x - middle) / (size / 2.4)) ** 4)) for x in range(size)]
            for y in range(size)
        ],
        dtype=torch.float64,
    )
    for y in range(size - 1):
        crops += [activation(texture[:, y : y + size, x : x + size] * mask) for x in range(size - 1)]
    mean = sum(templates) / len(templates)
    return sum(averages) / len(averages) / mean, sum(crops) / len(crops) / mean


def check(network: Network, layer: str, units: list[int], norm: float, read: nn.Module, steps: int) -> None:
    """Run both tasks for a few steps, and compare."""
    patience = Patience(steps, steps)
    diverse = DiverseTask(network, layer, units, norm=norm, lambdas=[0, 0.1, 2], patience=patience)
    texture = TextureTask(network, layer, units, norm=norm, crops_per_step=9, patience=patience)
    for task in (diverse, texture):
        L.Trainer(
            max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(task)  # fmt: skip
    assert diverse.result is not None
    assert texture.result is not None
    runs = {"diverse_a": diverse.result, "texture_a": texture.result}
    (found,) = indices_of_layers(runs, {"diverse_a": network})
    assert len(set(diverse.result.selected)) > 1 or any(diverse.result.selected), "lambda 0 everywhere chooses nothing"
    with torch.no_grad():
        for u, unit in enumerate(units):
            expected = slow_indices(
                read.double(), unit, diverse.result.images[u].double(), texture.result.textures[u].double(), 0.9
            )
            assert float(found.combination[u]) == pytest.approx(expected[0], rel=1e-4)
            assert float(found.shift[u]) == pytest.approx(expected[1], rel=1e-4)
    assert bool(diversity_gains(diverse.result).isfinite().all())


def test_the_indices_of_a_small_network() -> None:
    network = small_network()
    check(network, "3", [0, 3], 5.0, small_network().module[:4], steps=60)  # type: ignore[index]


@pytest.mark.slow
def test_the_indices_of_vgg19(shared: Path) -> None:
    """Two units of conv2_1."""
    network, again = vgg19(shared), vgg19(shared).module
    names = [name for name, _ in again.named_children()]
    read = nn.Sequential(*list(again.children())[: names.index("conv2_1") + 1])
    check(network, "conv2_1", [5, 40], 540.0, read, steps=100)
