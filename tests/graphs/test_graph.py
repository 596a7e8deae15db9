"""fvlight.graphs.graph: the kinds of operations, tracing, and the layer that distances are measured in."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight import Network
from fvlight.graphs.classification import CHANNEL_MODULES, POINTWISE, POINTWISE_MODULES
from fvlight.graphs.graph import Graph
from fvlight.graphs.operations import Local, Unsupported
from fvlight.graphs.tracing import preceding_layer, trace
from fvlight.zoo import load_network
from fvlight.zoo.vgg import vgg19
from tests.helpers import snapshot, torchvision_network


class Apply(nn.Module):
    """A function of one tensor, or of its halves."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def graph_of(function: Callable[..., Any]) -> Graph:
    return trace(Network(Apply(function)))


def last_kind(function: Callable[..., Any]) -> Local | str:
    """The kind of the last operation before the output."""
    graph = graph_of(function)
    return graph.kind(graph.nodes[-2])


# --- kinds ----------------------------------------------------------------------------------------------


# What the names that are called pointwise want beside their tensor (two tensors: see below).
EXTRA: dict[str, tuple[Any, ...]] = {
    "clamp": (0.1,), "clip": (0.1,), "clamp_min": (0.1,), "clamp_max": (0.5,), "pow": (2,), "_threshold": (0.3, 0.0),
    "type": (torch.float64,), "to": (torch.float64,), "dropout": (0.5, False), "alpha_dropout": (0.5, False),
}  # fmt: skip
BINARY = {
    "add", "sub", "mul", "div", "maximum", "minimum", "fmax", "pow", "iadd", "isub", "imul", "truediv", "itruediv",
}  # fmt: skip
NO_GRADIENT = {"gt", "ge", "lt", "le", "eq", "ne", "half", "bfloat16", "float", "detach", "sign", "round", "type_as"}
OTHERS = {"addcmul", "addcdiv", "where", "lerp", "stochastic_depth"}  # of three tensors; of torchvision
UNARY = sorted(POINTWISE - BINARY - NO_GRADIENT - OTHERS)


def function_named(name: str) -> Callable[..., Any]:
    """The function of torch or operator, or the method, that has a name."""
    homes = [home for home in (operator, F, torch, torch._C._nn) if callable(getattr(home, name, None))]
    return getattr(homes[0], name) if homes else lambda x, *rest: getattr(x, name)(*rest)


POINTWISE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: lambda x, name=name: function_named(name)(x, *EXTRA.get(name, ())) for name in UNARY},
    **{f".{name}": lambda x, name=name: getattr(x, name)() for name in ("relu", "sigmoid", "abs", "exp", "neg")},
    "relu_": F.relu_, "-x": lambda x: -x, "x ** 2": lambda x: x**2, "x + 1": lambda x: x + 1, "2 * x": lambda x: 2 * x,
    "1 - x": lambda x: 1 - x, "x / 2": lambda x: x / 2, "x * x": lambda x: x * x,
    "channels": lambda x: x[:, 1:2], "all": lambda x: x[...], "one image axis more": lambda x: x[:, :, None],
    "lrn": lambda x: F.local_response_norm(x, 3), "leaky": lambda x: F.leaky_relu(x, 0.1),
    "softmax of channels": lambda x: torch.softmax(x, 1), "normalize": F.normalize,
    "average of channels": lambda x: x.mean(1, keepdim=True), "max of channels": lambda x: x.amax(1),
    "a scale for each channel": lambda x: x * torch.ones(3, 1, 1) + torch.ones(1) + torch.ones(1, 3, 1, 1),
    "one channel": lambda x: x[:, 0], "channels last": lambda x: x.permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(1, 3), "moved": lambda x: x.movedim(1, -1), "split": lambda x: x.split(2, 1)[1],
    "chunk": lambda x: x.chunk(2, dim=1)[0], "unbound": lambda x: x.unbind(1)[2],
    "LayerNorm over channels": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)),
    "linear over channels": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(2, 3).to(x.dtype)),
    "product over channels": lambda x: x.permute(0, 2, 3, 1) @ torch.ones(3, 2).to(x.dtype),
}  # fmt: skip


def shift_dependence(function: Callable[[Tensor], Tensor], axes: Any = (2, 3)) -> set[tuple[int, int]]:
    """Where, relative to an output position, the inputs lie that it depends on: by autograd."""
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    x.requires_grad_()
    value = function(x * 1.0)
    value = value.movedim(axes, (-2, -1))
    (gradient,) = torch.autograd.grad((value[..., 2, 2] ** 3).sum(), x)
    return {(int(row) - 2, int(column) - 2) for _, _, row, column in gradient.nonzero()}


@pytest.mark.parametrize("name", POINTWISE_FUNCTIONS)
def test_pointwise_operations_are_known_and_are_pointwise(name: str) -> None:
    """The graph's word for it, and the arithmetic's: an output depends on its own position alone."""
    graph = graph_of(POINTWISE_FUNCTIONS[name])
    node = graph.nodes[-2]
    assert graph.kind(node) in ("pointwise", "reshape")
    assert shift_dependence(POINTWISE_FUNCTIONS[name], graph.axes(node)) == {(0, 0)}


@pytest.mark.parametrize("kind", POINTWISE_MODULES + CHANNEL_MODULES)
def test_pointwise_modules_are_pointwise(kind: type[nn.Module]) -> None:
    needs: dict[type[nn.Module], tuple[float, ...]] = {
        nn.BatchNorm2d: (3,), nn.LocalResponseNorm: (3,), nn.Threshold: (0.3, 0.0), nn.Softshrink: (0.1,),
        nn.Hardshrink: (0.1,),
    }  # fmt: skip
    module = kind(*needs.get(kind, ())).double().eval()
    graph = trace(Network(nn.Sequential(module)))
    assert graph.kind(graph.nodes[-2]) == "pointwise"
    assert shift_dependence(module) == {(0, 0)}


@pytest.mark.parametrize("name", sorted(BINARY))
def test_elementwise_operations_take_two_tensors_position_by_position(name: str) -> None:
    def both(x: Tensor) -> Tensor:
        return function_named(name)(torch.abs(x), torch.sigmoid(x))

    assert last_kind(both) == "elementwise"
    assert shift_dependence(both) == {(0, 0)}


def test_three_tensors_position_by_position() -> None:
    def three(x: Tensor) -> Tensor:
        return torch.where(x > 0.5, torch.lerp(x, torch.sigmoid(x), 0.3), torch.addcmul(x, x, x))

    assert last_kind(three) == "elementwise"
    assert shift_dependence(three) == {(0, 0)}


RESHAPES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "groups": (lambda x: x.view(x.shape[0], 1, 3, *x.shape[2:]), (3, 4)),
    "groups, shuffled": (
        lambda x: x.repeat(1, 2, 1, 1).reshape(-1, 2, 3, *x.shape[-2:]).transpose(1, 2).flatten(1, 2), (2, 3),
    ),
    "in the batch": (lambda x: x.reshape(-1, 1, x.size(2), x.size(3)), (2, 3)),
    "unsqueezed": (lambda x: x.unsqueeze(1), (3, 4)), "flattened": (lambda x: x[:, :, None].flatten(1, 2), (2, 3)),
    "squeezed": (lambda x: x[:, :1].squeeze(1), (1, 2)), "stacked": (lambda x: torch.stack([x, 2 * x], 1), (3, 4)),
    "unflattened": (lambda x: x.unflatten(1, (3, 1)), (3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", RESHAPES)
def test_height_and_width_are_followed_through_reshapes(name: str) -> None:
    function, axes = RESHAPES[name]
    graph = graph_of(function)
    if name != "groups, shuffled":  # `repeat` of a tensor is not known
        assert graph.kind(graph.nodes[-2]) in ("reshape", "concatenate")
        assert graph.axes(graph.nodes[-2]) == axes
    assert shift_dependence(function, axes) == {(0, 0)}


@pytest.mark.parametrize("cat", [torch.cat, torch.concat])
@pytest.mark.parametrize("dim", [1, -3])
def test_concatenation_of_channels(cat: Any, dim: int) -> None:
    assert last_kind(lambda x: cat([x, x], dim)) == "concatenate"
    assert last_kind(lambda x: cat([x, x], dim=dim)) == "concatenate"


LOCALS: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, Local]] = {
    "conv": (nn.Conv2d(3, 2, (3, 5), (1, 2), (0, 1), (2, 1)), Local((3, 5), (1, 2), (0, 1), (2, 1))),
    "max": (nn.MaxPool2d(3, 2, 1), Local((3, 3), (2, 2), (1, 1), (1, 1))),
    "max, dilated": (nn.MaxPool2d((2, 3), dilation=2), Local((2, 3), (2, 3), (0, 0), (2, 2))),
    "average": (nn.AvgPool2d((2, 3), padding=(0, 1)), Local((2, 3), (2, 3), (0, 1), (1, 1))),
    "F.max": (lambda x: F.max_pool2d(x, 3), Local((3, 3), (3, 3), (0, 0), (1, 1))),
    "F.max, by place": (lambda x: F.max_pool2d(x, 3, 1, 1, 2), Local((3, 3), (1, 1), (1, 1), (2, 2))),
    "F.max, by name": (
        lambda x: F.max_pool2d(x, kernel_size=(2, 3), stride=(1, 2), padding=(1, 0), ceil_mode=True),
        Local((2, 3), (1, 2), (1, 0), (1, 1)),
    ),
    "torch.max": (lambda x: torch.max_pool2d(x, [2, 2]), Local((2, 2), (2, 2), (0, 0), (1, 1))),
    "slice of the last axes": (lambda x: x[..., 2:, :], Local((1, 1), (1, 1), (-2, 0), (1, 1))),
    "borders off": (lambda x: x[:, :, 1:-1, 1:-1], Local((1, 1), (1, 1), (-1, -1), (1, 1))),
    "pixels unshuffled": (nn.PixelUnshuffle(4), Local((4, 4), (4, 4), (0, 0), (1, 1))),
    "pad, as a network pads to full steps": (
        lambda x: F.pad(x, (0, -x.shape[3] % 3, (h := -x.shape[2] % 3) // 2, h - h // 2)),
        Local((1, 1), (1, 1), (0, 0), (1, 1)),
    ),
    "slice": (lambda x: x[:, :, ::2, 1::3], Local((1, 1), (2, 3), (0, -1), (1, 1))),
    "pad": (lambda x: F.pad(x, (1, 2, 3, 4)), Local((1, 1), (1, 1), (3, 1), (1, 1))),
    "pad, with channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), Local((1, 1), (1, 1), (0, 0), (1, 1))),
    "F.conv": (
        lambda x: F.conv2d(x, torch.ones(2, 3, 3, 5), None, (1, 2), (1, 0), 2),
        Local((3, 5), (1, 2), (1, 0), (2, 2)),
    ),
    "same": (nn.Conv2d(3, 2, (3, 4), padding="same", dilation=(2, 1)), Local((3, 4), (1, 1), (2, 1), (2, 1))),
    "F.average": (lambda x: F.avg_pool2d(x, 3, 2, 1, True), Local((3, 3), (2, 2), (1, 1), (1, 1))),
}


@pytest.mark.parametrize("name", LOCALS)
def test_sliding_windows(name: str) -> None:
    function, expected = LOCALS[name]
    module = nn.Sequential(function) if isinstance(function, nn.Module) else Apply(function)
    graph = trace(Network(module))
    assert graph.kind(graph.nodes[-2]) == expected


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (2, 5)])
def test_the_extent_counts_both_ends(kernel: int, dilation: int) -> None:
    taps = [dilation * i for i in range(kernel)]
    assert Local((kernel, 1), (1, 1), (0, 0), (dilation, 1)).extent == (taps[-1] - taps[0] + 1, 1)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x.mean(0), "mean"),
        (lambda x: x[1:], "getitem"),
        (lambda x: x.repeat(1, 2, 1, 1), "repeat"),
        (lambda x: x[:, :, : x.shape[2] // 2], "depends on the image's size"),
        (lambda x: x / x.shape[2], "depends on the image's size"),
        (lambda x: x / x.numel(), "depends on the image's size"),
        (lambda x: x[:, :, -3:], "getitem"),
        (lambda x: x[:, :, ::2, -3:], "getitem"),
        (lambda x: torch.cat([x, x], 0), "cat"),
        (lambda x: torch.cat([x, x], dim=2), "cat"),
        (lambda x: F.interpolate(x, scale_factor=2), "interpolate.*it upsamples"),
        (lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), 3), "not the last axes"),
        (lambda x: x + x.transpose(1, 2), "different axes"),
        (lambda x: x.split(2, 2), "positions are parted"),
    ],
)
def test_what_is_none_of_these_is_named(function: Callable[[Tensor], Tensor], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        last_kind(function)


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)), "mean of all": lambda x: x.mean(), "rows": lambda x: torch.sum(x, -2),
    "kept": lambda x: x.amax((-1, -2), keepdim=True), "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(2), "reshape": lambda x: x.reshape(2, 3, 25),
    "view": lambda x: x.view(2, -1), "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "flip": lambda x: x.flip(1, 3), "softmax over rows": lambda x: torch.softmax(x, 2),
    "roll": lambda x: torch.roll(x, 1, 2),
    "embedding": lambda x: x + torch.ones(3, 512, 512), "embedding of rows": lambda x: x * torch.ones(512, 1),
    "joined embedding": lambda x: torch.cat([x, torch.ones(7919, 1, 512, 512)], 1),
    "one row": lambda x: x[:, :, 2], "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "LayerNorm over space": lambda x: F.layer_norm(x, x.shape[1:]), "GroupNorm": lambda x: F.group_norm(x, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_looks_at_all_positions(name: str) -> None:
    assert last_kind(WHOLE[name]) == "whole"


@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2), nn.Flatten()])
def test_modules_that_look_at_all_positions(kind: nn.Module) -> None:
    graph = trace(Network(nn.Sequential(kind)))
    assert graph.kind(graph.nodes[-2]) == "whole"


def test_sizes_that_are_no_heights_or_widths_do_no_harm() -> None:
    assert last_kind(lambda x: x / x.shape[1] + x.size(1)) == "pointwise"
    assert last_kind(lambda x: x.to(x.dtype) * x.dim()) == "pointwise"


# --- tracing --------------------------------------------------------------------------------------------


def test_ancestors_are_what_a_node_needs_in_order() -> None:
    graph = graph_of(lambda x: torch.relu(x) + torch.abs(torch.neg(x) * 2).exp().clamp(0))
    by_name = {node.name: node for node in graph.nodes}
    names = [node.name for node in graph.ancestors(by_name["exp"])]
    assert names == ["x", "neg", "mul", "abs_1", "exp"]
    assert [n.name for n in graph.ancestors(by_name["relu"], by_name["neg"])] == ["x", "relu", "neg"]
    assert graph.input is by_name["x"]


def test_containers_and_activations_have_outputs() -> None:
    graph = trace(Network(torchvision_network("resnet50")))
    assert graph.outputs["layer1"] is graph.outputs["layer1.2"]
    assert graph.outputs["layer1.0.conv2"].target == "layer1.0.conv2"
    assert graph.module_of(graph.outputs["conv1"]) is graph.module.conv1
    assert graph.module_of(graph.input) is None


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.ReLU(True))).train()
    module[1].eval()
    before = snapshot(module)
    trace(Network(module))
    assert snapshot(module) == before


def test_tracing_sees_the_evaluation_branch() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x) if self.training else torch.abs(x)

    assert [node.name for node in trace(Network(Noisy().train())).nodes] == ["x", "abs_1", "output"]


def test_what_fails_in_tracing_is_put_back_and_named() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if x.sum() > 0 else x

    module = Moody().train()
    before = snapshot(module)
    with pytest.raises(Unsupported, match=r"torch\.fx cannot trace 'mine': ") as caught:
        trace(Network(module, "mine"))
    assert "\n" not in str(caught.value)
    assert snapshot(module) == before


# --- out of place ---------------------------------------------------------------------------------------


def check_last(function: Callable[[Tensor], Any]) -> None:
    graph = graph_of(function)
    graph.check(graph.nodes[-1])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (y := torch.neg(x)).relu_() + y,
        lambda x: F.relu((y := torch.neg(x)), inplace=True) + y,
        lambda x: F.relu_(y := torch.neg(x)) + y,
        lambda x: F.relu(y := torch.neg(x), True) + y,
        lambda x: (y := torch.neg(x)).flatten(1).relu_().sum() + y,  # changed by another name
        lambda x: (v := (y := torch.neg(x)).view(-1)).sum() + y.relu_().sum() + v,
        lambda x: [y := torch.neg(x), y.clamp_(0), torch.abs(y)][2],  # as a statement, its value unused
    ],
)
def test_a_tensor_that_is_read_after_it_was_changed_is_found(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Unsupported, match=r"changes 'neg' in place, which is read again"):
        check_last(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.neg(x).relu_().add_(1) + x,
        lambda x: (y := torch.neg(x)) + torch.exp(y),
        lambda x: torch.exp(x).mul_(y := torch.neg(x)) + y,  # y is only read
        lambda x: (y := torch.neg(x)) + torch.abs(y) + y.relu(),
        lambda x: torch.exp(y := torch.neg(x)) + F.relu_(y),  # read before, not after
    ],
)
def test_other_in_place_operations_do_no_harm(function: Callable[[Tensor], Tensor]) -> None:
    check_last(function)


# --- the layer before -----------------------------------------------------------------------------------


def test_the_activation_before_each_convolution_of_vgg() -> None:
    """[C]: the preceding convolutional layer, behind its ReLU, before any pooling: conv2_2 for conv3_1."""
    network = Network(vgg19())
    names = [name for name, part in network.module.named_children() if isinstance(part, nn.Conv2d)]
    for before, name in zip([None, *names], names, strict=False):
        expected = "pixels" if before is None else before.replace("conv", "relu")
        assert preceding_layer(network, name) == expected


def test_the_activation_before_is_given_by_its_alias() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3))
    assert preceding_layer(Network(module), "4") == "2"
    assert preceding_layer(Network(module, aliases={"first": "2", "second": "4"}), "second") == "first"


def test_no_single_layer_before() -> None:
    with pytest.raises(Unsupported, match="branches meet"):
        preceding_layer(Network(torchvision_network("resnet50")), "layer1.1.conv1")
    with pytest.raises(Unsupported, match="no name of its own"):
        preceding_layer(load_network("energy_cell"), "complex")
    with pytest.raises(Unsupported, match="not called"):
        preceding_layer(Network(Uncalled()), "unused")


class Uncalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x
