"""fvlight.zoo.cifar_resnet against closed forms and torchvision's basic block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet

from fvlight.zoo import load_network
from fvlight.zoo.cifar_resnet import DEPTHS, BasicBlock, Shortcut
from tests.helpers import full_map, randomised, relative_error

MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85}  # [He et al. 2015, Table 6]


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_has_the_published_number_of_parameters(depth: int) -> None:
    n = (depth - 2) // 6
    weights = 9 * (3 * 16 + 2 * n * 16**2)
    weights += 9 * (16 * 32 + (2 * n - 1) * 32**2) + 9 * (32 * 64 + (2 * n - 1) * 64**2)
    batch_norm = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
    module = load_network(f"cifar_resnet{depth}", "random").module
    found = sum(value.numel() for value in module.parameters())
    assert found == weights + batch_norm + 64 * 10 + 10
    assert round(found / 1e6, 2) == MILLIONS[depth]
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) + 1 == depth


def test_maps_shrink_as_in_the_paper() -> None:
    module = load_network("cifar_resnet20", "random").module
    x = torch.zeros(1, 3, 32, 32)
    shapes = [tuple(full_map(module, f"layer{stage}", x).shape[1:]) for stage in (1, 2, 3)]
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def plain_shortcut(x: Tensor) -> Tensor:
    """y_c(i, j) = x_(c - n/2)(2 i, 2 j) for n new channels, zero where there is no such channel."""
    images, channels, height, width = x.shape
    y = x.new_zeros(images, 2 * channels, (height + 1) // 2, (width + 1) // 2)
    for channel in range(channels):
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                y[:, channel + channels // 2, row, column] = x[:, channel, 2 * row, 2 * column]
    return y


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_the_shortcut_is_option_a(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Shortcut(4)(x), plain_shortcut(x))


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 32)])
def test_a_block_is_torchvision_s_with_that_shortcut(inputs: int, outputs: int) -> None:
    ours = randomised(BasicBlock(inputs, outputs)).double().eval()
    theirs = resnet.BasicBlock(inputs, outputs, stride=outputs // inputs).double().eval()
    theirs.load_state_dict(ours.state_dict())
    if inputs != outputs:
        theirs.downsample = plain_shortcut  # type: ignore[assignment]
    x = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-12


def test_blocks_follow_each_other_and_are_averaged() -> None:
    module = randomised(load_network("cifar_resnet20", "random").module).double()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = module.get_submodule
    with torch.no_grad():
        y = part("bn1")(part("conv1")(x)).relu()
        for stage in (1, 2, 3):
            for block in range(3):
                y = part(f"layer{stage}.{block}")(y)
        expected = y.mean((2, 3)) @ part("linear").weight.T + part("linear").bias  # type: ignore[union-attr, operator]
        assert relative_error(module(x), expected) < 1e-12


def test_random_weights_are_he_s() -> None:
    for part in load_network("cifar_resnet56", "random").module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            assert float(part.weight.detach().std()) == pytest.approx((2 / part.weight[0].numel()) ** 0.5, rel=0.1)
