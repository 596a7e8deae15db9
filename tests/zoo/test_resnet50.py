"""fvlight.zoo.resnet50 against Keras' network written out, torchvision's, and published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import Network, receptive_field
from fvlight.zoo import load_network
from fvlight.zoo.resnet50 import resnet50
from tests.helpers import full_map, randomised, relative_error

STAGES = {2: (64, 3), 3: (128, 4)}  # stage: (channels, blocks), as far as the published file goes


@pytest.fixture(scope="module")
def keras() -> dict[str, Tensor]:
    """Random weights under Keras' names, to conv3_block4."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def add(name: str, inputs: int, outputs: int, kernel: int) -> None:
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        tensors[f"{name}_conv.weight"] = weight * (2 / (inputs * kernel**2)) ** 0.5
        tensors[f"{name}_conv.bias"] = torch.randn(outputs, generator=generator)
        for kind in ("gamma", "beta", "mean", "var"):
            value = torch.rand(outputs, generator=generator)
            tensors[f"{name}_bn.{kind}"] = value + 0.5 if kind in ("gamma", "var") else value - 0.5

    add("conv1", 3, 64, 7)
    inputs = 64
    for stage, (channels, blocks) in STAGES.items():
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}"
            if block == 1:
                add(f"{name}_0", inputs, 4 * channels, 1)
            add(f"{name}_1", inputs, channels, 1)
            add(f"{name}_2", channels, channels, 3)
            add(f"{name}_3", channels, 4 * channels, 1)
            inputs = 4 * channels
    return tensors


@pytest.fixture
def network(keras: dict[str, Tensor], tmp_path: Path) -> Network:
    save_file(keras, tmp_path / "keras.safetensors")
    return load_network("resnet50_v1", str(tmp_path / "keras.safetensors"))


def written_out(keras: dict[str, Tensor], bgr: Tensor) -> dict[str, Tensor]:
    """Outputs of the blocks, in float64, as Keras applications' ResNet50 computes them."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        x = F.conv2d(x, keras[f"{name}_conv.weight"].double(), keras[f"{name}_conv.bias"].double(), **options)
        gamma, beta, mean, var = (keras[f"{name}_bn.{kind}"].double() for kind in ("gamma", "beta", "mean", "var"))
        column = (slice(None), None, None)
        return (x - mean[column]) / torch.sqrt(var[column] + 1.001e-5) * gamma[column] + beta[column]

    x = F.pad(conv("conv1", bgr, stride=2, padding=3).relu(), (1, 1, 1, 1))  # zeros, not minus infinity
    x = F.max_pool2d(x, 3, 2)
    outputs = {}
    for stage, (_, blocks) in STAGES.items():
        for block in range(1, blocks + 1):
            name, stride = f"conv{stage}_block{block}", 2 if (stage, block) == (3, 1) else 1
            shortcut = conv(f"{name}_0", x, stride=stride) if block == 1 else x
            y = conv(f"{name}_1", x, stride=stride).relu()
            y = conv(f"{name}_2", y, padding=1).relu()
            x = (conv(f"{name}_3", y) + shortcut).relu()
            outputs[name] = x
    return outputs


def test_a_keras_file_gives_keras_network(keras: dict[str, Tensor], network: Network) -> None:
    """From photographs on: ours in RGB, theirs in BGR minus (103.939, 116.779, 123.68)."""
    rgb = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bgr = 255 * rgb.flip(1) - torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64)[:, None, None]
    expected = written_out(keras, bgr)
    module, x = network.module.double(), network.input_space.from_rgb(rgb)
    with torch.no_grad():
        for layer, name in {"layer1.0": "conv2_block1", "layer1.2": "conv2_block3", "layer2.3": "conv3_block4"}.items():
            assert relative_error(full_map(module, layer, x), expected[name]) < 1e-10


def test_a_file_that_ends_early_leaves_the_rest_unloaded(keras: dict[str, Tensor], network: Network) -> None:
    floats = [key for key in network.module.state_dict() if not key.endswith("num_batches_tracked")]
    assert network.unloaded == {key for key in floats if key.startswith(("layer3", "layer4", "fc"))}
    assert len(floats) - len(network.unloaded) == len(keras)


def test_it_is_torchvision_s_with_the_strides_moved() -> None:
    network = load_network("resnet50_v1", "random")
    state = {k: v for k, v in randomised(network.module).state_dict().items() if not _is_conv_bias(k)}
    for part in network.module.modules():
        if isinstance(part, nn.Conv2d):
            part.bias.data.zero_()  # type: ignore[union-attr]
    theirs = torchvision.models.resnet50(weights=None)
    theirs.load_state_dict(state)
    for name, part in theirs.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1.001e-5
        if name in ("layer2.0", "layer3.0", "layer4.0"):
            part.conv1.stride, part.conv2.stride = (2, 2), (1, 1)
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network.module.double()(x), theirs.double().eval()(x)) < 1e-10


def _is_conv_bias(key: str) -> bool:
    return key.endswith("bias") and ("conv" in key or "downsample.0" in key)


def test_it_has_as_many_parameters_as_keras_says() -> None:
    """`ResNet50().summary()`: 25,583,592 trainable, 53,120 not (the running means and variances)."""
    with torch.device("meta"):
        module = resnet50()
    assert sum(value.numel() for value in module.parameters()) == 25_583_592
    assert sum(value.numel() for key, value in module.named_buffers() if "running" in key) == 53_120


def test_windows_are_those_of_the_first_version() -> None:
    """torchvision's conv3_1 sees 43 pixels."""
    network = load_network("resnet50_v1", "random")
    found = {layer: receptive_field(network, layer).size[0] for layer in ("conv2_1", "conv2_2", "conv2_3", "conv3_1")}
    assert found == {"conv2_1": 19, "conv2_2": 27, "conv2_3": 35, "conv3_1": 51}
    assert network.resolve("conv2_3") == "layer1.2.conv2"
    assert network.resolve("conv5_3") == "layer4.2.conv2"
    assert len(network.aliases) == 16
