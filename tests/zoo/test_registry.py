"""Every network of the zoo is tested by being registered: it loads, and its windows are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import fvlight.conf
from fvlight import FvlightError, Network, Readout, ReceptiveField, receptive_field
from fvlight.graphs.tracing import preceding_layer
from fvlight.settings import parse_units
from fvlight.zoo import list_networks, load_network
from fvlight.zoo.foreign import NAME as FOREIGN
from fvlight.zoo.registry import BUILDERS, register
from tests.helpers import full_map, interior_unit, randomised, snapshot, supports, windows

CHEAP = 40  # pixels: wider windows are left out where a network has many layers
FOLDER = Path(str(fvlight.conf.__file__)).parent / "network"
# cifar_resnet20 speaks for its deeper brothers in the fast suite.
LAYER_BY_LAYER = [
    pytest.param(name, marks=pytest.mark.slow if name in ("cifar_resnet44", "cifar_resnet56") else ())
    for name in list_networks()
]
# Options with which a network of many layers has few: of each kind some, and smaller windows.
SMALLER: dict[str, dict[str, Any]] = {"densenet_bc": {"depth": 22}}


def build(name: str, seed: int = 0, **options: Any) -> Network:
    """With random weights; analytic cells, which say that they have none, as they are."""
    try:
        return load_network(name, "random", seed, **options)
    except FvlightError as error:
        if "is analytic and has no weights" not in str(error):
            raise
        return load_network(name, seed=seed, **options)


def is_analytic(name: str) -> bool:
    try:
        load_network(name, "random")
    except FvlightError as error:
        return "is analytic and has no weights" in str(error)
    return False


def known_fields(network: Network) -> dict[str, ReceptiveField]:
    """The windows of the layers with a module of their own (containers and second names aside), where known."""
    found: dict[str, ReceptiveField] = {}
    for layer in dict.fromkeys(network.resolve(layer) for layer in network.layers):
        if list(network.module.get_submodule(layer).children()):
            continue
        try:
            field = receptive_field(network, layer)
        except FvlightError:
            continue
        if not field.whole_image:
            found[layer] = field
    return found


def settings(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


# --- what every network does ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_networks())
def test_it_loads_and_names_its_layers(name: str) -> None:
    network = build(name)
    assert network.name == name
    assert network.layers
    assert len(set(network.layers)) == len(network.layers)
    for layer in network.layers:
        assert isinstance(network.module.get_submodule(network.resolve(layer)), nn.Module)
    space = network.input_space
    assert len(space.mean) in (1, space.channels)
    assert len(space.std) in (1, space.channels)
    assert not network.unloaded
    depends_on_the_mode = (nn.BatchNorm2d, nn.Dropout)
    assert not any(part.training for part in network.module.modules() if isinstance(part, depends_on_the_mode))


@pytest.mark.parametrize("name", list_networks())
def test_it_takes_images_of_its_size_and_shows_them(name: str) -> None:
    network = build(name)
    size = network.image_size or next(iter(known_fields(network).values())).size
    images = torch.zeros(1, network.input_space.channels, *size)
    assert network.input_space.to_display(images).shape == images.shape
    if network.input_space.photographic:
        photographs = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        assert network.input_space.from_rgb(photographs).shape == images.shape
    if network.image_size:
        with torch.inference_mode():
            assert network.module(images).shape[0] == 1


@pytest.mark.parametrize("name", list_networks())
def test_it_is_the_same_network_for_the_same_seed(name: str) -> None:
    one, again = build(name), build(name)
    assert one.module is not again.module
    assert snapshot(one.module) == snapshot(again.module)
    if not is_analytic(name):
        other = build(name, seed=1).module.state_dict()
        drawn = [key for key, value in one.module.state_dict().items() if value.ndim > 1]
        assert drawn
        assert not any(torch.equal(other[key], one.module.state_dict()[key]) for key in drawn)


@pytest.mark.parametrize("name", [name for name in list_networks() if not is_analytic(name)])
def test_its_weights_go_through_a_file(name: str, tmp_path: Path) -> None:
    """Saved and loaded, the network is bit for bit the same: nothing is left out, renamed or reordered."""
    network = build(name)
    randomised(network.module)
    save_file(network.module.state_dict(), tmp_path / "weights.safetensors")
    again = load_network(name, str(tmp_path / "weights.safetensors"), seed=1)
    assert not again.unloaded
    assert again.layers == network.layers
    size = network.image_size or (max(field.size[0] for field in known_fields(network).values()),) * 2
    images = torch.randn(1, network.input_space.channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.module(images)
        assert torch.equal(again.module(images), expected)
    assert expected.isfinite().all()
    assert expected.std() > 0


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_gradients_reach_just_the_window_of_each_layer(name: str) -> None:
    network = build(name, **SMALLER.get(name, {}))
    module, channels = randomised(network.module).double(), network.input_space.channels
    fields = known_fields(network)
    checked = 0
    for layer, field in fields.items():
        if field.size[0] > CHEAP:
            continue
        row, column = interior_unit(size := field.size[0] + 2 * field.stride[0] + 1, field)
        units = [(row, column), (row + 1, column + 1)]
        found = supports(lambda x, layer=layer: full_map(module, layer, x, first_call=True), units, size, channels)  # type: ignore[misc]
        assert found == [windows(field.size, field.stride, field.offset, unit) for unit in units], layer
        checked += 1
    assert checked >= min(3, len(fields))


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_its_units_can_be_read_and_differentiated(name: str) -> None:
    network = build(name, **SMALLER.get(name, {}))
    layer = [layer for layer, field in known_fields(network).items() if field.size[0] <= CHEAP][-1]
    readout = Readout(network, layer)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, network.input_space.channels, *readout.image_size, generator=generator)
    images = torch.cat([images, -images]).requires_grad_()  # a rectified linear unit answers one of the two
    value = readout(images)
    (gradient,) = torch.autograd.grad(value.sum(), images)  # type: ignore[union-attr]
    assert gradient.isfinite().all()
    assert gradient.any()


# --- configurations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_networks())
def test_its_configuration_fits_it(name: str) -> None:
    """The options are its own, with their defaults; the study asks for layers and units that there are."""
    network, configured = build(name), build(name, **settings(name)["options"])
    assert configured.layers == network.layers
    assert {key: value.shape for key, value in configured.module.state_dict().items()} == {
        key: value.shape for key, value in network.module.state_dict().items()
    }
    study = settings(name)["study"]
    layers = {study["layer"], *study["norms"]}
    if study["distance_layer"] == "auto":
        layers.add(preceding_layer(network, study["layer"]))
    else:
        layers.add(study["distance_layer"])
    for layer in layers - {"pixels"}:  # a neuron of the V1 networks' readout is one of the whole image
        assert receptive_field(network, layer).whole_image is (layer == "readout")
    value = Readout(network, study["layer"])(
        torch.zeros(1, network.input_space.channels, *receptive_field(network, study["layer"]).size)
    )
    assert isinstance(value, Tensor)
    assert parse_units(study["unit"], value.shape[1], study["layer"])


def test_every_network_has_a_configuration_and_the_other_way_round() -> None:
    named = {path.stem: settings(path.stem)["name"] for path in FOLDER.glob("*.yaml")}
    assert named == {name: name for name in [*list_networks(), FOREIGN]}  # the last has no weights of its own


# --- the registry ---------------------------------------------------------------------------------------


def test_networks_are_listed_in_order() -> None:
    assert list_networks() == sorted(BUILDERS)
    assert len(list_networks()) >= 15


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
