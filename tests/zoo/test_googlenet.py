"""fvlight.zoo.googlenet against the paper's table, Caffe's formulas and torchvision's GoogLeNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight import receptive_field
from fvlight.zoo import load_network
from fvlight.zoo.googlenet import GoogLeNet, caffe_names
from tests.helpers import full_map, relative_error

# Name of the output, channels, side at 224 × 224 [Szegedy et al. 2015, Table 1].
TABLE_1 = [
    ("conv1", 64, 112), ("pool1", 64, 56), ("conv2", 192, 56), ("pool2", 192, 28), ("inception3a", 256, 28),
    ("inception3b", 480, 28), ("pool3", 480, 14), ("inception4a", 512, 14), ("inception4b", 512, 14),
    ("inception4c", 512, 14), ("inception4d", 528, 14), ("inception4e", 832, 14), ("pool4", 832, 7),
    ("inception5a", 832, 7), ("inception5b", 1024, 7), ("pool5", 1024, 1),
]  # fmt: skip


def test_it_has_as_many_parameters_as_the_published_network() -> None:
    """bvlc_googlenet.caffemodel without the auxiliary classifiers."""
    with torch.device("meta"):
        assert sum(value.numel() for value in GoogLeNet().parameters()) == 6_998_552


def test_maps_are_those_of_the_paper_s_table() -> None:
    network = load_network("googlenet_bvlc", "random")
    found = {}
    for layer, _, _ in TABLE_1:
        part = network.module.get_submodule(layer)
        part.register_forward_hook(lambda _module, _inputs, output, layer=layer: found.update({layer: output.shape}))  # type: ignore[misc]
    with torch.inference_mode():
        assert network.module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert found == {layer: (1, channels, side, side) for layer, channels, side in TABLE_1}


def test_local_response_normalisation_is_caffe_s() -> None:
    """y_i = x_i / (1 + alpha / 5 sum_(j = i-2)^(i+2) x_j²)^beta, over the channels that there are."""
    generator = torch.Generator().manual_seed(0)
    x = 300 * torch.randn(2, 9, 3, 4, generator=generator, dtype=torch.float64)  # large enough for alpha to count
    expected = torch.empty_like(x)
    for channel in range(9):
        nearby = x[:, max(0, channel - 2) : channel + 3]
        expected[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * (nearby**2).sum(1)) ** 0.75
    assert relative_error(expected, x) > 0.1
    module = GoogLeNet()
    for name in ("norm1", "norm2"):
        assert relative_error(module.get_submodule(name)(x), expected) < 1e-12


def torchvision_s(ours: GoogLeNet) -> nn.Module:
    """torchvision's GoogLeNet turned into Caffe's by hand: no batch norm, biases, 5 × 5, LRN; with our weights."""
    theirs = torchvision.models.GoogLeNet(aux_logits=False, init_weights=False)
    convs = [(name, part) for name, part in theirs.named_modules() if isinstance(part, nn.Conv2d)]
    for (name, conv), own in zip(convs, (part for part in ours.modules() if isinstance(part, nn.Conv2d)), strict=True):
        kernel = 5 if name.endswith("branch3.1.conv") else conv.kernel_size[0]
        new = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, conv.stride[0], padding=kernel // 2)
        new.load_state_dict(own.state_dict())
        parent = theirs.get_submodule(name.rpartition(".")[0])
        parent.conv, parent.bn = new, nn.Identity()  # type: ignore[assignment]
    theirs.maxpool1 = nn.Sequential(theirs.maxpool1, nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0))  # type: ignore[assignment]
    theirs.maxpool2 = nn.Sequential(nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), theirs.maxpool2)  # type: ignore[assignment]
    theirs.maxpool4 = nn.MaxPool2d(3, 2, ceil_mode=True)  # torchvision's is 2 × 2
    theirs.fc.load_state_dict(ours.get_submodule("classifier").state_dict())
    return theirs.eval()


def test_it_computes_what_torchvision_s_blocks_compute() -> None:
    network = load_network("googlenet_bvlc", "random")
    assert isinstance(network.module, GoogLeNet)
    reference = torchvision_s(network.module).double()
    ours = network.module.double()
    images = 100 * torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in ("inception3a", "inception4c", "inception5b"):
        with torch.no_grad():
            assert relative_error(full_map(ours, layer, images), full_map(reference, layer, images)) < 1e-10
    with torch.no_grad():
        assert relative_error(ours(images), reference(images)) < 1e-10


# --- Caffe's names --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caffe() -> dict[str, Tensor]:
    """Random weights under Caffe's names, of the published shapes."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in GoogLeNet().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, ours in caffe_names().items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in shapes:
                tensors[f"{layer}.{kind}"] = torch.randn(shapes[f"{ours}.{kind}"], generator=generator)
    tensors["loss3/classifier.weight"] = tensors["loss3/classifier.weight"][:, :, None, None].contiguous()
    return tensors


def test_a_file_with_caffe_s_names_is_understood(caffe: dict[str, Tensor], tmp_path: Path) -> None:
    assert len(caffe) == 2 * (3 + 9 * 6 + 1)
    save_file(caffe, tmp_path / "caffe.safetensors")
    network = load_network("googlenet_bvlc", str(tmp_path / "caffe.safetensors"))
    assert not network.unloaded
    state = network.module.state_dict()
    assert torch.equal(state["conv1.weight"], caffe["conv1/7x7_s2.weight"][:, [2, 1, 0]])  # BGR
    assert torch.equal(state["conv2_reduce.weight"], caffe["conv2/3x3_reduce.weight"])
    assert torch.equal(state["inception4c.branch1x1.conv.weight"], caffe["inception_4c/1x1.weight"])
    assert torch.equal(state["inception4c.branch3x3.reduce.bias"], caffe["inception_4c/3x3_reduce.bias"])
    assert torch.equal(state["inception4c.branch5x5.conv.weight"], caffe["inception_4c/5x5.weight"])
    assert torch.equal(state["inception5b.branch_pool.conv.bias"], caffe["inception_5b/pool_proj.bias"])
    assert torch.equal(state["classifier.weight"], caffe["loss3/classifier.weight"][:, :, 0, 0])
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in caffe.values())


def test_caffe_s_means_stand_at_their_colours() -> None:
    """BGR minus (104, 117, 123)."""
    space = load_network("googlenet_bvlc", "random").input_space
    photograph = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    bgr = 255 * photograph[[2, 1, 0]] - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    torch.testing.assert_close(space.from_rgb(photograph), bgr[[2, 1, 0]])


def test_a_file_that_ends_early_leaves_the_rest_unloaded(caffe: dict[str, Tensor], tmp_path: Path) -> None:
    early = {key: value for key, value in caffe.items() if key.startswith(("conv", "inception_3"))}
    save_file(early, tmp_path / "early.safetensors")
    unloaded = load_network("googlenet_bvlc", str(tmp_path / "early.safetensors")).unloaded
    assert len(unloaded) == len(caffe) - len(early)
    assert all(name.startswith(("inception4", "inception5", "classifier")) for name in unloaded)


def test_caffe_s_names_are_names_of_layers() -> None:
    network = load_network("googlenet_bvlc", "random")
    for caffe_name, ours in {
        "conv1/7x7_s2": "conv1",
        "inception_4c/3x3_reduce": "inception4c.branch3x3.reduce",
        "inception_4c/relu_3x3": "inception4c.branch3x3.relu",
        "inception_3a/output": "inception3a",
        "pool2/3x3_s2": "pool2",
    }.items():
        assert network.resolve(caffe_name) == ours
    assert receptive_field(network, "inception_3a/5x5").size == (59, 59)  # 27 behind pool2, 8 pixels apart


def test_random_weights_are_caffe_s_xavier() -> None:
    """Uniform in ± sqrt(3 / inputs), biases 0.2 (train_val.prototxt); the classifier's are 0."""
    for name, part in load_network("googlenet_bvlc", "random").module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            bound = (3 / part.weight[0].numel()) ** 0.5
            assert bound * 0.99 < part.weight.abs().max() <= bound
            assert float(part.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
            expected = torch.full_like(part.bias, 0 if name == "classifier" else 0.2)  # type: ignore[arg-type]
            assert torch.equal(part.bias, expected)  # type: ignore[arg-type]
