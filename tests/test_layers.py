"""The table of layers: names and order as torchvision's, published receptive fields, nothing left changed."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.feature_extraction import get_graph_node_names
from torchvision.models.vgg import cfgs, make_layers

from fvlight import layers
from fvlight.errors import FvlightError
from fvlight.layers import LayerRow, layer_table, print_layers
from fvlight.network import InputSpace, Network
from fvlight.receptive_field import receptive_field
from fvlight.zoo import load_network
from tests.helpers import TOYS, snapshot, toy


def rows_of(network: Network) -> dict[str, LayerRow]:
    return {row.name: row for row in layer_table(network)}


def tiny(module: nn.Module, **options: Any) -> Network:
    return Network(module.eval(), "tiny", InputSpace(channels=3), **options)


# -- which layers, in which order --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_names_and_order_are_torchvision_s(name: str) -> None:
    """Its feature extraction names what is called in evaluation mode, repeated calls (``relu_1``) too."""
    network = load_network(f"torchvision/{name}", "random")
    _, theirs = get_graph_node_names(network.module)
    modules = dict(network.module.named_modules())
    containers = {path for path, part in modules.items() if list(part.children())}

    def is_module(node: str) -> bool:
        stem, _, number = node.rpartition("_")
        return node in modules or (number.isdigit() and stem in modules)

    ours = [row.name for row in layer_table(network) if row.name not in containers]
    assert ours == [node for node in theirs if is_module(node)]
    assert len(ours) > 20


def test_containers_come_after_what_they_hold() -> None:
    names = list(rows_of(load_network("torchvision/resnet18", "random")))
    assert names.index("layer1.0.relu_1") + 1 == names.index("layer1.0")
    assert names.index("layer1.1") + 1 == names.index("layer1")


def test_every_row_can_be_asked_for() -> None:
    network = load_network("torchvision/resnet18", "random")
    for row in layer_table(network):
        assert network.resolve(row.name) == row.name


class Auxiliary(nn.Module):
    """A head that is called in training only, a layer that nobody calls, one that gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.forgotten = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1), nn.ReLU()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Any:
        x, _ = self.pair(self.body(x))
        return (x, self.head(x)) if self.training else x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_only_layers_that_are_called_and_give_a_tensor() -> None:
    network = tiny(Auxiliary())
    network.module.train()  # the table is about evaluation mode all the same
    assert list(rows_of(network)) == ["body"]


def test_auxiliary_classifiers_are_left_out() -> None:
    network = load_network("torchvision/googlenet", "random", aux_logits=True, init_weights=False)
    assert "aux1.conv.conv" in dict(network.module.named_modules())
    names = list(rows_of(network))
    assert not any(name.startswith("aux") for name in names)
    assert "inception5b.branch4.1.conv" in names


def test_a_layer_keeps_its_name_from_another_s_later_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.act_1 = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act_1(self.act(self.conv(self.act(x))))

    rows = rows_of(tiny(Twice()))
    assert {name: row.kind for name, row in rows.items()} == {"act": "ReLU", "conv": "Conv2d", "act_1": "Tanh"}


def test_aliases_stand_beside_their_layers() -> None:
    network = tiny(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), aliases={"conv1_1": "0", "first": "0"})
    rows = rows_of(network)
    assert rows["0"].alias == "conv1_1, first"
    assert rows["1"].alias == ""


@pytest.mark.parametrize("name", ["googlenet_bvlc", "squeezenet_v1_1", "resnet50_v1"])
def test_the_papers_names_are_all_there(name: str) -> None:
    network = load_network(name, "random")
    found = [alias for row in layer_table(network) for alias in row.alias.split(", ") if alias]
    assert sorted(found) == sorted(network.aliases)


# -- what they see -----------------------------------------------------------------------------------------


def vgg16() -> Network:
    """Without its classifier, whose 120 million weights are of no use here."""
    return tiny(VGG(make_layers(cfgs["D"]), 2, False).features)


# Araujo, Norris & Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill: the last
# pooling of AlexNet and VGG-16; He et al. 2016 for ResNet's first layers is plain arithmetic (7, then 3 at stride 2).
@pytest.mark.parametrize(
    ("network", "layer", "size", "stride"),
    [
        (lambda: load_network("torchvision/alexnet", "random"), "features.12", 195, 32),
        (vgg16, "30", 212, 32),
        (lambda: load_network("torchvision/resnet18", "random"), "maxpool", 11, 4),
        (lambda: load_network("torchvision/resnet18", "random"), "layer1.0.conv1", 19, 4),
    ],
)
def test_published_receptive_fields(network: Any, layer: str, size: int, stride: int) -> None:
    field = rows_of(network())[layer].field
    assert field is not None
    assert field.size == (size, size)
    assert field.stride == (stride, stride)


@pytest.mark.parametrize("name", TOYS)
def test_the_same_as_asked_for_one_by_one(name: str) -> None:
    network = Network(toy(name), name)
    rows = layer_table(network)
    assert rows
    for row in rows:
        assert row.field == receptive_field(network, row.name)
        assert row.reason == ""


def test_traced_once_and_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_network("torchvision/squeezenet1_1", "random")
    calls, trace, forward = [], layers.trace, type(network.module).forward

    def traced(given: Network) -> Any:
        calls.append("trace")
        graph = trace(given)
        calls.append("traced")
        return graph

    def run(module: nn.Module, images: Tensor) -> Tensor:
        calls.append("run")
        return forward(module, images)

    monkeypatch.setattr(layers, "trace", traced)
    monkeypatch.setattr(type(network.module), "forward", run)
    layer_table(network)
    inside = calls[calls.index("trace") : calls.index("traced")]
    assert inside == ["trace", "run"]  # torch.fx runs it on symbols
    assert calls.count("trace") == 1
    assert calls.count("run") == 2


class Undecided(nn.Module):
    """No graph can be made of it from some layer on: the way depends on the values."""

    def __init__(self, traced: int) -> None:
        super().__init__()
        self.first, self.second, self.traced = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), traced

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate((self.first, self.second, nn.ReLU())):
            x = layer(x) if number < self.traced or x.sum() > -1e9 else x
        return x


@pytest.mark.parametrize("traced", [0, 1])
def test_a_network_that_can_t_be_traced_still_has_a_table(traced: int) -> None:
    rows = layer_table(tiny(Undecided(traced)))
    assert [(row.name, row.channels) for row in rows] == [("first", 4), ("second", 6)]
    assert [row.field is not None for row in rows] == [True] * traced + [False] * (2 - traced)
    for row in rows[traced:]:
        assert "cannot trace 'tiny'" in row.reason


def test_what_keeps_a_window_from_being_known_is_said() -> None:
    network = tiny(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.ReLU()))
    rows = rows_of(network)
    assert rows["0"].field is not None
    assert rows["0"].reason == ""
    for name in ("1", "2"):
        assert rows[name].field is None or rows[name].field.whole_image  # type: ignore[union-attr]
        assert "Upsample" in rows[name].reason


# -- channels ----------------------------------------------------------------------------------------------


def test_channels_are_those_of_the_weights() -> None:
    for name in ("torchvision/resnet18", "torchvision/squeezenet1_1", "timm/resnet18"):
        network = load_network(name, "random")
        rows = rows_of(network)
        kinds = 0
        for path, part in network.module.named_modules():
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                width = getattr(part, "out_channels", None) or getattr(part, "num_features", None) or part.out_features
                assert rows[path].channels == width
                kinds += 1
        assert kinds > 20


def test_behind_a_global_pooling_units_see_the_whole_image() -> None:
    network = load_network("torchvision/resnet18", "random")
    rows = rows_of(network)
    assert {name for name, row in rows.items() if row.field is None or row.field.whole_image} == {"avgpool", "fc"}
    assert rows["fc"].channels == 1000
    lines = [" ".join(line.split()) for line in printed(network).splitlines()[-2:]]
    assert lines == ["avgpool AdaptiveAvgPool2d 512 whole image -", "fc Linear 1000 whole image -"]


def test_channels_of_tokens_and_of_maps_with_channels_last() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.mix = nn.Conv2d(3, 12, 16, 16), nn.LayerNorm(12), nn.Linear(12, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.norm(self.embed(x).flatten(2).transpose(1, 2)))

    rows = rows_of(tiny(Tokens(), image_size=(32, 32), fixed_size=True))
    assert {name: row.channels for name, row in rows.items()} == {"embed": 12, "norm": 12, "mix": 7}

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.embed(x).permute(0, 2, 3, 1))

    rows = rows_of(tiny(Last(), channels_last=True))  # a convolution's own map is no exception to torch's order
    assert {name: row.channels for name, row in rows.items()} == {"embed": 6, "mix": 5}


def test_grey_input_and_float64() -> None:
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 3)).double(), "grey", InputSpace(channels=1))
    assert rows_of(network)["0"].channels == 2


# -- the image ---------------------------------------------------------------------------------------------


class Needs(nn.Module):
    """Runs on images of a given side only, and remembers what it was shown."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv, self.side, self.seen = nn.Conv2d(3, 4, 3), side, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return self.conv(x)
        self.seen.append(tuple(x.shape[-2:]))
        if x.shape[-1] != self.side:
            raise ValueError(f"images of {self.side} pixels only")
        return self.conv(x)


@pytest.mark.parametrize(("side", "tries"), [(64, 1), (128, 2), (224, 3), (299, 4)])
def test_the_smallest_image_that_it_takes(side: int, tries: int) -> None:
    module = Needs(side)
    assert list(rows_of(tiny(module))) == ["conv"]
    assert module.seen == [(s, s) for s in (64, 128, 224, 299)][:tries]


def test_its_own_image_size_comes_first() -> None:
    module = Needs(40)
    assert list(rows_of(tiny(module, image_size=(32, 40)))) == ["conv"]
    assert module.seen == [(32, 40)]


@pytest.mark.parametrize("size", [None, (50, 50)])
def test_no_image_that_it_takes(size: tuple[int, int] | None) -> None:
    network = tiny(Needs(17), image_size=size)
    before = snapshot(network.module)
    tried = 299 if size is None else 50
    with pytest.raises(FvlightError, match=rf"'tiny' can't be listed.*{tried} x {tried} pixels \(images of 17"):
        layer_table(network)
    assert snapshot(network.module) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_module_comes_back_unchanged(training: bool) -> None:
    network = load_network("torchvision/resnet18", "random")
    network.module.train(training)
    network.module.layer1.train(not training)  # type: ignore[union-attr, operator]
    network.module.conv1.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    before = snapshot(network.module)
    layer_table(network)
    assert snapshot(network.module) == before


# -- printing ----------------------------------------------------------------------------------------------


def printed(network: Network, width: int = 20) -> str:
    """As a pipe or a terminal of this width gets it."""
    stream = io.StringIO()
    print_layers(network, layer_table(network), Console(file=stream, width=width))
    return stream.getvalue()


def test_no_name_is_cropped_however_narrow() -> None:
    network = load_network("torchvision/shufflenet_v2_x0_5", "random")
    text = printed(network)
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    for row in layer_table(network):
        assert [row.name, row.kind, str(row.channels)] in [line[:3] for line in lines]


def test_the_columns_of_a_row() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=(1, 2)), nn.ReLU())
    text = printed(tiny(module, aliases={"[bold]first": "0"}))
    first, second = (" ".join(line.split()) for line in text.splitlines()[-2:])
    assert first == "0 [bold]first Conv2d 4 3 x 5 1 x 2"
    assert second == "1 ReLU 4 3 x 5 1 x 2"
    assert text.splitlines()[0].strip() == "layers of tiny"


def test_no_column_of_aliases_where_there_are_none() -> None:
    assert "alias" not in printed(tiny(nn.Sequential(nn.Conv2d(3, 4, 3))))
    assert "alias" in printed(tiny(nn.Sequential(nn.Conv2d(3, 4, 3)), aliases={"a": "0"}))


def test_each_reason_is_said_once() -> None:
    text = printed(tiny(Undecided(0)))
    assert text.count("cannot trace") == 1
    assert text.splitlines()[-1].startswith("(1) ")
    assert [line.split()[3:] for line in text.splitlines() if "Conv2d" in line] == 2 * [["-", "(1)", "-"]]


def test_reasons_are_numbered_and_the_whole_image_is_named() -> None:
    whole: Any = SimpleNamespace(size=(9, 9), stride=(2, 2), whole_image=True, reason="an average over space")
    rows = [
        LayerRow("a", "", "Conv2d", 4, None, "first reason"),
        LayerRow("b", "", "ReLU", 4, None, "[second] reason"),
        LayerRow("c", "", "ReLU", 4, None, "first reason"),
        LayerRow("d", "", "Linear", 4, whole, whole.reason),
    ]
    stream = io.StringIO()
    print_layers(tiny(nn.Identity()), rows, Console(file=stream, width=20))
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()[-6:]]
    assert lines[:4] == ["a Conv2d 4 - (1) -", "b ReLU 4 - (2) -", "c ReLU 4 - (1) -", "d Linear 4 whole image -"]
    assert lines[4:] == ["(1) first reason", "(2) [second] reason"]


def test_layers_without_weights_are_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    unloaded = frozenset({"2.weight", "2.bias", "3.weight", "3.bias"})
    last = printed(tiny(module, unloaded=unloaded)).splitlines()[-1]
    assert "no weights were loaded for 2, 3:" in last
    assert "no weights" not in printed(tiny(module))
