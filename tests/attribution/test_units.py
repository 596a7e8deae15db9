"""Which number of a network's run is explained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fvlight.attribution.units import (
    as_network,
    check_images,
    chosen_units,
    differentiable,
    on_device,
    read_maps,
    silent,
    unit_values,
    withdrawn,
)
from fvlight.errors import FvlightError
from fvlight.network import Network
from tests.helpers import TOYS, full_map, one_thread, relative_error, snapshot, toy  # noqa: F401


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Returns(nn.Module):
    """Puts out whatever a function makes of its images."""

    def __init__(self, makes, inner=None) -> None:
        super().__init__()
        self.makes, self.inner = makes, inner

    def forward(self, x):
        return self.makes(x if self.inner is None else self.inner(x))


@pytest.mark.parametrize("build", [nn.Linear, nn.BatchNorm1d])
def test_a_network_is_copied_to_another_device_alone(build):
    network = Network(nn.Sequential(build(3, 3) if build is nn.Linear else build(3, affine=False)), "small")
    assert on_device(network, torch.device("cpu")) is network
    there = on_device(network, torch.device("meta"))
    assert (there.name, {value.device.type for value in there.module.state_dict().values()}) == ("small", {"meta"})
    assert {value.device.type for value in network.module.state_dict().values()} == {"cpu"}
    plain = Network(nn.ReLU())
    assert on_device(plain, torch.device("meta")) is plain


@pytest.mark.parametrize("name", TOYS)
def test_maps_are_those_of_the_plain_network(name):
    network, (_, last, others) = toy(name), TOYS[name]
    network.train()
    before, images = snapshot(network), pictures()
    try:
        for layer in (last, *others):
            assert relative_error(read_maps(Network(network), images, layer), full_map(network, layer, images)) < 1e-14
        assert snapshot(network) == before
    finally:
        network.eval()
    assert relative_error(read_maps(Network(network), images, None), network(images)) < 1e-14
    assert images.equal(pictures())


def test_layers_go_by_aliases_and_calls():
    module = toy("residual")
    network = Network(module, aliases={"the_end": "relu_1"})
    assert read_maps(network, pictures(), "the_end").equal(full_map(module, "relu_1", pictures()))
    with pytest.raises(FvlightError, match=r"no layer 'firts'.*did you mean 'first'"):
        read_maps(network, pictures(), "firts")


def test_maps_with_channels_last_are_turned_whatever_the_layers_name():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), Returns(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(4, 5)).double()
    network = Network(module, aliases={"mix": "2"})
    wanted = module(pictures()).permute(0, 3, 1, 2)
    for layer in ("2", "mix"):  # a Linear's channels stand last, and an alias is no other layer
        assert read_maps(network, pictures(), layer).equal(wanted)
    swin = Network(module, channels_last=True)
    assert read_maps(swin, pictures(), "1").equal(module[:2](pictures()).permute(0, 3, 1, 2))
    assert read_maps(swin, pictures(), "0").equal(module[:1](pictures()))


def test_outputs_of_other_kinds():
    flat = Returns(lambda x: x.mean((1, 2, 3)))
    assert read_maps(as_network(flat), pictures(), None).equal(pictures().mean((1, 2, 3))[:, None])  # regression
    segments = Returns(lambda x: {"out": 2 * x, "aux": x})
    assert read_maps(as_network(segments), pictures(), None).equal(2 * pictures())
    for made, message in (
        (lambda x: (x, x), "puts out a tuple, not a tensor: name a layer"),
        (lambda x: {"logits": x}, "puts out a dict"),
        (lambda x: x.mean(), "gives 0 rows for 2 images"),
        (lambda x: x.flatten(0, 1), "gives 6 rows for 2 images"),
    ):
        with pytest.raises(FvlightError, match=message):
            read_maps(as_network(Returns(made)), pictures(), None)


def test_a_module_is_as_it_was_after_an_error_as_well():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(7, 7)).double()
    module[0].bias.requires_grad_(False)
    module[1].eval()
    before = snapshot(module)
    for layer in (None, "2"):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            read_maps(Network(module), pictures(), layer)
        assert snapshot(module) == before


def test_a_network_can_not_write_into_the_images():
    images = pictures()
    for layer in (None, "0"):
        read_maps(as_network(nn.Sequential(nn.ReLU(inplace=True))), images, layer)
        assert images.equal(pictures())


def test_weights_that_were_not_loaded():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).double()
    nn.init.constant_(module[1].weight, float("nan"))
    network = Network(module, "half", unloaded=frozenset({"1.weight"}))
    assert read_maps(network, pictures(), "0").isfinite().all()
    for layer, what in ((None, "the output"), ("1", "layer '1'")):
        with pytest.raises(FvlightError, match=f"{what} of 'half' needs weights that its file does not hold"):
            read_maps(network, pictures(), layer)


def test_what_is_no_image():
    for images in (pictures()[0], pictures().byte(), pictures()[None]):
        for check in (check_images, differentiable, lambda x: read_maps(as_network(nn.Identity()), x, None)):
            with pytest.raises(FvlightError, match=r"images of shape .*: \(N, C, H, W\) of floating-point"):
                check(images)


def test_images_to_take_gradients_by_are_a_leaf_of_their_own():
    images = pictures().requires_grad_()
    leaf = differentiable(images * 2)
    assert leaf.is_leaf
    assert leaf.requires_grad
    with torch.no_grad():
        leaf.zero_()
    assert images.equal(pictures())


MAPS = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).reshape(2, 3, 4, 5)  # value = 60 n + 20 c + 5 i + j


@pytest.mark.parametrize(
    ("unit", "position", "values"),
    [
        (1, (2, 3), [33, 93]), (1, "center", [32, 92]), (1, None, [29.5, 89.5]), (1, "mean", [29.5, 89.5]),
        ([0, 2], (0, 0), [0, 100]), (torch.tensor([2, 0]), (3, 4), [59, 79]), (None, (0, 1), [41, 101]),
        (torch.tensor(2), None, [49.5, 109.5]), ([1], (0, 0), [20, 80]),
    ],
)  # fmt: skip
def test_units_of_maps(unit, position, values):
    assert unit_values(MAPS, unit, position).tolist() == values


def test_units_without_a_place_and_of_tokens():
    flat = MAPS[:, :, 0, 0]
    assert unit_values(flat, 2).tolist() == [40, 100]
    assert unit_values(flat, 2, "center").tolist() == [40, 100]
    tokens = MAPS.flatten(2).transpose(1, 2)  # (N, tokens, C)
    assert unit_values(tokens, 1, 19).tolist() == [39, 99]
    assert unit_values(tokens, 1).tolist() == [29.5, 89.5]


def test_the_largest_unit_is_each_images_own_and_has_a_gradient():
    maps = torch.tensor([[1.0, 5.0, 2.0], [7.0, 5.0, 2.0]], requires_grad=True)
    assert chosen_units(maps).tolist() == [1, 0]
    (slopes,) = torch.autograd.grad(unit_values(maps).sum(), maps)
    assert slopes.tolist() == [[0, 1, 0], [1, 0, 0]]
    places = torch.tensor([[[[9.0, 0.0]], [[1.0, 1.0]]]])
    assert [chosen_units(places, None, at).tolist() for at in ((0, 0), (0, 1), None)] == [[0], [1], [0]]
    assert chosen_units(places.expand(3, -1, -1, -1), 1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("maps", "unit", "position", "message"),
    [
        (MAPS, 3, None, "unit=3: there are units 0 to 2"),
        (MAPS, -1, None, "unit=-1: there are units 0 to 2"),
        (MAPS, [0, 1, 2], None, "3 units for 2 images"),
        (MAPS, 1.0, None, "whole numbers"),
        (MAPS, [True, False], None, "whole numbers"),
        (MAPS, 0, (4, 0), r"position=\(4, 0\): center, mean, or \(row, column\) from \(0, 0\) to \(3, 4\)"),
        (MAPS, 0, (0, -1), r"position=\(0, -1\)"),
        (MAPS, 0, (1, 2, 3), r"position=\(1, 2, 3\)"),
        (MAPS, 0, (0.5, 1), r"position=\(0.5, 1\)"),
        (MAPS, 0, 7, "position=7"),
        (MAPS, 0, "middle", "position=middle"),
        (MAPS[:, :, 0, 0], 0, (0, 0), "one value per image and no position"),
        (MAPS[:, :, 0], 0, 4, "0 to 2, or mean"),
        (MAPS[:, :, 0], 0, (0, 0), "the number of a token"),
        (MAPS[None], 0, None, "have no units"),
    ],
)
def test_what_there_is_not(maps, unit, position, message):
    with pytest.raises(FvlightError, match=message):
        unit_values(maps, unit, position)


def test_silent_images_get_no_map_and_are_told_of():
    values, maps = torch.tensor([0.0, 2.0, -0.0, -1.0], requires_grad=True), torch.ones(4, 3, 2, 2)
    assert silent(values).tolist() == [True, False, True, False]
    with pytest.warns(UserWarning, match="the unit is silent on 2 of 4 images: no map for number 0, 2$"):
        found = withdrawn(maps, silent(values), "the unit is silent")
    assert found[[0, 2]].isnan().all()
    assert found[[1, 3]].equal(maps[[1, 3]])
    assert maps.equal(torch.ones(4, 3, 2, 2))
    assert withdrawn(maps[:, 0], torch.zeros(4, dtype=torch.bool), "").equal(maps[:, 0])  # nothing to tell
    with pytest.warns(UserWarning, match="on 12 of 12 images: no map for number 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …$"):
        withdrawn(torch.zeros(12, 5, 5), torch.ones(12, dtype=torch.bool), "the unit is silent")
