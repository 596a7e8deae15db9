"""fvlight.graphs.frozen against plain torch autograd in float64, over all that the fast paths tell apart."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvlight.graphs.frozen import FEW_CHANNELS, Affine, FrozenConv2d, folded, unit_rows
from tests.helpers import relative_error

CPU, DOUBLE = torch.device("cpu"), torch.float64
KERNELS = [(1, 1), (3, 3), (5, 5), (3, 5)]
SIZES = [(12, 12), (13, 12), (12, 15), (13, 15)]
POOLS = {
    "2": nn.MaxPool2d(2),
    "3 by 2": nn.MaxPool2d(3, 2),
    "2 by 1": nn.MaxPool2d(2, 1),
    "3 by 2, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "3 by 2, padded": nn.MaxPool2d(3, 2, padding=1),
    "2, dilated": nn.MaxPool2d(2, 2, dilation=2),
}


def layer(inputs: int, kernel: tuple[int, int], seed: int = 0, outputs: int = 8, **options: int | bool) -> nn.Conv2d:
    """A convolution with random weights; nothing of the global random state is used."""
    conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, dtype=DOUBLE, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in conv.parameters():
        parameter.data.normal_(generator=generator)
    return conv


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def plain(x: Tensor, conv: nn.Conv2d, padding: tuple[int, int], relu: bool, pool: nn.MaxPool2d | None) -> Tensor:
    """What is claimed to be computed, operation by operation."""
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    y = y.relu() if relu else y
    return y if pool is None else pool(y)


def forward_and_gradient(function: nn.Module | FrozenConv2d, x: Tensor, seed: int = 2) -> tuple[Tensor, Tensor]:
    """The output, and the gradient with respect to x of its product with random numbers."""
    x = x.detach().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad((y * random(*y.shape, seed=seed).to(y)).sum(), x)
    return y.detach(), gradient


def check(
    conv: nn.Conv2d,
    size: tuple[int, int],
    padding: int = 0,
    *,
    relu: bool = False,
    pool: nn.MaxPool2d | None = None,
) -> None:
    frozen = FrozenConv2d(conv, (padding, padding), CPU, DOUBLE, relu=relu, pool=pool)
    x = random(2, conv.in_channels, *size)
    expected = forward_and_gradient(lambda x: plain(x, conv, (padding, padding), relu, pool), x)  # type: ignore[arg-type]
    for layout in (torch.contiguous_format, torch.channels_last):
        value, gradient = forward_and_gradient(frozen, x.contiguous(memory_format=layout))
        assert relative_error(value, expected[0]) < 1e-13
        assert relative_error(gradient, expected[1]) < 1e-13


@pytest.mark.parametrize("inputs", [1, 3, 4, 5])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_stride_one(inputs: int, kernel: tuple[int, int], padding: int) -> None:
    conv = layer(inputs, kernel)
    for size, relu in itertools.product(SIZES, (False, True)):
        check(conv, size, padding, relu=relu)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padding", [0, 1])
def test_many_channels(kernel: tuple[int, int], padding: int) -> None:
    for size in SIZES:
        check(layer(64, kernel, outputs=70), size, padding, relu=True)


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("inputs", [1, 3, 4, 5, 64])
def test_strides_and_dilations(stride: int, dilation: int, inputs: int) -> None:
    for kernel, size, padding in itertools.product(KERNELS, SIZES[::3], (0, 1, 2)):
        check(layer(inputs, kernel, stride=stride, dilation=dilation), size, padding, relu=padding == 1)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(7, 2, 3), (7, 2, 0), (11, 4, 2), (8, 8, 0), (3, 5, 1), (5, 3, 4)]
)
def test_first_layers(size: int, stride: int, padding: int) -> None:
    """Those of ResNets, GoogLeNet, AlexNet and transformers; a stride beyond the kernel; as much padding as may be."""
    conv = layer(3, (size, size), stride=stride)
    assert FrozenConv2d(conv, (padding, padding), CPU, DOUBLE).blocks is not None
    for height, width in ((16, 16), (17, 23), (24, 19)):
        check(conv, (height, width), padding)


def test_strides_that_differ_are_left_to_torch() -> None:
    conv = nn.utils.skip_init(nn.Conv2d, 3, 8, 3, stride=(1, 2), dtype=DOUBLE)
    conv.weight.data, conv.bias.data = random(8, 3, 3, 3), random(8)  # type: ignore[union-attr]
    assert FrozenConv2d(conv, (1, 1), CPU, DOUBLE).backward_weight is None
    check(conv, (12, 13), 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("inputs", "groups"), [(4, 2), (64, 2), (6, 2), (4, 4)])
def test_groups(inputs: int, groups: int, stride: int, padding: int) -> None:
    for kernel in KERNELS:
        check(layer(inputs, kernel, groups=groups, stride=stride), (13, 12), padding, relu=True)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("inputs", [3, 5])
@pytest.mark.parametrize("relu", [False, True])
def test_pooling_before_the_relu_equals_pooling_after_it(pool: str, inputs: int, relu: bool) -> None:
    for size, padding in itertools.product(SIZES, (0, 1)):
        check(layer(inputs, (3, 3)), size, padding, relu=relu, pool=POOLS[pool])


def affine(channels: int) -> Affine:
    return random(channels, seed=5), random(channels, seed=6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_an_affine_map_is_folded_in(inputs: int, stride: int, bias: bool) -> None:
    conv, (scale, shift) = layer(inputs, (3, 3), stride=stride, bias=bias), affine(8)
    frozen = FrozenConv2d(conv, (1, 1), CPU, DOUBLE, affine=(scale, shift), relu=True, pool=POOLS["3 by 2"])
    x = random(2, inputs, 12, 13)

    def unfolded(x: Tensor) -> Tensor:
        y = plain(x, conv, (1, 1), False, None)
        return POOLS["3 by 2"]((y * scale[:, None, None] + shift[:, None, None]).relu())

    for found, expected in zip(
        forward_and_gradient(frozen, x),
        forward_and_gradient(unfolded, x),  # type: ignore[arg-type]
        strict=True,
    ):
        assert relative_error(found, expected) < 1e-13


def test_folding_is_computed_in_float64_and_rounded_once() -> None:
    conv, (scale, shift) = layer(3, (3, 3)).float(), affine(8)
    weight, bias = folded(conv, (scale, shift))
    assert bias is not None
    assert weight.dtype == bias.dtype == DOUBLE
    assert torch.equal(weight, conv.weight.double() * scale[:, None, None, None])
    frozen = FrozenConv2d(conv, (1, 1), CPU, torch.float32, affine=(scale, shift))
    assert torch.equal(frozen.weight, weight.float())
    assert frozen.bias is not None
    assert torch.equal(frozen.bias, bias.float())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((1, 5), 1), ((3, 2), 2)])
def test_a_row_for_each_image(kernel: tuple[int, int], dilation: int, fold: bool, relu: bool) -> None:
    conv, (scale, shift) = layer(5, kernel, dilation=dilation), affine(8)
    rows = unit_rows(conv, CPU, (scale, shift) if fold else None, relu)
    assert rows is not None
    x, units = random(4, 5, *(dilation * (k - 1) + 1 for k in kernel), seed=4), torch.tensor([7, 0, 3, 5])
    every = plain(x, conv, (0, 0), False, None)[:, :, 0, 0]
    every = every * scale + shift if fold else every
    expected = (every.relu() if relu else every)[torch.arange(4), units]
    assert relative_error(rows(x, units, DOUBLE), expected) < 1e-13
    narrow = rows(x.bfloat16(), units, torch.float32)  # a window in bfloat16, read in the images' float32
    exact = rows(x.bfloat16().double(), units, DOUBLE)
    assert narrow.dtype == torch.float32
    assert relative_error(narrow, exact) < 1e-5


def test_no_rows_for_a_convolution_in_groups() -> None:
    assert unit_rows(layer(4, (3, 3), groups=2), CPU) is None


def test_without_bias() -> None:
    conv = layer(3, (3, 3), bias=False)
    assert conv.bias is None
    check(conv, (12, 13), 1, relu=True)


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (4, 3), (1, 1)])
def test_the_smallest_windows(size: tuple[int, int]) -> None:
    check(layer(3, (min(size[0], 3), min(size[1], 3))), size)


def test_both_backward_paths_are_taken_here() -> None:
    """The grid above covers them all: blocks of pixels, flipped weights, torch's own backward."""
    few, many = (
        FrozenConv2d(layer(FEW_CHANNELS, (3, 3)), (1, 1), CPU, DOUBLE),
        FrozenConv2d(layer(FEW_CHANNELS + 1, (3, 3)), (1, 1), CPU, DOUBLE),
    )
    assert few.backward_weight is not None
    assert many.backward_weight is not None
    assert few.blocks is not None
    assert many.blocks is None
    assert FrozenConv2d(layer(3, (1, 1)), (1, 1), CPU, DOUBLE).backward_weight is None


@pytest.mark.parametrize("inputs", [2, 5])
@pytest.mark.parametrize("pool", [None, nn.MaxPool2d(2)])
def test_gradcheck(inputs: int, pool: nn.MaxPool2d | None) -> None:
    frozen = FrozenConv2d(layer(inputs, (3, 3), outputs=3), (1, 1), CPU, DOUBLE, relu=True, pool=pool)
    x = random(1, inputs, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(frozen, (x,))


def test_a_second_derivative_is_refused_and_not_silently_zero() -> None:
    x = random(1, 3, 5, 5).requires_grad_()
    frozen = FrozenConv2d(layer(3, (3, 3)), (0, 0), CPU, DOUBLE, relu=True)
    (gradient,) = torch.autograd.grad(frozen(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_weights_are_copied_and_never_get_a_gradient() -> None:
    conv, x = layer(3, (3, 3)), random(1, 3, 6, 6)
    assert all(parameter.requires_grad for parameter in conv.parameters())
    frozen = FrozenConv2d(conv, (1, 1), CPU, torch.float32)  # another type: certainly a copy
    x32 = x.float().requires_grad_()
    frozen(x32).sum().backward()
    assert x32.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in conv.parameters())
    held = [value for value in vars(frozen).values() if isinstance(value, Tensor)]
    assert len(held) == 3
    assert not any(value.requires_grad for value in held)


def test_no_graph_is_kept_where_no_gradient_is_asked_for() -> None:
    assert not FrozenConv2d(layer(3, (3, 3)), (1, 1), CPU, DOUBLE)(random(1, 3, 6, 6)).requires_grad


def test_the_input_is_not_changed() -> None:
    x = random(2, 8, 6, 6)
    before = x.clone()
    frozen = FrozenConv2d(layer(8, (1, 1)), (0, 0), CPU, DOUBLE, relu=True, pool=nn.MaxPool2d(2))
    forward_and_gradient(frozen, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("inputs", [3, 16])
@pytest.mark.parametrize("pool", [None, nn.MaxPool2d(2)])
def test_narrow_types_are_close_to_double(inputs: int, pool: nn.MaxPool2d | None) -> None:
    """bfloat16 keeps 8 bits: each of the products, sums and roundings is off by at most 2^-8."""
    conv, x = layer(inputs, (3, 3)), random(2, inputs, 12, 12)
    value, _ = forward_and_gradient(lambda x: plain(x, conv, (1, 1), False, pool), x)  # type: ignore[arg-type]
    exact = forward_and_gradient(FrozenConv2d(conv, (1, 1), CPU, DOUBLE), x)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        pooled = FrozenConv2d(conv, (1, 1), CPU, dtype, pool=pool)(x.to(dtype))
        assert pooled.dtype == dtype
        assert 0 < relative_error(pooled, value) < tolerance
        # Without pooling: which of two nearly equal numbers is the larger may change with the rounding.
        narrow, gradient = forward_and_gradient(FrozenConv2d(conv, (1, 1), CPU, dtype), x.to(dtype))
        assert gradient.dtype == dtype
        assert 0 < relative_error(narrow, exact[0]) < tolerance
        assert 0 < relative_error(gradient, exact[1]) < tolerance
