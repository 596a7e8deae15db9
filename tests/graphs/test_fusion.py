"""fvlight.graphs.fusion: what is computed together with a convolution, against the module itself in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import Network, Readout
from fvlight.graphs.fusion import Fused, affine_of, fuse
from fvlight.graphs.graph import Graph
from fvlight.graphs.tracing import trace
from tests.helpers import built, full_map, interior_unit, relative_error, windows

DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def norm() -> nn.Module:
    return nn.BatchNorm2d(6, eps=1e-2)


def stack(*after: Callable[[], nn.Module], bias: bool = True) -> Callable[[], nn.Module]:
    """A convolution, layers after it, another convolution."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), *(make() for make in after), nn.Conv2d(6, 4, 3, padding=1)
    )


class Functional(nn.Module):
    """timm's way: the statistics are passed to the function; nothing stands where dropout might."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Identity()
        self.last = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        x = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-3)
        return self.last(torch.relu_(self.drop(x)))


class OwnStatistics(nn.Module):
    """Not to be folded: statistics of the batch, a scale that depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(F.batch_norm(y, self.mean, self.mean + 1, y.mean((0, 2, 3)), None, False))


class TwoReaders(nn.Module):
    """The convolution's output and the normalised one are both read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(self.norm(x).relu() + x)


def interior_window(readout: Readout, size: int) -> tuple[tuple[int, int], tuple[Any, ...]]:
    """A unit in the middle of images of that size, and its window."""
    field = readout.field
    assert field is not None
    unit = interior_unit(size, field)
    return unit, (..., *(slice(*box) for box in windows(field.size, field.stride, field.offset, unit)))


def traced(build: Callable[[], nn.Module]) -> tuple[Graph, list[Fused]]:
    """The graph, and what would be fused with each convolution when the last layer is read."""
    graph = trace(Network(built(build)))
    last = graph.nodes[-1]
    wanted = set(graph.ancestors(last))
    convs = [node for node in graph.nodes if isinstance(graph.module_of(node), nn.Conv2d)]
    return graph, [fuse(graph, conv, wanted, [last], pools=True) for conv in convs]


CASES = {  # name: (module, names of what is fused with the first convolution)
    "norm": (stack(norm), ["_1"]),
    "norm, relu": (stack(norm, lambda: nn.ReLU(inplace=True)), ["_1", "_2"]),
    "norm, relu, pool": (stack(norm, nn.ReLU, lambda: nn.MaxPool2d(3, 2, 1)), ["_1", "_2", "_3"]),
    "norm, dropout, relu": (stack(norm, nn.Dropout, nn.ReLU), ["_1", "_2", "_3"]),
    "no bias": (stack(norm, nn.ReLU, bias=False), ["_1", "_2"]),
    "two norms": (stack(norm, norm), ["_1"]),
    "relu, norm": (stack(nn.ReLU, norm), ["_1"]),
    "pool, norm": (stack(lambda: nn.MaxPool2d(2), norm), []),
    "another activation": (stack(norm, nn.ELU, nn.ReLU), ["_1"]),
    "functional": (Functional, ["batch_norm", "drop", "relu_"]),
    "two readers": (TwoReaders, []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_fused(name: str) -> None:
    build, expected = CASES[name]
    assert [node.name for node in traced(build)[1][0].nodes] == expected


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_module(name: str) -> None:
    """In the window of an interior unit, and of whole maps with padding."""
    module = built(CASES[name][0])
    layer = [path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)][-1]
    readout = Readout(Network(module), layer)
    images = random(2, 3, 20, 20).requires_grad_()
    unit, place = interior_window(readout, 20)
    expected = full_map(module, layer, images)
    mix = random(*expected.shape, seed=1)
    for window in (True, False):
        part = (..., *unit) if window else (...,)
        x = images.detach()[place] if window else images.detach()
        value = Readout(Network(module), layer, window=window)(x.requires_grad_())
        assert isinstance(value, Tensor)
        assert relative_error(value, expected[part]) < 1e-12
        (gradient,) = torch.autograd.grad((value * mix[part]).sum(), x)
        (wanted,) = torch.autograd.grad((expected * mix)[part].sum(), images, retain_graph=True)
        assert relative_error(gradient, wanted[place] if window else wanted) < 1e-12


@pytest.mark.parametrize("name", ["norm", "norm, relu", "norm, relu, pool", "no bias", "functional"])
def test_fused_layers_can_be_asked_for_themselves(name: str) -> None:
    """One unit for each image: by the row of folded weights that belongs to it, and after the ReLU."""
    module = built(CASES[name][0])
    images, units = random(6, 3, 20, 20), torch.arange(6)
    for layer in trace(Network(module)).outputs:
        readout = Readout(Network(module), layer)
        unit, place = interior_window(readout, 20)
        expected = full_map(module, layer, images)[:, :, unit[0], unit[1]]
        which = units % expected.shape[1]
        assert relative_error(readout(images[place]), expected) < 1e-12  # type: ignore[arg-type]
        own = readout(images[place], which)
        assert relative_error(own, expected[units, which]) < 1e-12  # type: ignore[arg-type]
        single = readout(images[place].float(), which)
        assert relative_error(single, expected[units, which]) < 1e-5  # type: ignore[arg-type]


def test_a_normalised_unit_is_read_by_its_own_row() -> None:
    for name, layer in (("norm", "1"), ("norm, relu", "2")):
        readout = Readout(Network(built(CASES[name][0])), layer)
        assert readout.program(torch.device("cpu"), DOUBLE).rows is not None
        both = Readout(Network(built(CASES[name][0])), [layer, "0"])  # the convolution's own output is wanted, too
        assert both.program(torch.device("cpu"), DOUBLE).rows is None


def test_statistics_that_are_not_fixed_are_left_alone() -> None:
    _, fused = traced(OwnStatistics)
    assert fused[0].nodes == []
    module = built(OwnStatistics)
    images = random(2, 3, 9, 9)
    value = Readout(Network(module), "last", window=False)(images)
    assert relative_error(value, full_map(module, "last", images)) < 1e-12  # type: ignore[arg-type]
    batch = trace(Network(stack(lambda: nn.BatchNorm2d(6, track_running_stats=False))()))
    assert not any(affine_of(batch, node) for node in batch.nodes)


def test_a_norm_without_weights_of_its_own() -> None:
    module = built(stack(norm, nn.ReLU, bias=False))
    bare = module.get_submodule("1")
    bare.weight = bare.bias = None  # type: ignore[assignment]
    images = random(2, 3, 9, 9)
    value = Readout(Network(module), "3", window=False)(images)
    assert relative_error(value, module(images)) < 1e-12  # type: ignore[arg-type]
    graph = trace(Network(module))
    assert [node.name for node in fuse(graph, graph.nodes[1], set(graph.nodes), [], pools=True).nodes] == ["_1", "_2"]


def test_a_subclass_may_do_something_else() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    Doubled.__module__ = "torch.nn.modules.batchnorm"  # a leaf to torch.fx
    _, fused = traced(stack(lambda: Doubled(6)))
    assert fused[0].nodes == []


def test_timm_norms_with_activations_are_folded() -> None:
    """`BatchNormAct2d`: batch norm as a function, Identity, ReLU."""
    network = Network(built(lambda: timm.create_model("resnet10t", num_classes=2)), image_size=(64, 64))
    graph = trace(network)
    conv = next(node for node in graph.nodes if isinstance(graph.module_of(node), nn.Conv2d))
    target = graph.outputs["layer1.0"]
    fused = fuse(graph, conv, set(graph.ancestors(target)), [target], pools=True)
    assert fused.affine is not None
    assert fused.relu
