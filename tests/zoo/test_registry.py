"""Every network of the zoo is tested by being registered: it loads, and its windows are true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import fvlight.conf
from fvlight import FvlightError, Network, Readout, receptive_field
from fvlight.zoo import list_networks, load_network
from fvlight.zoo.registry import BUILDERS, register
from tests.helpers import full_map, interior_unit, randomised, snapshot, supports, windows

CHEAP = 40  # pixels: wider windows are left out where a network has many layers
NEED_FILES = {"vgg19_normalised"}


def build(name: str) -> Network:
    return load_network(name, weights="random" if name in NEED_FILES else "default")


def layers(network: Network) -> list[str]:
    """Layers with a module of their own; containers aside."""
    return [layer for layer in network.layers if not list(network.module.get_submodule(layer).children())]


@pytest.mark.parametrize("name", list_networks())
def test_it_loads_and_names_its_layers(name: str) -> None:
    network = build(name)
    assert network.name == name
    assert network.layers
    assert len(set(network.layers)) == len(network.layers)
    for layer in network.layers:
        assert isinstance(network.module.get_submodule(network.resolve(layer)), nn.Module)
    assert network.input_space.channels in (1, 3)
    assert len(network.input_space.mean) in (1, network.input_space.channels)


@pytest.mark.parametrize("name", list_networks())
def test_it_is_the_same_network_for_the_same_seed(name: str) -> None:
    one, again = build(name), build(name)
    assert one.module is not again.module
    assert snapshot(one.module) == snapshot(again.module)


@pytest.mark.parametrize("name", list_networks())
def test_gradients_reach_just_the_window_of_each_layer(name: str) -> None:
    network = build(name)
    module, channels = randomised(network.module).double(), network.input_space.channels
    checked = 0
    for layer in layers(network):
        field = receptive_field(network, layer)
        if field.size[0] > CHEAP:
            continue
        row, column = interior_unit(size := field.size[0] + 2 * field.stride[0] + 1, field)
        units = [(row, column), (row + 1, column + 1)]
        path = network.resolve(layer)
        found = supports(lambda x, path=path: full_map(module, path, x, first_call=True), units, size, channels)  # type: ignore[misc]
        assert found == [windows(field.size, field.stride, field.offset, unit) for unit in units], layer
        checked += 1
    assert checked >= min(3, len(layers(network)))


@pytest.mark.parametrize("name", list_networks())
def test_its_units_can_be_read_and_differentiated(name: str) -> None:
    network = build(name)
    layer = [layer for layer in layers(network) if receptive_field(network, layer).size[0] <= CHEAP][-1]
    readout = Readout(network, layer)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, network.input_space.channels, *readout.image_size, generator=generator)
    images = torch.cat([images, -images]).requires_grad_()  # a rectified linear unit answers one of the two
    value = readout(images)
    (gradient,) = torch.autograd.grad(value.sum(), images)  # type: ignore[union-attr]
    assert gradient.isfinite().all()
    assert gradient.any()


def test_every_network_has_a_configuration_and_the_other_way_round() -> None:
    folder = Path(str(fvlight.conf.__file__)).parent / "network"
    named = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["name"] for path in folder.glob("*.yaml")}
    assert named == {name: name for name in list_networks()}


def test_networks_are_listed_in_order() -> None:
    assert list_networks() == sorted(BUILDERS)
    assert len(list_networks()) >= 5


def test_an_unknown_network_suggests_the_nearest() -> None:
    with pytest.raises(
        FvlightError, match=r"no network 'vgg19_normalized' in the zoo: did you mean 'vgg19_normalised'"
    ):
        load_network("vgg19_normalized")


@pytest.mark.parametrize("name", list_networks())
def test_an_unknown_option_is_named(name: str) -> None:
    with pytest.raises(FvlightError, match=rf"network '{name}'.*'sigmma'"):
        load_network(name, sigmma=3.0)


def test_registering_and_what_a_builder_is_given() -> None:
    given: dict[str, object] = {}

    def builder(*, weights: str, seed: int, width: int = 1) -> Network:
        given.update(weights=weights, seed=seed, width=width)
        return Network(nn.Conv2d(3, width, 1), "mine")

    try:
        assert register("mine")(builder) is builder
        assert "mine" in list_networks()
        network = load_network("mine", weights=Path("w.safetensors"), seed="7", width=2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'mine' is registered already"):
            register("mine")(builder)
    finally:
        BUILDERS.pop("mine", None)
    assert network.module.out_channels == 2
    assert given == {"weights": "w.safetensors", "seed": 7, "width": 2}


def test_a_builder_s_own_type_error_is_not_taken_for_an_unknown_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*, weights: str, seed: int) -> Network:
        raise TypeError("unsupported operand")

    monkeypatch.setitem(BUILDERS, "broken", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        load_network("broken")
