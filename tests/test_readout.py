"""fvlight.readout, program: a window is an interior unit of the padded network; nothing is left behind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from fvlight import FvlightError, Network, Readout, ReceptiveField, receptive_field
from fvlight.images import list_images, read_image
from fvlight.zoo import load_network
from fvlight.zoo.vgg import vgg19
from tests.helpers import (
    LAYERS,
    TOYS,
    built,
    full_map,
    interior_unit,
    relative_error,
    snapshot,
    torchvision_network,
    toy,
    windows,
)  # fmt: skip

TOY_LAYERS = [(name, last, rest[0]) for name, (_, last, rest) in TOYS.items()]
DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def module_of(name: str) -> nn.Module:
    return toy(name) if name in TOYS else torchvision_network(name)


def stops(name: str) -> bool:
    """torchvision's layers here are called once: the rest of the large network need not run."""
    return name not in TOYS


def large_and_window(readout: Readout, extra: int = 1) -> tuple[Tensor, tuple[int, int], tuple[slice, slice]]:
    """Images with room around the window of an interior unit, that unit, and where its window lies."""
    field = readout.field
    assert field is not None
    size = max(field.size[axis] + 2 * field.stride[axis] for axis in (0, 1)) + extra
    unit = interior_unit(size, field)
    rows, columns = windows(field.size, field.stride, field.offset, unit)
    return random(2, 3, size, size), unit, (slice(*rows), slice(*columns))


# --- windowed reading against the padded network --------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), [case[:2] for case in TOY_LAYERS + LAYERS])
def test_a_window_is_an_interior_unit_and_so_is_its_gradient(name: str, layer: str) -> None:
    module = module_of(name)
    readout = Readout(Network(module), layer)
    images, unit, place = large_and_window(readout)
    images.requires_grad_()
    expected = full_map(module, layer, images, stops(name))[:, :, unit[0], unit[1]]
    crop = images.detach()[(..., *place)].requires_grad_()
    value = readout(crop)
    assert isinstance(value, Tensor)
    assert relative_error(value, expected) < 1e-10

    mix = random(*value.shape, seed=1)
    (wanted,) = torch.autograd.grad((expected * mix).sum(), images)
    (gradient,) = torch.autograd.grad((value * mix).sum(), crop)
    assert relative_error(gradient, wanted[(..., *place)]) < 1e-10

    assert relative_error(readout(crop.detach().float()), expected.detach()) < 1e-5  # type: ignore[arg-type]
    units = expected.detach().argmax(1)
    own = readout(crop, units)
    assert isinstance(own, Tensor)
    assert own.shape == (2,)
    assert relative_error(own, expected[torch.arange(2), units]) < 1e-10


@pytest.mark.parametrize("name", ["chain", "residual", "branches", "functional"])
def test_the_gradient_of_picked_units(name: str) -> None:
    """`units=` takes a path of its own for a convolution: its gradient is that of the picked row."""
    readout = Readout(Network(toy(name)), TOYS[name][1])
    crop = large_and_window(readout)[0][..., : readout.image_size[0], : readout.image_size[1]].requires_grad_()
    units, mix = torch.tensor([0, 2]), torch.tensor([2.0, -3.0], dtype=DOUBLE)
    every, picked = readout(crop), readout(crop, units)
    assert isinstance(every, Tensor)
    assert isinstance(picked, Tensor)
    (expected,) = torch.autograd.grad((every[[0, 1], units] * mix).sum(), crop)
    (gradient,) = torch.autograd.grad((picked * mix).sum(), crop)
    assert relative_error(picked, every[[0, 1], units]) < 1e-12
    assert relative_error(gradient, expected) < 1e-12


@pytest.mark.parametrize("name", TOYS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    readout = Readout(Network(toy(name)), TOYS[name][1])
    crop, step = random(2, 3, *readout.image_size), 1e-6
    crop.requires_grad_()
    value = readout(crop)
    assert isinstance(value, Tensor)
    mix, direction = random(*value.shape, seed=1), random(*crop.shape, seed=2)
    (gradient,) = torch.autograd.grad((value * mix).sum(), crop)
    with torch.no_grad():
        ahead, behind = ((readout(crop + s * direction) * mix).sum().item() for s in (step, -step))
    assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize(("name", "layer", "earlier"), TOY_LAYERS + LAYERS)
def test_an_earlier_layer_is_the_part_of_its_map_that_the_unit_sees(name: str, layer: str, earlier: str) -> None:
    module = module_of(name)
    readout = Readout(Network(module), [layer, earlier])
    images, unit, place = large_and_window(readout)
    value, features = readout(images[(..., *place)])
    whole: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        whole.append(output)
        return output.clone()  # what follows may change the copy in place

    handle = module.get_submodule(earlier).register_forward_hook(keep)
    full = full_map(module, layer, images.requires_grad_(), stops(name))[..., unit[0], unit[1]]
    handle.remove()
    assert relative_error(value, full) < 1e-10
    # What the unit sees of the earlier map: the box that its gradient reaches.
    (gradient,) = torch.autograd.grad((full * random(*full.shape, seed=1)).sum(), whole[-1])
    seen = gradient.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    crop = whole[-1][..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert relative_error(features, crop) < 1e-10


def test_earlier_features_are_all_that_the_unit_sees() -> None:
    """From them the unit can be computed again; VGG's sizes are closed forms."""
    network = Network(built(lambda: vgg19(last="conv3_1")))
    value, relu, pool = Readout(network, ["conv3_1", "relu2_2", "pool2"])(random(1, 3, 24, 24))
    assert value.shape == (1, 256)
    assert relu.shape == (1, 128, 6, 6)  # [C]: conv3_1's 3 x 3 units of pool2, 2 x 2 units each
    assert pool.shape == (1, 128, 3, 3)
    torch.testing.assert_close(F.max_pool2d(relu, 2), pool)
    conv = network.module.get_submodule("conv3_1")
    torch.testing.assert_close(conv(pool).flatten(1), value)


@pytest.mark.parametrize("name", ["chain", "residual", "branches"])
@pytest.mark.parametrize("window", [True, False])
def test_gradients_through_several_layers_at_once(name: str, window: bool) -> None:
    """Features and activation are both differentiated: targets are not torn from the graph."""
    module, (_, layer, rest) = toy(name), TOYS[name]
    readout = Readout(Network(module), [layer, rest[0]], window=window)
    images, unit, place = large_and_window(readout)
    x = (images[(..., *place)] if window else images).clone().requires_grad_()
    value, features = readout(x)
    (both,) = torch.autograd.grad(value.sum() + features.square().sum(), x)
    (one,) = torch.autograd.grad(Readout(Network(module), layer, window=window)(x).sum(), x)  # type: ignore[union-attr]
    (other,) = torch.autograd.grad(readout(x)[1].square().sum(), x)
    assert relative_error(both, one + other) < 1e-12
    assert other.abs().max() > 0


def test_a_layer_after_the_unit_with_the_same_windows() -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3)))
    images = random(2, 3, 3, 3)
    linear, rectified = Readout(Network(module), ["0", "1"])(images)
    torch.testing.assert_close(linear, F.conv2d(images, module[0].weight, module[0].bias).flatten(1))  # type: ignore[index, arg-type, union-attr]
    assert (linear < 0).any()
    torch.testing.assert_close(rectified[:, :, 0, 0], linear.relu())
    units = torch.tensor([4, 2])
    own, still_all = Readout(Network(module), ["0", "1"])(images, units)
    torch.testing.assert_close(own, linear[[0, 1], units])
    assert torch.equal(still_all, rectified)


@pytest.mark.parametrize(("layer", "other"), [("conv1_1", "conv2_1"), ("relu1_1", "pool1"), ("conv1_1", "relu1_2")])
def test_a_layer_that_is_not_before_the_unit_is_an_error(layer: str, other: str) -> None:
    with pytest.raises(FvlightError, match=rf"layer '{other}' neither lies before '{layer}'"):
        Readout(Network(vgg19(last="conv2_1")), [layer, other])


@pytest.mark.parametrize("size", [(23, 24), (24, 23), (25, 25)])
def test_images_of_another_size_are_an_error(size: tuple[int, int]) -> None:
    readout = Readout(Network(vgg19(last="conv3_1")), "conv3_1")
    with pytest.raises(FvlightError, match=rf"images of \({size[0]}, {size[1]}\) .*'conv3_1'.*\(24, 24\)"):
        readout(torch.zeros(1, 3, *size))


def test_what_has_no_window_is_named_with_the_remedy() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        FvlightError, match=r"no windowed readout of layer '2'.*'1' \(AdaptiveAvgPool2d\).*window=False"
    ):
        Readout(Network(module), "2")
    whole = Readout(Network(module), "2", window=False)
    assert whole(torch.ones(1, 3, 8, 8)).shape == (1, 2, 1, 1)  # type: ignore[union-attr]
    with pytest.raises(FvlightError, match="no window of known size"):
        _ = whole.image_size


def test_layers_by_alias_and_unknown_ones() -> None:
    network = Network(toy("residual"), aliases={"sum": "relu"})
    images = random(1, 3, *Readout(network, "relu").image_size)
    assert torch.equal(Readout(network, "sum")(images), Readout(network, "relu")(images))  # type: ignore[arg-type]
    with pytest.raises(FvlightError, match=r"no layer 'agian'.*did you mean 'again'"):
        Readout(network, "agian")


# --- the real network, a real photograph ----------------------------------------------------------------


def padded_vgg(weights: Path) -> nn.Module:
    """torchvision's VGG-19, padded, with the file's weights; its input is BGR, as the file's; float64."""
    tensors = load_file(weights)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"][:10])  # to conv3_4
    convs = [part for part in features if isinstance(part, nn.Conv2d)]
    names = sorted(name[:-7] for name in tensors if name.startswith("conv") and name.endswith(".weight"))
    for conv, name in zip(convs, names, strict=False):
        conv.load_state_dict({key: tensors[f"{name}.{key}"] for key in ("weight", "bias")})
        assert conv.padding == (1, 1)
    return features.double().eval()


def test_vgg_on_a_photograph(vgg_weights: Path, photographs: Path) -> None:
    network, padded = load_network("vgg19_normalised", str(vgg_weights)), padded_vgg(vgg_weights)
    photograph = read_image(list_images(photographs)[0])[None].double()[..., 40:120, 60:140]
    assert photograph.shape == (1, 3, 80, 80)
    assert photograph.std() > 0.05
    readout = Readout(network, ["conv3_1", "relu2_2"])
    bgr = network.input_space.from_rgb(photograph).flip(1)
    expected, features = full_map(padded, "10", bgr), full_map(padded, "8", bgr)
    for row, column in (
        (5, 5),
        (8, 11),
    ):  # conv3_1 moves by 4 pixels and begins 10 to the left: padding 1 x 5
        y, x = 4 * row - 10, 4 * column - 10
        crop = network.input_space.from_rgb(photograph[..., y : y + 24, x : x + 24])
        value, before = readout(crop)
        assert relative_error(value, expected[..., row, column]) < 1e-10
        first = (2 * (row - 1), 2 * (column - 1))
        wanted = features[..., first[0] : first[0] + 6, first[1] : first[1] + 6]
        assert relative_error(before, wanted) < 1e-10
        assert relative_error(readout(crop.float())[0], expected[..., row, column]) < 1e-5
        assert relative_error(readout(crop.float(), torch.tensor([9]))[0], expected[:, 9, row, column]) < 1e-4
        assert relative_error(readout(crop.float(), dtype=torch.bfloat16)[0], expected[..., row, column]) < 3e-2


# --- whole maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer", "earlier"), TOY_LAYERS + LAYERS)
def test_whole_maps_are_those_of_the_module(name: str, layer: str, earlier: str) -> None:
    module = module_of(name)
    images = random(2, 3, 47, 50)
    found = Readout(Network(module), [layer, earlier], window=False)(images)
    for value, which in zip(found, (layer, earlier), strict=True):
        assert relative_error(value, full_map(module, which, images, stops(name))) < 1e-10
    units = torch.tensor([2, 1])
    (own,) = Readout(Network(module), [layer], window=False)(images, units)
    # (Not the same sums: where `earlier` is a convolution, the normalisation after it is not folded into it.)
    torch.testing.assert_close(own, found[0][[0, 1], units], rtol=1e-12, atol=1e-12)


def test_what_the_window_can_t_do_the_whole_map_can() -> None:
    """Padding by name, circular padding, a buffer, global pooling, a classifier."""

    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.same = nn.Conv2d(3, 4, 4, padding="same")
            self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
            self.up = nn.ConvTranspose2d(4, 5, 2)
            self.pool, self.fc = nn.AdaptiveMaxPool2d(2), nn.Linear(20, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(self.circular(self.same((x - self.mean) / 0.5)))
            return self.fc(self.pool(x).flatten(1))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        module, images = built(Awkward), random(2, 3, 9, 10)
        for layer in ("same", "circular", "up", "pool", "fc"):
            readout, expected = Readout(Network(module), layer, window=False), full_map(module, layer, images)
            assert relative_error(readout(images), expected) < 1e-12  # type: ignore[arg-type]
            for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
                assert relative_error(readout(images, dtype=dtype), expected) < tolerance  # type: ignore[arg-type]


def test_layers_after_the_last_one_wanted_do_not_run() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(1000, 2))  # the last fits no image
    images = torch.ones(1, 3, 8, 8)
    with pytest.raises(RuntimeError):
        module(images)
    assert Readout(Network(module), "1", window=False)(images).shape == (1, 4, 6, 6)  # type: ignore[union-attr]


# --- copies, number types -------------------------------------------------------------------------------


def _iadd(x: Tensor) -> Tensor:
    x += 1
    return x


def _isub(x: Tensor) -> Tensor:
    x -= 1
    return x


def _imul(x: Tensor) -> Tensor:
    x *= 2
    return x


IN_PLACE = {
    "nn.ReLU": nn.ReLU(inplace=True),
    "nn.Hardtanh": nn.Hardtanh(inplace=True),
    "F.relu_": F.relu_,
    "torch.relu_": torch.relu_,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.1),
    "F.elu_": F.elu_,
    "torch.sigmoid_": torch.sigmoid_,
    "+=": _iadd,
    "-=": _isub,
    "*=": _imul,
    ".relu_": lambda x: x.relu_(),
    ".add_": lambda x: x.add_(1),
    ".sub_": lambda x: x.sub_(1),
    ".mul_": lambda x: x.mul_(2),
    ".clamp_": lambda x: x.clamp_(-0.1, 0.1),
    ".exp_": lambda x: x.exp_(),
}


class Changed(nn.Module):
    """A layer whose output (and the image) is changed by what follows."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.a, self.change, self.b = nn.Conv2d(3, 4, 3), change, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.change(self.a(self.change(x))))


@pytest.mark.parametrize("operation", IN_PLACE)
def test_in_place_operations_change_neither_what_was_read_nor_the_images(operation: str) -> None:
    module, images = built(lambda: Changed(IN_PLACE[operation])), random(2, 3, 6, 6)
    before = images.clone()
    a, b = Readout(Network(module), ["a", "b"], window=False)(images)
    assert torch.equal(images, before)
    assert relative_error(a, full_map(module, "a", before.clone())) < 1e-12
    assert relative_error(b, full_map(module, "b", before.clone())) < 1e-12
    images.requires_grad_()  # a leaf: in-place changes of it would raise
    b = Readout(Network(module), "b", window=False)(images)
    assert torch.autograd.grad(b.sum(), images)[0].abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("operation", ["nn.ReLU", "F.relu_", ".relu_", "+=", "*="])
def test_in_place_operations_do_not_change_what_a_window_read(operation: str) -> None:
    module, images = built(lambda: Changed(IN_PLACE[operation])), random(2, 3, 3, 3)
    b, a = Readout(Network(module), ["b", "a"])(images)
    assert relative_error(a, full_map(module, "a", images.clone())) < 1e-12
    assert relative_error(b, full_map(module, "b", images.clone())[..., 0, 0]) < 1e-12


@pytest.mark.parametrize("name", sorted(TOYS.keys() - {"chain"}))  # torch has no LocalResponseNorm in bfloat16
@pytest.mark.parametrize("window", [True, False])
def test_bfloat16_is_close_to_float32_and_really_narrow(name: str, window: bool) -> None:
    readout = Readout(Network(toy(name)), list(TOYS[name][1:2]), window=window)
    images = random(4, 3, *(readout.image_size if window else (40, 40))).float()
    (exact,), (narrow,) = readout(images), readout(images, dtype=torch.bfloat16)
    assert exact.dtype == narrow.dtype == torch.float32
    assert 1e-5 < relative_error(narrow, exact) < 5e-2
    units = torch.tensor([0, 1, 2, 0])
    (own,) = readout(images, units, dtype=torch.bfloat16)
    assert own.dtype == torch.float32
    assert 1e-6 < relative_error(own, exact[torch.arange(4), units]) < 5e-2


def test_autocast_does_not_reach_inside() -> None:
    readout = Readout(Network(toy("chain")), "7")
    images = random(2, 3, *readout.image_size).float()
    plain = readout(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(readout(images), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [None, torch.zeros(0, dtype=torch.long)])
@pytest.mark.parametrize("layer", ["conv1_1", "relu1_1"])
def test_an_empty_batch(units: Tensor | None, layer: str) -> None:
    value = Readout(Network(vgg19(last="conv1_1")), layer)(torch.zeros(0, 3, 3, 3), units)
    assert value.shape == ((0, 64) if units is None else (0,))  # type: ignore[union-attr]


def test_images_in_a_batch_do_not_touch_each_other() -> None:
    readout = Readout(Network(toy("residual")), "relu")
    images = random(3, 3, *readout.image_size)
    together = readout(images)
    alone = torch.cat([readout(image[None]) for image in images])  # type: ignore[misc]
    assert relative_error(together, alone) < 1e-12  # type: ignore[arg-type]


# --- the module is left as it was -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("window", [True, False])
def test_the_module_is_left_as_it_was(name: str, window: bool) -> None:
    module = built(TOYS[name][0])
    for i, part in enumerate(module.modules()):
        part.train(i % 3 != 0)  # a mixture of modes, and of flags, to be put back one by one
    for i, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    module.get_submodule(TOYS[name][1].removesuffix("_1")).register_forward_hook(lambda *_: None)
    before = snapshot(module)
    readout = Readout(Network(module), TOYS[name][1], window=window)
    assert snapshot(module) == before
    images = random(2, 3, *(readout.image_size if window else (40, 40))).requires_grad_()
    readout(images).sum().backward()  # type: ignore[union-attr]
    assert images.grad is not None
    assert snapshot(module) == before


def test_snapshots_see_what_they_are_for() -> None:
    """The oracle itself: each of these is a change that a readout must not make."""
    changes: list[Any] = [
        lambda m: m[0].weight.data.add_(1e-7),
        lambda m: m[1].running_mean.add_(1e-7),
        lambda m: m[1].eval(),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: m[1].register_forward_hook(lambda *_: None),
        lambda m: m[1].register_forward_pre_hook(lambda *_: None),
        lambda m: setattr(m[2], "inplace", False),
        lambda m: m(torch.ones(2, 3, 4, 4)).sum().backward(),
    ]
    for change in changes:
        module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True)).train()
        before = snapshot(module)
        assert snapshot(module) == before
        change(module)
        assert snapshot(module) != before


@pytest.mark.parametrize("window", [True, False])
def test_batch_norm_in_training_mode_is_read_in_evaluation_mode(window: bool) -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))).train()
    images = random(4, 3, 3, 3)
    before = snapshot(module)
    value = Readout(Network(module), "2", window=window)(images)
    assert snapshot(module) == before
    expected = full_map(module, "2", images)
    assert relative_error(value.reshape(expected.shape), expected) < 1e-12  # type: ignore[union-attr]


def test_hooks_of_the_module_do_not_run_and_weights_are_not_referred_to() -> None:
    module, calls = built(TOYS["chain"][0]), []
    for part in module:  # type: ignore[attr-defined]
        part.register_forward_hook(lambda *_: calls.append(1))
    readout = Readout(Network(module), "7")
    images = random(1, 3, *readout.image_size)
    first = readout(images)
    for parameter in module.parameters():
        parameter.data.zero_()
    assert torch.equal(readout(images), first)  # type: ignore[arg-type]
    assert not calls


# --- modules that can't be traced -----------------------------------------------------------------------


class MustNotRun(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a layer after the last one wanted has run")


class Moody(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.b, self.late, self.unused = nn.Conv2d(4, 5, 3), MustNotRun(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x if x.sum() > 0 else -x))
        return self.late(self.b(self.relu(x)))

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``norm`` and ``b`` by direct calls."""
        norm = self.norm(self.a(x if x.sum() > 0 else -x))
        return norm.clone(), self.b(norm.relu())


def test_an_untraceable_module_is_read_with_hooks_and_left_as_it_was() -> None:
    module = built(Moody)
    images = random(2, 3, 6, 7).requires_grad_()
    expected_norm, expected_b = module.plain(images)  # type: ignore[operator]
    (expected,) = torch.autograd.grad(expected_b.sum(), images)
    module.train()
    module.relu.eval()  # type: ignore[union-attr]
    before = snapshot(module)
    with pytest.warns(UserWarning, match=r"torch\.fx cannot trace 'Moody'.*with hooks") as caught:
        readout = Readout(Network(module), ["b", "norm"], window=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for _ in range(2):  # no warning any more: it would be an error here
        b, norm = readout(images)
        assert relative_error(b, expected_b) < 1e-12
        assert relative_error(norm, expected_norm) < 1e-12
    (gradient,) = torch.autograd.grad(b.sum(), images)
    assert relative_error(gradient, expected) < 1e-12
    assert torch.equal(readout(images, torch.tensor([3, 1]))[0], b[[0, 1], [3, 1]])
    assert snapshot(module) == before


def test_an_untraceable_module_that_fails_is_left_as_it_was() -> None:
    module = built(Moody).train()
    before = snapshot(module)
    with pytest.warns(UserWarning, match="hooks"):
        readout = Readout(Network(module), "b", window=False)
    with pytest.raises(RuntimeError, match="channels"):
        readout(random(1, 2, 6, 6))
    assert snapshot(module) == before


def test_an_untraceable_module_has_no_window() -> None:
    with pytest.raises(FvlightError, match=r"no windowed readout of layer 'b'.*cannot trace 'Moody'.*window=False"):
        Readout(Network(Moody()), "b")


def test_a_layer_that_is_never_called_is_an_error() -> None:
    module = built(Moody)
    module.late = nn.Identity()
    with pytest.warns(UserWarning, match="hooks"):
        readout = Readout(Network(module), "unused", window=False)
    with pytest.raises(FvlightError, match=r"layer 'unused'.*not called"):
        readout(random(1, 3, 6, 6))


def test_inputs_beside_the_images_have_their_defaults() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, scale: float = 3.0, mask: Tensor | None = None) -> Tensor:
            return self.conv(x * scale if mask is None else x * mask)

    module, images = built(Scaled), random(1, 3, 3, 3)
    for window in (True, False):
        value = Readout(Network(module), "conv", window=window)(images)
        assert relative_error(value.reshape(1, 4, 1, 1), module(images)) < 1e-12  # type: ignore[union-attr]


def test_an_in_place_operation_whose_input_is_read_again_is_not_silently_wrong() -> None:
    """`identity` is changed by the ReLU in the module; copies would give the unchanged one."""

    class Identity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.b = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
            self.out = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            identity = self.a(x)
            return self.out(self.b(self.relu(identity)) + identity)

    module, images = built(Identity), random(2, 3, 5, 5)
    with pytest.warns(UserWarning, match=r"'relu'.*in place"):
        readout = Readout(Network(module), "out", window=False)
    assert relative_error(readout(images), full_map(module, "out", images)) < 1e-12  # type: ignore[arg-type]
    with pytest.raises(FvlightError, match=r"'relu'.*in place"):
        Readout(Network(module), "out")
    assert Readout(Network(module), "b")(images[..., :3, :3]).shape == (2, 4)  # type: ignore[union-attr]


class Gated(nn.Module):
    """Squeeze-and-excite: one number per channel, from all positions, weighs the map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.b = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))))


def test_a_unit_that_sees_the_whole_image_is_the_middle_of_its_map() -> None:
    module, images = built(Gated), random(3, 3, 8, 10)
    readout = Readout(Network(module, image_size=(8, 10)), ["b", "a"])
    assert readout.field is not None
    assert readout.field.whole_image
    units = torch.tensor([3, 0, 2])
    every, earlier = readout(images)
    assert relative_error(every, module(images)[:, :, 4, 5]) < 1e-12
    assert relative_error(earlier, full_map(module, "a", images)) < 1e-12
    assert torch.equal(readout(images, units)[0], every[[0, 1, 2], units])
    with pytest.raises(FvlightError, match=r"\(8, 9\) pixels for layer 'b': its units see \(8, 10\)"):
        readout(images[..., 1:])
    assert Readout(Network(module), "a").image_size == (3, 3)  # before the gate nothing has changed


def test_tokens_are_averaged() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm = nn.Conv2d(3, 5, 4, stride=4), nn.LayerNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.patch(x).flatten(2).transpose(1, 2))

    module, images = built(Tokens), random(2, 3, 8, 8)
    network = Network(module, image_size=(8, 8), fixed_size=True)
    value = Readout(network, "norm")(images)
    assert isinstance(value, Tensor)
    assert relative_error(value, module(images).mean(1)) < 1e-12
    with pytest.raises(FvlightError, match=r"\(8, 12\) pixels for 'Tokens': it takes \(8, 8\)"):
        Readout(network, "norm", window=False)(random(1, 3, 8, 12))


def test_padding_slices_and_functional_convolutions_in_a_window() -> None:
    """An option-A shortcut and a convolution whose weights are computed from parameters (weight standardisation)."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 8, 3, 2, 1, padding_mode="reflect")
            self.weight, self.end = nn.Parameter(torch.randn(5, 8, 3, 3)), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            functional = torch.nn.functional
            x = torch.relu(self.a(x))
            x = self.b(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
            weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
            return self.end(functional.conv2d(functional.pad(x, (1, 1, 1, 1)), weight, None, 1, (1, 0)))

    module = built(Shortcut)
    network = Network(module)
    readout = Readout(network, "end")
    field = readout.field
    assert field is not None
    row, column = interior_unit(24, field)
    rows, columns = windows(field.size, field.stride, field.offset, (row, column))
    images = random(2, 3, 24, 24)
    value = readout(images[..., slice(*rows), slice(*columns)])
    assert isinstance(value, Tensor)
    assert relative_error(value, module(images)[:, :, row, column]) < 1e-12
    full = Readout(network, "end", window=False)(images)
    assert isinstance(full, Tensor)
    assert relative_error(full, module(images)) < 1e-12


def test_hooks_read_the_call_that_is_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.pair = nn.ReLU(), Pairs()

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                return x
            x = self.relu(x) - 0.5
            return self.pair(self.relu(x))[0]

    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    module, images = Twice(), random(1, 3, 4, 4)
    with pytest.warns(UserWarning, match="hooks"):
        both = Readout(Network(module), ["relu", "relu_1"], window=False)(images)
    assert torch.equal(both[0], images.relu())
    assert torch.equal(both[1], (images.relu() - 0.5).relu())
    with pytest.warns(UserWarning, match="hooks"):
        readout = Readout(Network(module), "pair", window=False)
    with pytest.raises(FvlightError, match=r"'pair' gives a tuple, not a tensor"):
        readout(images)


def test_an_operator_in_place_on_what_is_read_again_goes_to_the_module() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(3, 4, 3), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = identity = self.a(x)
            x += 1
            return self.out(x + identity)

    module, images = built(Added), random(1, 3, 5, 5)
    with pytest.warns(UserWarning, match=r"in place"):
        value = Readout(Network(module), "out", window=False)(images)
    assert relative_error(value, module(images)) < 1e-12  # type: ignore[arg-type]


# --- transformers ---------------------------------------------------------------------------------------


def torchvision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=4)


def timm_transformer(**options: Any) -> nn.Module:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    return timm.models.VisionTransformer(**{**size, **options})


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "torchvision": (torchvision_transformer, "encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_0.mlp"),
    "timm": (timm_transformer, "blocks.1", "blocks.0.attn"),
    "timm, no class token": (lambda: timm_transformer(class_token=False, global_pool="avg"), "blocks.1.mlp", "norm"),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("which", [1, 2])
def test_a_unit_of_a_transformer_is_a_channel_at_a_token_or_on_average(name: str, which: int) -> None:
    build, layer = TRANSFORMERS[name][0], TRANSFORMERS[name][which]
    module, images = built(build), random(3, 3, 32, 32)
    network = Network(module, image_size=(32, 32), fixed_size=True)
    tokens = full_map(module, layer, images)
    assert tokens.shape[1:] == (16 + ("no class" not in name), 16)
    for position, expected in {None: tokens.mean(1), "mean": tokens.mean(1), 0: tokens[:, 0], 5: tokens[:, 5]}.items():
        readout = Readout(network, layer, position=position)  # type: ignore[arg-type]
        assert readout.field == receptive_field(network, layer) == ReceptiveField((32, 32), (0, 0), (0, 0), True)
        assert relative_error(readout(images), expected) < 1e-12  # type: ignore[arg-type]
        picked = readout(images, torch.tensor([3, 0, 7]))
        assert relative_error(picked, expected[torch.arange(3), torch.tensor([3, 0, 7])]) < 1e-12  # type: ignore[arg-type]
    full = Readout(network, layer, window=False)(images)
    assert relative_error(full, tokens) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_gradient_of_a_token_reaches_the_whole_image(name: str) -> None:
    build, layer, _ = TRANSFORMERS[name]
    network = Network(built(build), image_size=(32, 32), fixed_size=True)
    images = random(1, 3, 32, 32).requires_grad_()
    value = Readout(network, layer, position=3)(images, torch.tensor([2]))
    (gradient,) = torch.autograd.grad(value.sum(), images)  # type: ignore[union-attr]
    assert bool((gradient != 0).all())


def test_the_wrong_size_or_token_is_an_error_that_says_the_right_one() -> None:
    network = Network(built(timm_transformer), name="small", image_size=(32, 32), fixed_size=True)
    with pytest.raises(FvlightError, match=r"\(40, 32\) pixels for 'small': it takes \(32, 32\) and no other size"):
        Readout(network, "blocks.1")(random(1, 3, 40, 32))
    with pytest.raises(FvlightError, match=r"\(40, 40\) pixels for 'small': it takes \(32, 32\) and no other size"):
        Readout(network, "blocks.1", image_size=(40, 40))
    with pytest.raises(FvlightError, match=r"position=17 in layer 'blocks\.1' of 'small': it has tokens 0 to 16"):
        Readout(network, "blocks.1", position=17)(random(1, 3, 32, 32))
    with pytest.raises(FvlightError, match=r"position='center' in layer 'blocks\.1'.*tokens 0 to 16"):
        Readout(network, "blocks.1", position="center")(random(1, 3, 32, 32))
    with pytest.raises(FvlightError, match=r"position=0: the units of layer 'patch_embed\.proj' see windows of \(8, "):
        Readout(network, "patch_embed.proj", position=0)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_positions_in_the_maps_of_a_swin_transformer(library: str) -> None:
    """Its maps are (N, height, width, channels): torchvision's graph tells; timm flattens them on the way."""

    def build() -> nn.Module:
        if library == "timm":
            return timm.models.SwinTransformer(32, 2, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4)
        return torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4])

    layer = "layers.0" if library == "timm" else "features.1"
    module, images = built(build), random(2, 3, 32, 32)
    maps = full_map(module, layer, images).movedim(-1, 1)
    assert maps.shape == (2, 8, 16, 16)
    positions = {None: maps[:, :, 8, 8], "mean": maps.mean((2, 3)), (0, -1): maps[:, :, 0, -1]}
    network = Network(module, image_size=(32, 32), channels_last=library == "timm")
    for position, expected in positions.items():
        value = Readout(network, layer, position=position)(images)  # type: ignore[arg-type]
        assert relative_error(value, expected) < 1e-12  # type: ignore[arg-type]
    with pytest.raises(FvlightError, match=r"position=\(16, 0\).*a map of 16 x 16 positions"):
        Readout(network, layer, position=(16, 0))(images)


def test_a_positional_embedding_makes_units_differ() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.out = nn.Conv2d(3, 8, 4, 4), nn.Identity()
            self.embedding = nn.Parameter(torch.randn(1, 8, 7, 7))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.patch(x) + self.embedding)

    module, images = built(Embedded), random(2, 3, 28, 28)
    network = Network(module, image_size=(28, 28), fixed_size=True)
    readout = Readout(network, "out", position=(1, 2))
    assert readout.field is not None
    assert readout.field.whole_image
    assert "'embedding', which differs from position to position" in readout.field.reason
    assert relative_error(readout(images), module(images)[:, :, 1, 2]) < 1e-12  # type: ignore[arg-type]
    # What lies before has windows, also in a network that takes images of one size only.
    patch = Readout(network, "patch")(images[..., 4:8, 8:12])
    assert relative_error(patch, module.patch(images)[:, :, 1, 2]) < 1e-12  # type: ignore[arg-type, operator]


# --- layouts, sizes -------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Channels last for norm and product, split and shuffled channels, groups: ConvNeXt, ShuffleNet, Res2Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 2, 1), nn.LayerNorm(8)
        self.depth, self.product = nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.grouped, self.end = nn.Conv2d(2, 2, 3, 2, 1), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.product(self.depth(x).permute(0, 2, 3, 1)) * self.scale
        x = x + y.permute(0, 3, 1, 2)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([self.left(left), F.gelu(self.right(right)) + left], 1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w)
        groups = x.reshape(b * 4, c // 4, h, w)
        groups = self.grouped(groups)
        return self.end(groups.view(b, c, *groups.shape[2:]))


def test_layouts_are_followed_in_windows() -> None:
    module = built(Blocks)
    readout = Readout(Network(module), "end")
    images, unit, place = large_and_window(readout)
    expected = module(images)[:, :, unit[0], unit[1]]
    value = readout(images[(..., *place)])
    assert isinstance(value, Tensor)
    assert relative_error(value, expected) < 1e-12
    full = Readout(Network(module), "end", window=False)(images)
    assert relative_error(full, module(images)) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["norm", "product"])
def test_a_layer_whose_channels_stand_last(layer: str) -> None:
    module = built(Blocks)
    readout = Readout(Network(module), layer)
    images, unit, place = large_and_window(readout)
    expected = full_map(module, layer, images)[:, unit[0], unit[1]]
    crop = images[(..., *place)]
    assert relative_error(readout(crop), expected) < 1e-12  # type: ignore[arg-type]
    picked = readout(crop, torch.tensor([1, 6]))
    assert relative_error(picked, expected[[0, 1], [1, 6]]) < 1e-12  # type: ignore[arg-type]
    assert readout(crop[:0]).shape == (0, 8)  # type: ignore[union-attr]


def test_space_to_depth_has_windows() -> None:
    """As in TResNet: blocks of 4 × 2 pixels become channels."""

    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = self.before(x).size()
            x = self.before(x).view(n, c, h // 4, 4, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
            return self.after(x.view(n, c * 8, h // 4, w // 2))

    module, images = built(Blocked), random(2, 3, 32, 32)
    readout = Readout(Network(module), "after")
    assert readout.field == ReceptiveField((14, 8), (4, 2), (-5, -3))
    value = readout(images[..., 3:17, 9:17])  # unit (2, 6)
    assert relative_error(value, module(images)[:, :, 2, 6]) < 1e-12  # type: ignore[arg-type]


def test_decisions_by_size_are_taken_anew_for_another_size() -> None:
    """TensorFlow's "same" padding: as much as the size leaves over, and none where nothing is."""

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            height, width = (max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in x.shape[-2:])
            if height > 0 or width > 0:
                x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
            return self.conv(x) + (0.5 if x.shape[2] > 20 else 0.0)

    module = built(Same)
    readout = Readout(Network(module, image_size=(16, 16)), "conv", window=False)
    for size in ((16, 16), (15, 16), (33, 31), (16, 16)):
        images = random(2, 3, *size)
        assert relative_error(readout(images), full_map(module, "conv", images)) < 1e-12  # type: ignore[arg-type]
    assert receptive_field(Network(module, image_size=(16, 16)), "conv").offset == (0, 0)
    assert receptive_field(Network(module, image_size=(15, 15)), "conv").offset == (-1, -1)


def test_the_size_of_the_image_can_be_given() -> None:
    """A unit is then the middle of the padded network's map, whatever its window."""
    module, images = built(Blocks), random(2, 3, 20, 24)
    readout = Readout(Network(module), "end", image_size=(20, 24))
    assert readout.image_size == (20, 24)
    assert relative_error(readout(images), module(images)[:, :, 2, 3]) < 1e-12  # type: ignore[arg-type]
    assert relative_error(readout(images, torch.tensor([1, 7])), module(images)[[0, 1], [1, 7], 2, 3]) < 1e-12  # type: ignore[arg-type]


def test_what_can_not_be_traced_is_read_from_whole_images_and_said_once() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.abs() if x.sum() > 0 else x)

    module, images = built(Moody), random(2, 3, 9, 9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        readout = Readout(Network(module, image_size=(9, 9)), "conv")
        value = readout(images)
        readout(images)
    assert [str(warning.message) for warning in caught] == [
        "torch.fx cannot trace 'Moody': symbolically traced variables cannot be used as inputs to control flow; "
        "reading ['conv'] with hooks instead"
    ]
    assert relative_error(value, full_map(module, "conv", images)[:, :, 3, 3]) < 1e-12  # type: ignore[arg-type]
