"""Relevance propagation through whole networks: against gradient × input, folded networks, and its own sums."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fvlight.attribution.composites import COMPOSITES
from fvlight.attribution.lrp import lrp, relevance
from fvlight.attribution.relevance_rules import Box, Epsilon, WSquare
from fvlight.attribution.units import unit_values
from fvlight.errors import FvlightError
from fvlight.images import list_images, read_image
from fvlight.network import InputSpace, Network
from fvlight.zoo import load_network
from tests.helpers import Branches, Residual, built, full_map, relative_error, snapshot

CONSERVING = [name for name in COMPOSITES if name != "feature_vis"]


def photos(count: int = 2, size: int = 20, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Dense(nn.Module):
    """Batch norms behind concatenations, as in DenseNet, in all manners of ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(2))
        self.fc = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.convs[0](F.relu(self.norms[0](x)))], 1)
        x = torch.cat([x, self.convs[1](self.norms[1](x).relu_())], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.norms[2](x), inplace=True), 1)
        return self.fc(F.dropout(torch.flatten(x, 1), training=self.training))


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "vgg": (vgg, None), "residual": (Residual, "relu_1"), "inception": (Branches, None), "dense": (Dense, None),
}  # fmt: skip


def without_biases(module: nn.Module) -> nn.Module:
    """The same network, y = 0 at x = 0."""
    module = copy.deepcopy(module)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.rpartition(".")[2] in ("bias", "running_mean"):
            value.data.zero_()
    return module


def times_input(module: nn.Module, images: Tensor, layer: str | None, unit: int, first_call: bool = False) -> Tensor:
    """Gradient × input, of torch alone."""
    images = images.clone().requires_grad_()
    maps = module(images) if layer is None else full_map(module, layer, images, first_call)
    (gradient,) = torch.autograd.grad(unit_values(maps, unit).sum(), images)
    return gradient * images.detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_0_is_gradient_times_input(name: str) -> None:
    """True of networks of affine operations, ReLUs and max pooling, biases or not [Ancona et al. 2018]."""
    module, layer = built(NETWORKS[name][0]), NETWORKS[name][1]
    images = photos()
    found = relevance(module, images, layer, 0, composite="lrp_0")
    expected = times_input(module, images, layer, 0)
    assert relative_error(found.maps, expected) < 1e-9
    # and so what biases absorb is all the rest
    torch.testing.assert_close(found.absorbed_by_bias, found.start - expected.flatten(1).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("composite", CONSERVING)
@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_conserved(name: str, composite: str) -> None:
    module, layer = built(NETWORKS[name][0]), NETWORKS[name][1]
    found = relevance(module, photos(), layer, 0, composite=composite)
    plain = unit_values(module(photos()) if layer is None else full_map(module, layer, photos()), 0)
    torch.testing.assert_close(found.start, plain, rtol=1e-12, atol=1e-12)
    exact = "epsilon" not in composite
    assert found.error.max() < (1e-10 if exact else 1e-2)
    kept = found.total + found.absorbed_by_bias + found.absorbed_by_epsilon
    torch.testing.assert_close(kept, found.start, rtol=1e-9, atol=1e-12)
    assert bool(found.absorbed_by_epsilon.any()) != exact or composite.startswith("epsilon_")
    bare = relevance(without_biases(module), photos(), layer, 0, composite=composite)
    assert not bare.absorbed_by_bias.any()
    torch.testing.assert_close(bare.total + bare.absorbed_by_epsilon, bare.start, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_0_and_a_small_epsilon_conserve_without_biases(name: str) -> None:
    module, layer = without_biases(built(NETWORKS[name][0])), NETWORKS[name][1]
    assert relevance(module, photos(), layer, 0, composite="lrp_0").error.max() < 1e-6
    errors = [relevance(module, photos(), layer, 0, composite="epsilon", epsilon=e).error for e in (1e-10, 1e-12)]
    assert errors[0].max() < 1e-6
    assert bool((errors[1] < errors[0]).all())


def folded(module: nn.Module) -> nn.Module:
    """The `vgg` without its batch norms, which torch's own functions fold."""
    parts = list(copy.deepcopy(module).children())
    parts[0] = torch.nn.utils.fuse_conv_bn_eval(parts[0], parts[1])
    parts[8] = torch.nn.utils.fuse_linear_bn_eval(parts[8], parts[9])
    parts[1] = parts[9] = nn.Identity()
    return nn.Sequential(*parts)


@pytest.mark.parametrize("composite", CONSERVING)
def test_batch_norms_are_folded_into_what_is_before_them(composite: str) -> None:
    module = built(vgg)
    found, expected = (relevance(m, photos(), composite=composite) for m in (module, folded(module)))
    assert relative_error(found.maps, expected.maps) < 1e-9
    torch.testing.assert_close(found.absorbed_by_bias, expected.absorbed_by_bias)


def test_a_batch_norm_behind_a_transposed_convolution() -> None:
    """As many channels go in as come out, but the weight's first axis is the input's."""
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)))
    found = relevance(module, photos(), None, 2, composite="lrp_0")
    assert relative_error(found.maps, times_input(module, photos(), None, 2)) < 1e-9
    torch.testing.assert_close(found.start, module(photos())[:, 2].mean((1, 2)))


def test_a_batch_norm_behind_nothing_foldable_is_a_depthwise_convolution() -> None:
    norm = nn.BatchNorm2d(3)
    depthwise = nn.Conv2d(3, 3, 1, groups=3)
    tail = [nn.ReLU(), nn.Conv2d(3, 4, 3)]
    module = built(lambda: nn.Sequential(norm, *tail))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    depthwise.weight.data = scale.data.reshape(3, 1, 1, 1)
    depthwise.bias.data = (norm.bias - norm.running_mean * scale).data  # type: ignore[union-attr]
    found = relevance(module, photos(), composite="epsilon_plus")
    expected = relevance(nn.Sequential(depthwise, *tail), photos(), composite="epsilon_plus")
    assert relative_error(found.maps, expected.maps) < 1e-9


def test_a_convolution_that_was_changed_in_place_is_not_folded() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x += 0.5
            return self.norm(x)

    module = built(Shifted)
    assert relative_error(
        relevance(module, photos(), None, 2, composite="lrp_0").maps, times_input(module, photos(), None, 2)
    ) < 1e-9  # fmt: skip


class Sum(nn.Module):
    """a + b, as it may be written; ``how="convolution"``: by ones and zeros over the two concatenated."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.how == "convolution":
            eye = torch.eye(4, dtype=x.dtype)
            return F.conv2d(torch.cat([a, b], 1), torch.cat([eye, eye], 1)[:, :, None, None])
        if self.how == "function":
            return torch.add(a, b)
        if self.how == "method":
            return a.add_(b)
        if self.how == "difference":
            return a - (-b)
        if self.how == "in place":
            a += b
            return a
        return a + b


@pytest.mark.parametrize("composite", CONSERVING[:3])
@pytest.mark.parametrize("how", ["operator", "function", "method", "in place", "difference"])
def test_sums(how: str, composite: str) -> None:
    expected = relevance(built(lambda: Sum("convolution")), photos(), None, 3, composite=composite)
    found = relevance(built(lambda: Sum(how)), photos(), None, 3, composite=composite)
    assert relative_error(found.maps, expected.maps) < 1e-9
    torch.testing.assert_close(found.start, expected.start)


def test_constants_that_are_added_are_biases() -> None:
    class Apart(nn.Module):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.conv.weight)
            y += self.conv.bias.reshape(-1, 1, 1)  # type: ignore[union-attr]
            return 2 * y.relu()

    conv = built(lambda: nn.Conv2d(3, 4, 3))
    rules = {"conv": Epsilon(0.0), "linear": Epsilon(0.0), "sum": Epsilon(0.0)}
    found = relevance(Apart(conv), photos(), None, 1, composite=rules)
    expected = relevance(nn.Sequential(conv, nn.ReLU()), photos(), None, 1, composite=rules)
    assert relative_error(found.maps, 2 * expected.maps) < 1e-9
    torch.testing.assert_close(found.absorbed_by_bias, 2 * expected.absorbed_by_bias)


class Rectified(nn.Module):
    """The same network with its ReLU written in several ways."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.relu, self.a, self.b = relu, nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu, "in place": lambda x: F.relu(x, inplace=True), "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(), "clamp": lambda x: x.clamp(min=0), "clamp_": lambda x: x.clamp_(min=0),
    "module": nn.ReLU(inplace=True),
}  # fmt: skip


@pytest.mark.parametrize("name", RELUS)
def test_relus_however_they_are_written(name: str) -> None:
    expected = lrp(built(lambda: Rectified(torch.relu)), photos(), None, 0)
    found = lrp(built(lambda: Rectified(RELUS[name])), photos(), None, 0)
    assert relative_error(found, expected) < 1e-12


def test_elementwise_functions_and_local_responses_pass_relevance() -> None:
    module = built(lambda: Rectified(lambda x: F.local_response_norm(F.silu(x), 3)))
    found = relevance(module, photos(), None, 0, composite="lrp_0")
    a, b = module.a(photos()), None
    passed = F.local_response_norm(F.silu(a), 3) / a  # y = x · c
    b = module.b(a * passed)
    y = F.local_response_norm(F.silu(b), 3)
    images = photos().requires_grad_()
    linear = module.b(module.a(images) * passed.detach()) * (y / b).detach()
    (gradient,) = torch.autograd.grad(linear[:, 0].mean((1, 2)).sum(), images)
    assert relative_error(found.maps, gradient * photos()) < 1e-9


def test_feature_vis_is_epsilon_at_convolutions_and_the_gradient_elsewhere() -> None:
    """[Gruen et al. 2016]: R_in = x · conv^T(R / (z + 0.001 sign z)), the start is the unit's activation."""
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3)))
    images = photos(2, 12).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that biases absorb more than there is
        found = lrp(module, images.detach(), None, 2, composite="feature_vis", bound=None, position=(1, 2))
    z1 = module[0](images)
    x2 = module[2](module[1](z1))
    z2 = module[3](x2)
    signal = torch.zeros_like(z2)
    signal[:, 2, 1, 2] = z2[:, 2, 1, 2]
    signal = signal.detach() / (z2 + 0.001 * z2.sign()).detach()
    (back,) = torch.autograd.grad(z2, x2, signal, retain_graph=True)
    (back,) = torch.autograd.grad(x2, z1, back * x2.detach(), retain_graph=True)
    (back,) = torch.autograd.grad(z1, images, back / (z1 + 0.001 * z1.sign()).detach())
    assert relative_error(found, back * images.detach()) < 1e-9


def test_the_box_is_black_to_white_in_the_networks_input_space() -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    space = InputSpace(scale=255.0, mean=(120.0, 110.0, 100.0), std=(2.0, 1.0, 1.0))
    images = space.from_rgb(photos())
    low, high = (space.from_rgb(torch.full((3, 1, 1), value).double()) for value in (0.0, 1.0))
    rules = {"conv": Epsilon(0.0), "linear": Epsilon(0.0), "first": Box(low, high)}
    found = lrp(Network(module, "net", space), images, None, 1, composite={**rules, "first": Box()})
    assert relative_error(found, lrp(module, images, None, 1, composite=rules)) < 1e-6
    assert bool((found >= -1e-9).all())  # pixels within the box have shares of one sign
    assert bool((lrp(module, images, None, 1, composite={**rules, "first": WSquare()}) >= 0).all())


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "alpha2_beta1"])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_are_explained_one_by_one(name: str, composite: str) -> None:
    module, layer = built(NETWORKS[name][0]), NETWORKS[name][1]
    images = photos(3) - 0.3 * torch.arange(3).reshape(3, 1, 1, 1)
    together = relevance(module, images, layer, [0, 2, 1], composite=composite)
    for i, unit in enumerate((0, 2, 1)):
        alone = relevance(module, images[i : i + 1], layer, unit, composite=composite)
        torch.testing.assert_close(together.maps[i], alone.maps[0], rtol=1e-9, atol=1e-12)
        for field in ("start", "total", "absorbed_by_bias", "absorbed_by_epsilon", "error"):
            torch.testing.assert_close(
                getattr(together, field)[i], getattr(alone, field)[0], rtol=1e-8, atol=1e-12, equal_nan=True
            )


def test_a_segmentations_pixel_and_a_negative_logit() -> None:
    module = built(lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")
    ))  # fmt: skip
    module[2].bias.data.fill_(-3.0)
    found = relevance(module, photos(), None, 1, position=(4, 5), composite="lrp_0")
    assert found.start.max() < 0
    images = photos().requires_grad_()
    (gradient,) = torch.autograd.grad(module(images)[:, 1, 4, 5].sum(), images)
    assert relative_error(found.maps, gradient * images.detach()) < 1e-9
    assert relevance(module, photos(), None, 1, position=(4, 5)).error.max() < 1e-9


# --- what is refused ------------------------------------------------------------------------------------


class Growing(nn.Module):
    """a + b near zero, one part of which is a bias: relevance grows by |a| / |a + b|."""

    def __init__(self, biased: bool = True) -> None:
        super().__init__()
        self.conv, self.biased = nn.Conv2d(3, 1, 1), biased
        self.conv.weight.data.fill_(1.0)
        self.conv.bias.data.fill_(-2.9)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_maps_that_do_not_conserve_are_withheld() -> None:
    module = Growing().double()
    images = torch.ones(2, 3, 4, 4, dtype=torch.float64)  # the unit's value is 0.1, that of the second image 6.1
    images[1] *= 3
    with pytest.warns(UserWarning, match=r"not conserved.*biases: 29.* on 1 of 2 images: no map for number 0"):
        maps = lrp(module, images, composite="lrp_0")
    assert bool(maps[0].isnan().all())
    torch.testing.assert_close(maps[1].sum(), torch.tensor(9.0).double())
    with pytest.raises(FvlightError, match=r"not conserved, relative error .* \(bound=0\.05\).*epsilon_plus"):
        lrp(module, images[:1], composite="lrp_0")
    # Without a bound it is given, and said.
    with pytest.warns(UserWarning, match="biases absorb up to 29 times"):
        torch.testing.assert_close(
            lrp(module, images[:1], composite="lrp_0", bound=None).sum(), torch.tensor(3.0).double()
        )


def test_the_bound_is_that_of_the_error() -> None:
    module = built(lambda: nn.Conv2d(3, 2, 3))
    module = without_biases(module)
    error = relevance(module, photos(1), None, 0, composite="epsilon", epsilon=0.05).error.item()
    assert 0.01 < error < 0.9
    lrp(module, photos(1), None, 0, composite="epsilon", epsilon=0.05, bound=error * 1.01)
    with pytest.raises(FvlightError, match=f"relative error {error:.3g}"):
        lrp(module, photos(1), None, 0, composite="epsilon", epsilon=0.05, bound=error * 0.99)


def test_silent_units_have_no_map() -> None:
    module = built(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()))
    images = photos()
    module[0].bias.data[0] = -module[0](images)[0, 0].max() - 1e-3 + module[0].bias.data[0]
    images[1] *= 0
    module[0].bias.data[1] = 1.0
    with pytest.warns(UserWarning, match="silent"):
        maps = lrp(module, images, None, [0, 1])
    assert bool(maps[0].isnan().all())
    assert bool(maps[1].isfinite().all())
    found = relevance(module, images, None, [0, 1])
    assert bool(found.error.isnan()[0])
    torch.testing.assert_close(found.absorbed_by_bias[1], torch.tensor(1.0).double())  # a black image has only biases


class Gate(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.conv(x))


class OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        (lambda x: x * x.mean((2, 3), keepdim=True), "no rule for the 'mul'"),
        (lambda x: x.reciprocal(), "no rule for the 'reciprocal'"),
        (lambda x: x.softmax(1), "no rule for the 'softmax'.*explain the layer in front of it"),
        (lambda x: torch.sigmoid(x), "no rule for the 'sigmoid'.*explain the layer in front of it"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "no rule for the 'native_layer_norm'"),
        (lambda x: F.hardtanh(x, 0.5, 1.0), "no rule for the 'hardtanh'"),
        (lambda x: torch.maximum(x, x.flip(1)), "no rule for the 'maximum'"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "bicubic"),
        (lambda x: OwnFunction.apply(x), "no rule for the 'own_function'"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch's own statistics"),
        (lambda x: F.conv2d(x, x[:1]), "weights that depend on the images"),
        (lambda x: x.transpose(0, 1).mean(3).transpose(0, 1), "told apart by image"),
        (lambda x: x.detach(), "does not depend on the pixels"),
    ],
)  # fmt: skip
def test_operations_without_a_rule(gate: Callable[[Tensor], Tensor], text: str) -> None:
    with pytest.raises(FvlightError, match=text):
        relevance(built(lambda: Gate(gate)), photos())


def test_no_operation_reads_the_pixels_themselves() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * 2 - 1)

    with pytest.raises(FvlightError, match="reads the images themselves"):
        lrp(built(Scaled), photos(), composite="epsilon_plus_box")
    network = Network(built(lambda: nn.Conv2d(3, 4, 3)), "cell", InputSpace(photographic=False))
    with pytest.raises(FvlightError, match="no range"):
        lrp(network, photos(), composite="epsilon_plus_box")


def test_the_network_is_left_as_it_was() -> None:
    module = built(Residual).train()
    before = snapshot(module)
    lrp(module, photos(), "relu_1", 0)
    with pytest.raises(FvlightError):
        lrp(module, photos(), "relu_1", 99)
    assert snapshot(module) == before
    with torch.inference_mode():
        inside = lrp(module, photos(), "relu_1", 0)
    torch.testing.assert_close(inside, lrp(module, photos(), "relu_1", 0))


# --- real networks --------------------------------------------------------------------------------------

REAL = [
    ("googlenet_bvlc", "googlenet_bvlc", None), ("googlenet_bvlc", "googlenet_bvlc", "inception4c"),
    ("squeezenet_v1_1", "squeezenet_v1_1", None), ("vgg19_normalised", "vgg19_normalised_to_conv3_4", "conv3_4"),
    ("resnet50_v1", "resnet50_keras_to_conv3", "conv3_4"), ("densenet_bc", "cifar10_densenet_bc_100_12", None),
    ("cifar_resnet56", "cifar10_resnet56", None),
]  # fmt: skip


def _trained(name: str, file: str, shared: Path) -> Network:
    weights = shared / "weights" / f"{file}.safetensors"
    if not weights.exists():
        pytest.skip(f"no weights at {weights}")
    return load_network(name, str(weights))


def _photographs(folder: Path, network: Network, count: int, size: int) -> Tensor:
    images = [read_image(path) for path in list_images(folder)[:: 390 // count][:count]]
    crops = [F.interpolate(image[None], size=(size, size), mode="area")[0] for image in images]
    return network.input_space.from_rgb(torch.stack(crops))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "layer"), REAL)
def test_epsilon_plus_conserves_on_real_networks(
    name: str, file: str, layer: str | None, shared: Path, photographs: Path
) -> None:
    network = _trained(name, file, shared)
    images = _photographs(photographs, network, 3, min(112, *(network.image_size or (112,))))
    for composite in ("epsilon_plus", "epsilon_plus_box"):
        found = relevance(network, images, layer, composite=composite)
        assert found.error.max() < 1e-4  # the demand is 0.05
        share = found.absorbed_by_bias / found.start
        assert bool(((share > 0) & (share < 1)).all())  # z⁺: never more than there is
        assert bool(found.presentable().isfinite().all())


@pytest.mark.slow
def test_epsilon_plus_conserves_on_a_whole_resnet50() -> None:
    module = built(lambda: torchvision.models.resnet50(weights=None, num_classes=10))
    found = relevance(module, photos(2, 64))
    assert found.error.max() < 1e-4
    torch.testing.assert_close(found.start, module(photos(2, 64)).max(1).values)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "layer"), REAL[2:])
def test_lrp_0_is_gradient_times_input_on_real_networks(
    name: str, file: str, layer: str | None, shared: Path, photographs: Path
) -> None:
    network = _trained(name, file, shared)
    network.module.double()
    images = _photographs(photographs, network, 2, min(80, *(network.image_size or (80,)))).double()
    found = relevance(network, images, layer, 3, composite="lrp_0")
    expected = times_input(network.module, images, layer and network.resolve(layer), 3, first_call=True)
    assert relative_error(found.maps, expected) < 1e-6
