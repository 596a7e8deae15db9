"""fvlight.zoo.squeezenet against torchvision and against the network written out by the authors' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from fvlight import Network
from fvlight.zoo import load_network
from fvlight.zoo.squeezenet import caffe_names
from tests.helpers import full_map, relative_error


@pytest.fixture(scope="module")
def caffe() -> dict[str, Tensor]:
    """Random weights under the authors' names; channels of [Iandola et al. 2016], version 1.1."""
    shapes = {"conv1": (64, 3, 3), "conv10": (1000, 512, 1)}
    inputs = 64
    for fire, (squeezed, expanded) in enumerate([(16, 64)] * 2 + [(32, 128)] * 2 + [(48, 192)] * 2 + [(64, 256)] * 2):
        shapes[f"fire{fire + 2}/squeeze1x1"] = (squeezed, inputs, 1)
        shapes[f"fire{fire + 2}/expand1x1"] = (expanded, squeezed, 1)
        shapes[f"fire{fire + 2}/expand3x3"] = (expanded, squeezed, 3)
        inputs = 2 * expanded
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, (out, into, kernel) in shapes.items():
        weight = torch.randn(out, into, kernel, kernel, generator=generator)
        tensors[f"{layer}.weight"] = weight * (2 / (into * kernel**2)) ** 0.5
        tensors[f"{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return tensors


@pytest.fixture
def network(caffe: dict[str, Tensor], tmp_path: Path) -> Network:
    save_file(caffe, tmp_path / "caffe.safetensors")
    return load_network("squeezenet_v1_1", str(tmp_path / "caffe.safetensors"))


def written_out(caffe: dict[str, Tensor], bgr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the fire modules' outputs, in float64."""

    def conv(layer: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, caffe[f"{layer}.weight"].double(), caffe[f"{layer}.bias"].double(), **options).relu()

    x, fires = F.max_pool2d(conv("conv1", bgr, stride=2), 3, 2, ceil_mode=True), {}
    for fire in range(2, 10):
        squeezed = conv(f"fire{fire}/squeeze1x1", x)
        x = torch.cat([conv(f"fire{fire}/expand1x1", squeezed), conv(f"fire{fire}/expand3x3", squeezed, padding=1)], 1)
        fires[f"fire{fire}"] = x
        if fire in (3, 5):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    return conv("conv10", x).mean((2, 3)), fires


def test_a_caffe_file_gives_the_authors_network(caffe: dict[str, Tensor], network: Network) -> None:
    """From photographs on: ours in RGB, theirs in BGR minus (104, 117, 123)."""
    rgb = torch.rand(2, 3, 227, 227, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bgr = 255 * rgb.flip(1) - torch.tensor([104.0, 117.0, 123.0], dtype=torch.float64)[:, None, None]
    logits, fires = written_out(caffe, bgr)
    module, x = network.module.double(), network.input_space.from_rgb(rgb)
    with torch.no_grad():
        assert relative_error(module(x), logits) < 1e-10
        for layer in ("fire2", "fire3", "fire5", "fire9"):
            assert relative_error(full_map(module, network.resolve(layer), x), fires[layer]) < 1e-10
    assert not network.unloaded


def test_it_is_torchvision_s_squeezenet(network: Network) -> None:
    theirs = torchvision.models.squeezenet1_1(weights=None)
    theirs.load_state_dict(network.module.state_dict())
    x = 100 * torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(network.module(x), theirs.eval()(x))
    assert sum(value.numel() for value in network.module.parameters()) == 1_235_496  # torchvision's documentation


def test_the_authors_names_are_names_of_layers(network: Network) -> None:
    assert network.resolve("fire4") == "features.6"
    assert network.resolve("fire4/squeeze1x1") == "features.6.squeeze"
    assert len(caffe_names()) == 2 + 8 * 4
    assert network.image_size == (227, 227)
