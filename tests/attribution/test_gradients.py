"""Gradient, deconvnet and guided backpropagation against layers written out by hand, and against autograd's graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fvlight.attribution import deconvnet, gradient, guided_backprop
from fvlight.attribution.units import read_maps
from fvlight.errors import FvlightError
from fvlight.network import Network
from tests.attribution.by_hand import GRAPHS, STYLES, STYLES_6, Modules, Tape, by_graph, mobilenet
from tests.helpers import built, one_thread, relative_error, snapshot  # noqa: F401

# method: (function, the mask of the ReLU's input, the mask of the signal)
METHODS = {
    "gradient": (gradient, True, False),
    "deconvnet": (deconvnet, False, True),
    "guided": (guided_backprop, True, True),
}
masking = pytest.mark.parametrize("function", [deconvnet, guided_backprop])


def pictures(count: int = 2, size: int = 16, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_hand(graph: Callable[..., Any], parts: nn.ModuleDict, images: Tensor, lower: bool, upper: bool) -> Tape:
    tape = Tape(parts, lower, upper)
    assert tape.new(images, (), lambda signal: ()) == 0
    tape.calls["output"] = graph(tape, 0)
    return tape


def one_hot(like: Tensor, unit: int) -> Tensor:
    start = torch.zeros_like(like)
    start[:, unit] = 1
    return start


@cache
def expected(name: str, method: str) -> tuple[Tensor, Tensor]:
    """Output and map of unit 3 of one of the graphs."""
    _, lower, upper = METHODS[method]
    graph = GRAPHS.get(name, mobilenet)
    images = pictures(scale=2 if name in GRAPHS else 20)
    tape = by_hand(graph, Modules(graph).parts, images, lower, upper)
    output = tape.values[tape.calls["output"]]
    return output, tape.signals(tape.calls["output"], one_hot(output, 3))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", GRAPHS)
def test_masks_are_those_of_layers_by_hand_however_the_relu_is_written(name, style):
    network, images = Modules(GRAPHS[name], style).train(), pictures()
    list(network.parameters())[1].requires_grad_(False)
    before, seen = snapshot(network), images.clone()
    for method, (function, _, _) in METHODS.items():
        output, wanted = expected(name, method)
        assert relative_error(function(network, images, None, 3), wanted) < 1e-12
    assert relative_error(read_maps(Network(network), images, None), output) < 1e-12
    assert snapshot(network) == before
    assert images.equal(seen)
    assert not images.requires_grad
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("style", STYLES_6)
def test_relu6_is_open_between_0_and_6(style):
    network, images = Modules(mobilenet, relu6=style), pictures(scale=20)
    first = network.parts["n0"](network.parts["c0"](images))
    assert (first > 6).float().mean() > 0.1  # else the upper end would not be seen
    for method, (function, _, _) in METHODS.items():
        _, wanted = expected("mobilenet", method)
        assert relative_error(function(network, images, None, 3), wanted) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_three_differ(name, method):
    others = [expected(name, other)[1] for other in METHODS if other != method]
    assert all(relative_error(expected(name, method)[1], other) > 0.05 for other in others)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "layer"), [("vgg", "c3"), ("residual", "n2"), ("inception", "b3"), ("densenet", "b1")]
)
def test_any_layer_position_and_start(name, layer, method):
    function, lower, upper = METHODS[method]
    network, images = Modules(GRAPHS[name], "F.relu(inplace)"), pictures()
    tape = by_hand(GRAPHS[name], network.parts, images, lower, upper)
    index = tape.calls[layer]
    maps, path = tape.values[index], f"parts.{layer}"
    height, width = maps.shape[2:]
    mean, at, activation, there = (torch.zeros_like(maps) for _ in range(4))
    mean[:, 1] = 1 / (height * width)
    at[:, 1, 1, 0] = 1
    activation[:, 1] = maps[:, 1]
    there[:, 1, 1, 0] = maps[:, 1, 1, 0]
    for start, options in (
        (mean, {}), (mean, {"position": "mean"}), (at, {"position": (1, 0)}),
        (activation, {"start": "activation"}), (there, {"start": "activation", "position": (1, 0)}),
    ):  # fmt: skip
        assert relative_error(function(network, images, path, 1, **options), tape.signals(index, start)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_every_image_has_its_own_unit_and_rows_do_not_mix(method):
    function, lower, upper = METHODS[method]
    network, images = Modules(GRAPHS["inception"]), pictures(4)
    tape = by_hand(GRAPHS["inception"], network.parts, images, lower, upper)
    output = tape.values[tape.calls["output"]]
    for unit, chosen in ((None, output.argmax(1).tolist()), ([4, 0, 2, 2], [4, 0, 2, 2]), (torch.arange(4), range(4))):
        start = torch.zeros_like(output)
        for row, number in enumerate(chosen):
            start[row, number] = 1
        maps = function(network, images, None, unit)
        assert relative_error(maps, tape.signals(tape.calls["output"], start)) < 1e-12
        for row, number in enumerate(chosen):
            assert relative_error(function(network, images[row : row + 1], None, int(number))[0], maps[row]) < 1e-12


@pytest.mark.parametrize("name", GRAPHS)
def test_the_gradient_has_the_slopes_of_finite_differences(name):
    network, images = Modules(GRAPHS[name]), pictures()
    maps = gradient(network, images, None, 2)
    for seed in range(3):
        way = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            slope = (network(images + 1e-6 * way) - network(images - 1e-6 * way))[:, 2] / 2e-6
        torch.testing.assert_close((maps * way).sum((1, 2, 3)), slope, rtol=1e-6, atol=1e-8)


REAL = {  # the smallest images that each takes, about
    "googlenet": (64, {"init_weights": False, "aux_logits": False, "transform_input": True}),
    "inception_v3": (80, {"init_weights": False, "aux_logits": False, "transform_input": True}),
    "mobilenet_v2": (48, {}),
    "resnet18": (48, {}),
    "squeezenet1_1": (48, {}),
    "densenet121": (48, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_on_torchvisions_networks_too(name):
    size, options = REAL[name]
    network = built(lambda: getattr(torchvision.models, name)(weights=None, **options))
    images, before = pictures(size=size), snapshot(network)
    maps = {}
    for method, (function, lower, upper) in METHODS.items():
        maps[method] = function(network, images, None, 7)
        assert relative_error(maps[method], by_graph(network, images, 7, lower, upper)) < 1e-12
    assert relative_error(maps["guided"], maps["gradient"]) > 0.1
    assert relative_error(maps["guided"], maps["deconvnet"]) > 0.1
    assert snapshot(network) == before


@masking
def test_nothing_to_guide_is_an_error_that_says_what_there_is(function):
    network = built(lambda: torchvision.models.efficientnet_b0(weights=None))
    with pytest.raises(FvlightError, match=r"no ReLU .* only .*silu \(49\).*: take gradient or lrp"):
        function(network, pictures(size=32), None, 0)
    assert gradient(network, pictures(size=32), None, 0).abs().amax((1, 2, 3)).min() > 0
    with pytest.raises(FvlightError, match="only linear operations"):  # before the first ReLU
        function(Modules(GRAPHS["vgg"]), pictures(), "parts.c1", 0)


def test_only_what_lies_between_image_and_unit_counts():
    network = Modules(lambda o, x: o.cat(o.relu(o.conv("a", x, 3)), o.conv("b", x, 3)))
    with pytest.raises(FvlightError, match="no ReLU"):  # the ReLU of the other branch ran, too
        guided_backprop(network, pictures(), "parts.b", 0)


@masking
def test_other_nonlinearities_are_named_once_and_keep_their_gradient(function):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(),
        nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Hardtanh(), nn.Flatten(), nn.Linear(256, 2),
    ).double()  # fmt: skip
    with pytest.warns(UserWarning, match=r"not only ReLUs \(1\) but also .*silu \(2\)") as told:
        maps = function(network, pictures(), None, 0)
    assert len(told) == 1
    assert "hardswish (1)" in str(told[0].message)
    assert "hardtanh (1)" in str(told[0].message)
    _, lower, upper = next(m for m in METHODS.values() if m[0] is function)
    images = pictures().requires_grad_()
    middle = network[:3](images)
    (signal,) = torch.autograd.grad(network[4:](middle.relu())[:, 0].sum(), middle)  # masked by x > 0
    if not lower:
        held = middle.relu().detach().requires_grad_()
        (signal,) = torch.autograd.grad(network[4:](held)[:, 0].sum(), held)
    (wanted,) = torch.autograd.grad(middle, images, signal * (signal > 0))
    assert relative_error(maps, wanted) < 1e-12


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.clamp(-1, 1), lambda x: x.clamp(max=1), lambda x: x.clamp_min(-0.5),
        lambda x: F.threshold(x, 0.5, 0), lambda x: F.threshold(x, 0, 0.1), lambda x: torch.maximum(x, 0.5 * x),
        lambda x: torch.clamp(x, -x.abs(), x.abs()), lambda x: x * x.detach().mul(3).long().clamp(0, 2),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*not only ReLUs")
@masking
def test_what_clips_elsewhere_is_no_relu(function, operation):
    parts = [built(lambda c=c: nn.Conv2d(c, 4, 3), seed=c) for c in (3, 4)]

    class Clips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(parts[1](operation(parts[0](x)))).flatten(2).mean(2)

    _, lower, upper = next(m for m in METHODS.values() if m[0] is function)
    assert (
        relative_error(function(Clips(), pictures(), None, 1), by_graph(Clips(), pictures(), 1, lower, upper)) < 1e-12
    )


@masking
def test_relus_out_of_reach_are_an_error(function):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    exported = torch.export.export(network, (pictures(),)).module()

    class Half(nn.Module):  # the ReLU behind it can be reached, those within can't
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(exported(x)).mean((2, 3))

    with pytest.raises(FvlightError, match=r"exported parts.* can't be reached: hand over the module"):
        function(Half(), pictures(), None, 0)


def threshold_net() -> nn.Sequential:
    """conv (each channel's mean of RGB, and its negative), ReLU."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 3, 1, 1) / 3
    return nn.Sequential(conv, nn.ReLU(inplace=True))


@pytest.mark.parametrize("start", ["value", "activation"])
@pytest.mark.parametrize("function", [gradient, deconvnet, guided_backprop])
def test_a_silent_unit_is_said_and_has_no_map(function, start):
    images = torch.ones(4, 3, 4, 4, dtype=torch.float64) * torch.tensor([2.0, -1, 3, -1]).reshape(4, 1, 1, 1)
    with pytest.warns(UserWarning, match=r"layer '1' is silent \(its value is 0\) on 2 of 4 .*number 1, 3$"):
        maps = function(threshold_net(), images, "1", 0, start=start)
    assert maps[[1, 3]].isnan().all()
    factor = torch.tensor([1 / 16, 1 / 16] if start == "value" else [2.0, 3.0], dtype=torch.float64)
    wanted = (factor / 3).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(maps[[0, 2]], wanted, rtol=1e-14, atol=0)


def test_a_map_of_zeros_is_said_as_well():
    network = nn.Sequential(*threshold_net(), nn.Conv2d(2, 1, 1, bias=False)).double()
    network[2].weight.data = torch.tensor([-1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    images = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(gradient(network, images, None, 0), torch.full_like(images, -1 / 12))
    with pytest.warns(UserWarning, match="nothing of the unit of the output comes back"):
        assert guided_backprop(network, images, None, 0).isnan().all()
    saturated = nn.Sequential(threshold_net()[0], nn.ReLU6())
    with pytest.warns(UserWarning, match="nothing of the unit"):
        assert gradient(saturated, 20 * images, None, 0).isnan().all()


def test_a_linear_unit_of_value_0_is_not_silent():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(gradient(threshold_net(), images, "0", 0, position=(0, 1))[0, :, 0, 1].sum().item(), 1.0)


@pytest.mark.parametrize("function", [gradient, deconvnet, guided_backprop])
def test_a_network_may_begin_by_writing_into_the_image(function):
    conv = built(lambda: nn.Conv2d(3, 4, 3))
    for first in (nn.ReLU(inplace=True), nn.ReLU()):
        images = pictures()
        maps = function(nn.Sequential(first, conv, nn.ReLU(inplace=True)), images, None, 1)
        assert images.equal(pictures())
        if first.inplace:
            wanted = maps
    assert maps.equal(wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(mode):
    network = Modules(GRAPHS["residual"])
    with mode():
        maps = guided_backprop(network, pictures(), None, 3)
    assert relative_error(maps, expected("residual", "guided")[1]) < 1e-12
    assert not maps.requires_grad


def test_images_with_a_graph_of_their_own_keep_it_to_themselves():
    source = pictures().requires_grad_()
    assert not gradient(Modules(GRAPHS["vgg"]), source * 2, None, 3).requires_grad
    assert source.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_number_types(method, dtype):
    network = Modules(GRAPHS["residual"]).to(dtype)
    maps = METHODS[method][0](network, pictures().to(dtype), None, 3)
    assert maps.dtype == dtype
    rounded = Modules(GRAPHS["residual"])
    rounded.load_state_dict(network.state_dict())
    wanted = METHODS[method][0](rounded, pictures().to(dtype).double(), None, 3)
    cosine = torch.cosine_similarity(maps.double().flatten(1), wanted.flatten(1))
    assert cosine.min() > (1 - 1e-10 if dtype == torch.float32 else 0.95)


def test_checkpoints_run_again_without_rules_and_are_refused():
    options = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "bn_size": 2, "num_classes": 3}
    plain, frugal = (
        built(lambda less=less: torchvision.models.DenseNet(**options, memory_efficient=less)) for less in (False, True)
    )
    images, before = pictures(size=32), snapshot(frugal.train())
    assert relative_error(gradient(frugal, images, None, 1), by_graph(plain, images, 1, True, False)) < 1e-12
    for function in (deconvnet, guided_backprop):
        with pytest.raises(FvlightError, match="switch checkpointing"):
            function(frugal, images, None, 1)
    assert snapshot(frugal) == before


@pytest.mark.parametrize("function", [gradient, deconvnet, guided_backprop])
def test_errors(function):
    network = Modules(GRAPHS["vgg"])
    for images, arguments, options, message in (
        (pictures(), (None, 5), {}, "unit=5: there are units 0 to 4"),
        (pictures(), ("nowhere", 0), {}, "no layer 'nowhere'"),
        (pictures(), ("parts.c1", 0), {"position": (16, 0)}, r"position=\(16, 0\)"),
        (pictures(), (None, 0), {"start": "activity"}, "no start 'activity': did you mean 'activation'"),
        (pictures()[0], (None, 0), {}, r"\(N, C, H, W\)"),
        (pictures().byte(), (None, 0), {}, "uint8"),
    ):
        with pytest.raises(FvlightError, match=message):
            function(network, images, *arguments, **options)

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    with pytest.raises(FvlightError, match="the output of 'Deaf' does not depend on the pixels"):
        function(Deaf(), pictures(), None, 0)


def test_warnings_point_at_the_caller():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gradient(threshold_net(), -torch.ones(1, 3, 2, 2, dtype=torch.float64), None, 0)
    assert told[0].filename == __file__
