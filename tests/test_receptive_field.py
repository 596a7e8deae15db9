"""fvlight.receptive_field against the support of numerical gradients, and against published tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import FvlightError, Network, Readout, receptive_field
from fvlight.zoo.vgg import vgg19
from tests.helpers import (
    LAYERS,
    TOYS,
    built,
    full_map,
    interior_unit,
    supports,
    torchvision_network,
    toy,
    windows,
)


def check(module: nn.Module, layer: str, size: int, channels: int = 3, *, first_call: bool = False) -> None:
    """Two units one step apart see just the windows that the receptive field says."""
    field = receptive_field(Network(module), layer)
    row, column = interior_unit(size, field)
    units = [(row, column), (row + 1, column + 1)]
    found = supports(lambda x: full_map(module, layer, x, first_call), units, size, channels)
    assert found == [windows(field.size, field.stride, field.offset, unit) for unit in units]


@pytest.mark.parametrize(("name", "layer"), [(n, x) for n, (_, last, rest) in TOYS.items() for x in (last, *rest)])
def test_gradients_reach_just_the_window(name: str, layer: str) -> None:
    check(toy(name), layer, 64)


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layer, _ in LAYERS])
def test_torchvision(name: str, layer: str) -> None:
    network = torchvision_network(name)
    field = receptive_field(Network(network), layer)
    check(network, layer, field.size[0] + 2 * field.stride[0] + 1, first_call=True)


@pytest.mark.parametrize("kernel", [1, 2, 3, (1, 5)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_two_convolutions(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int, dilation: int
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 2, 3, stride, padding), nn.Conv2d(2, 2, kernel, stride, padding, dilation))

    check(built(build), "1", 48, channels=2)


def test_a_box_inside_the_window_is_told_from_the_window() -> None:
    """The oracle itself: a dilated convolution whose outer taps are zero has a smaller support."""
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 2, 5)))
    module[0].weight.data[..., 0] = 0  # type: ignore[index, union-attr, operator]
    assert supports(lambda x: full_map(module, "0", x), [(2, 2)], 16) == [((2, 7), (3, 7))]


# [Cadena et al. 2018], the authors' RF_SIZES; theirs agree with the arithmetic up to conv3_4.
PUBLISHED = {
    "conv1_1": 3, "conv1_2": 5, "pool1": 6, "conv2_1": 10, "conv2_2": 14, "pool2": 16, "conv3_1": 24,
    "conv3_2": 32,
    "conv3_3": 40, "conv3_4": 48,
}  # fmt: skip


def test_the_published_table_of_vgg() -> None:
    network = Network(vgg19(last="conv3_4"))
    assert {layer: receptive_field(network, layer).size[0] for layer in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("layer", ["conv3_1", "pool3", "conv4_4", "pool4", "conv5_4"])
def test_an_unpadded_network_gives_one_unit_for_an_image_of_its_window(layer: str) -> None:
    """One pixel less and there is no unit (on the meta device, where shapes cost nothing)."""
    module = vgg19().to("meta")
    size = receptive_field(Network(module), layer).size[0]
    depth = [name for name, _ in module.named_children()].index(layer) + 1

    def output(side: int) -> Tensor:
        return module[:depth](torch.empty(1, 3, side, side, device="meta"))

    assert output(size).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size can't be greater|Output size is too small"):
        output(size - 1)


def test_aliases_containers_and_activations() -> None:
    network = Network(torchvision_network("resnet50"), aliases={"conv2_1": "layer1.0.conv2"})
    assert receptive_field(network, "conv2_1") == receptive_field(network, "layer1.0.conv2")
    assert receptive_field(network, "conv2_1").size == (19, 19)  # published
    assert receptive_field(network, "layer1") == receptive_field(network, "layer1.2")
    assert receptive_field(network, "bn1") == receptive_field(network, "conv1")


def test_the_calls_of_a_reused_module_have_numbers() -> None:
    """ResNet's block calls one ReLU three times; the last call follows the sum."""
    network = Network(torchvision_network("resnet50"))
    assert receptive_field(network, "layer1.0.relu_2") == receptive_field(network, "layer1.0")
    assert receptive_field(network, "layer1.0.relu_1") == receptive_field(network, "layer1.0.bn2")
    assert receptive_field(network, "layer1.0.relu") == receptive_field(network, "layer1.0.bn1")
    with pytest.raises(FvlightError, match=r"'layer1\.0\.relu_3' is not called"):
        receptive_field(network, "layer1.0.relu_3")


@pytest.mark.parametrize("layer", ["pool", "fc", "averaged"])
def test_behind_a_global_pooling_the_window_is_the_whole_image(layer: str) -> None:
    found = receptive_field(Network(Head(), image_size=(12, 14)), layer)
    assert (found.size, found.stride, found.offset, found.whole_image) == ((12, 14), (0, 0), (0, 0), True)
    assert ("mean" if layer == "averaged" else "'pool' (AdaptiveAvgPool2d)") in found.reason


@pytest.mark.parametrize("layer", ["stringy", "circular", "sliced", "padded"])
def test_all_sorts_of_padding_and_slices(layer: str) -> None:
    check(built(Padded), layer, 24)


def test_layers_before_the_untraceable_part_have_windows() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) if x.sum() > 0 else x

    assert receptive_field(Network(Moody()), "first").size == (5, 5)
    with pytest.raises(FvlightError, match=r"torch\.fx cannot trace 'Moody'"):
        receptive_field(Network(Moody()), "second")


def test_layers_behind_the_end_of_a_weights_file_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network = Network(module, unloaded=frozenset({"2.bias"}))
    assert receptive_field(network, "1").size == (3, 3)
    with pytest.raises(FvlightError, match=r"layer '2' of 'Sequential' needs '2\.bias'"):
        receptive_field(network, "2")
    with pytest.raises(FvlightError, match=r"layer '2' of 'Sequential' needs '2\.bias'"):
        Readout(network, "2", window=False)


def test_an_unknown_layer_suggests_the_nearest() -> None:
    with pytest.raises(FvlightError, match=r"no layer 'conv3_l'.*did you mean 'conv3_1'"):
        receptive_field(Network(vgg19(last="conv3_1")), "conv3_l")


class Padded(nn.Module):
    """Padding of all sorts, and slices, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stringy = nn.Conv2d(3, 4, (3, 5), padding="same")
        self.circular = nn.Conv2d(4, 4, 3, 1, 1, padding_mode="circular")
        self.sliced, self.padded = nn.Identity(), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sliced(self.circular(self.stringy(x))[:, :2, ::2, 1::3])
        return self.padded(F.pad(x, (1, 0, 2, 1, 2, 2)))


class Head(nn.Module):
    """What no window is known for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)
        self.same, self.strided, self.unused = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2), nn.Identity()
        self.mixed, self.averaged = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        mixed = self.mixed(self.same(x) * self.strided(x))
        return [
            self.fc(self.pool(x)),
            mixed,
            self.averaged(x.mean((2, 3))),
        ]


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ("fc", r"'pool' \(AdaptiveAvgPool2d\)"),  # global pooling, named
        ("pool", r"'pool' \(AdaptiveAvgPool2d\)"),
        ("averaged", r"mean"),
        ("mixed", r"branches of different strides"),
    ],
)
def test_what_is_not_known_is_named_with_the_remedy(layer: str, named: str) -> None:
    with pytest.raises(FvlightError, match=rf"receptive field of layer '{layer}'.*{named}.*window=False") as caught:
        receptive_field(Network(Head()), layer)
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_called_is_said_to_be_so() -> None:
    with pytest.raises(FvlightError, match=r"layer 'unused' is not called in 'Head'"):
        receptive_field(Network(Head()), "unused")


@pytest.mark.parametrize("layer", ["mixed", "fc"])
def test_where_the_window_is_not_known_it_is_the_whole_image_if_that_is_known(layer: str) -> None:
    field = receptive_field(Network(Head(), image_size=(12, 14)), layer)
    assert (field.size, field.whole_image) == ((12, 14), True)
    assert (
        field.reason
        == {
            "mixed": "branches of different strides meet at 'mul'",
            "fc": "'pool' (AdaptiveAvgPool2d) looks at all positions",
        }[layer]
    )


def test_an_untraceable_network_of_known_size_is_seen_whole() -> None:
    class Moody(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    field = receptive_field(Network(Moody(nn.Conv2d(3, 4, 3)), image_size=(9, 9)), "0")
    assert (field.size, field.whole_image) == ((9, 9), True)
    assert "torch.fx cannot trace" in field.reason


def test_what_comes_after_the_layer_does_not_matter() -> None:
    assert receptive_field(Network(Head()), "conv").size == (3, 3)


def test_an_untraceable_network_is_an_error() -> None:
    class Moody(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(FvlightError, match=r"torch\.fx cannot trace 'Moody'"):
        receptive_field(Network(Moody(nn.Conv2d(3, 4, 3))), "0")


def test_the_module_comes_back_in_its_own_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Dropout()).train()
    module[1].eval()
    receptive_field(Network(module), "2")
    assert [part.training for part in module] == [True, False, True]
    assert torch.equal(module[1].running_mean, torch.zeros(4))  # type: ignore[arg-type]
