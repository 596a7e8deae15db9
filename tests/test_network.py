"""fvlight.network: input spaces against direct arithmetic, and the names of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fvlight import FvlightError, InputSpace, Network

SPACES = {
    "rgb in [0, 1]": InputSpace(),
    "imagenet": InputSpace(3, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": InputSpace(3, 255.0, (123.68, 116.779, 103.939)),
}


def rgb_images(*shape: int) -> Tensor:
    """uint8 images and the same in [0, 1]."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_rgb_is_the_formula_channel_by_channel(name: str, dtype: torch.dtype) -> None:
    space, rgb = SPACES[name], rgb_images(2, 3, 4, 5).to(dtype) / 255
    x = space.from_rgb(rgb)
    assert x.dtype == dtype
    for c in range(3):
        mean = space.mean[c] if len(space.mean) == 3 else space.mean[0]
        std = space.std[c] if len(space.std) == 3 else space.std[0]
        torch.testing.assert_close(x[:, c], (space.scale * rgb[:, c] - mean) / std)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 3, 3, 4, 5)])
def test_display_gives_the_photograph_back_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    photograph = rgb_images(*shape)
    shown = SPACES[name].to_display(SPACES[name].from_rgb(photograph / 255))
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, photograph)


def test_display_clips_and_shows_what_is_no_number_as_grey() -> None:
    x = torch.tensor([-1.0, 2.0, float("nan"), float("inf"), -float("inf")]).expand(3, 1, 5)
    assert InputSpace().to_display(x)[0, 0].tolist() == [0, 255, 128, 255, 0]


def test_grey_is_luma() -> None:
    rgb = rgb_images(2, 3, 4, 5).double() / 255
    x = InputSpace(channels=1, scale=2.0, mean=(0.5,), std=(0.25,)).from_rgb(rgb)
    luma = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    assert x.shape == (2, 1, 4, 5)
    torch.testing.assert_close(x[:, 0], (2 * luma - 0.5) / 0.25)


def test_a_grey_photograph_comes_back() -> None:
    space, grey = InputSpace(channels=1, mean=(0.4,), std=(0.2,)), rgb_images(2, 1, 4, 5)
    assert torch.equal(space.to_display(space.from_rgb(grey.expand(2, 3, 4, 5) / 255)), grey)


def test_non_photographic_images_are_stretched_about_mid_grey() -> None:
    space = InputSpace(channels=1, photographic=False)
    x = torch.tensor([[-2.0, 0.0, 1.0], [-0.01, 0.0, 0.005]])[:, None, None]  # each by its own peak
    assert space.to_display(x)[:, 0, 0].tolist() == [[0, 128, 191], [0, 128, 191]]
    assert torch.equal(space.to_display(x * 1e3), space.to_display(x))
    assert space.to_display(torch.zeros(1, 2, 2)).unique().tolist() == [128]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1)))


def test_layers_lists_aliases_first_then_every_module() -> None:
    network = Network(small(), aliases={"first": "0", "last": "1.1"})
    assert network.layers == ["first", "last", "0", "1", "1.0", "1.1"]
    assert [network.resolve(name) for name in network.layers] == ["0", "1.1", "0", "1", "1.0", "1.1"]


def test_an_unknown_layer_is_an_error_with_the_nearest_name() -> None:
    module = nn.ModuleDict({"conv3_1": nn.Identity(), "relu3_1": nn.Identity()})
    with pytest.raises(FvlightError, match=r"no layer 'conv31' in network 'tiny': did you mean 'conv3_1'"):
        Network(module, "tiny").resolve("conv31")


@pytest.mark.parametrize("layer", ["", "weight", "0.weight", "first."])
def test_only_modules_are_layers(layer: str) -> None:
    with pytest.raises(FvlightError, match="no layer"):
        Network(small(), aliases={"first": "0"}).resolve(layer)


def test_an_alias_to_nowhere_is_an_error() -> None:
    with pytest.raises(FvlightError, match="no layer 'lost'"):
        Network(small(), aliases={"lost": "7"}).resolve("lost")


def test_the_name_defaults_to_the_class() -> None:
    assert Network(small()).name == "Sequential"
    assert Network(small(), "mine").name == "mine"


def test_only_modules_are_wrapped() -> None:
    with pytest.raises(FvlightError, match=r"nn\.Module, not function"):
        Network(small)  # type: ignore[arg-type]
