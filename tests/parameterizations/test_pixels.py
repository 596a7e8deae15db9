"""Photographs through a sigmoid, and back."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.network import InputSpace
from fvlight.parameterizations import SigmoidPixels

CAFFE = InputSpace(3, 255.0, (123.0, 117.0, 104.0), (1.0,))
CIFAR = InputSpace(3, 1.0, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
GREY = InputSpace(1, 1.0, (0.5,), (0.25,))


@pytest.mark.parametrize("space", [CAFFE, CIFAR, GREY])
def test_images_are_sigmoids_in_the_networks_input_space(space):
    pixels = SigmoidPixels(space, (5, 4))
    raw = 3 * torch.randn(2, *pixels.shape, dtype=torch.float64)
    images = pixels(raw)
    for channel in range(space.channels):
        mean, std = space.mean[channel], space.std[channel % len(space.std)]
        expected = (space.scale / (1 + torch.exp(-raw[:, channel])) - mean) / std
        torch.testing.assert_close(images[:, channel], expected)


@pytest.mark.parametrize("space", [CAFFE, CIFAR, GREY])
def test_parameters_give_an_image_and_the_image_the_parameters(space):
    pixels = SigmoidPixels(space, (5, 4))
    raw = torch.randn(2, *pixels.shape, dtype=torch.float64).clamp(-6, 6)  # what the clip leaves alone
    torch.testing.assert_close(pixels.raw_of(pixels(raw)), raw, rtol=1e-9, atol=1e-12)


def test_all_levels_of_a_photograph_look_the_same_after_the_way_there_and_back():
    """Black and white are clipped by no more than half a level."""
    levels = torch.arange(256).repeat(3, 1).reshape(1, 3, 16, 16)
    pixels = SigmoidPixels(CAFFE, (16, 16))
    raw = pixels.raw_of(CAFFE.from_rgb(levels / 255))
    assert raw.isfinite().all()
    assert torch.equal(CAFFE.to_display(pixels(raw)), levels.to(torch.uint8))


def test_the_clip_is_an_argument():
    pixels = SigmoidPixels(GREY, (1, 3))
    images = GREY.from_rgb(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3))
    back = GREY.to_rgb(pixels(pixels.raw_of(images, clip=0.1)))
    torch.testing.assert_close(back.flatten(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))


def test_derivatives_are_those_of_finite_differences_twice():
    pixels = SigmoidPixels(GREY, (2, 3))
    raw = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixels, raw)
    assert torch.autograd.gradgradcheck(pixels, raw)


@pytest.mark.parametrize("space", [CAFFE, GREY])
def test_vmap_gives_what_a_batch_gives(space):
    pixels = SigmoidPixels(space, (4, 4))
    raw = torch.randn(3, *pixels.shape)
    each = torch.func.vmap(lambda one: pixels(one[None])[0])(raw)
    torch.testing.assert_close(each, pixels(raw))


def test_a_start_depends_on_its_seed_alone_and_has_its_deviation():
    pixels = SigmoidPixels(CIFAR, (32, 32), sd=0.3)
    first = pixels.start(7)
    torch.rand(3)
    assert torch.equal(first, pixels.start(7))
    assert not torch.equal(first, pixels.start(8))
    assert (first.dtype, first.shape) == (torch.float32, (3, 32, 32))
    assert float(first.std()) == pytest.approx(0.3, rel=0.05)


def test_a_parameterization_is_known_by_its_settings():
    """Runs are compared by these texts when one is resumed."""
    assert str(SigmoidPixels(CIFAR, (4, 4))) == str(SigmoidPixels(CIFAR, (4, 4)))
    assert str(SigmoidPixels(CIFAR, (4, 4))) != str(SigmoidPixels(CIFAR, (4, 4), sd=1.0))


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,)])
def test_sizes_must_be_possible(size):
    with pytest.raises(FvlightError, match=r"size=\(.*height, width"):
        SigmoidPixels(CIFAR, size)


@pytest.mark.parametrize("sd", [0, -1, float("nan"), float("inf")])
def test_a_deviation_must_be_positive(sd):
    with pytest.raises(FvlightError, match=f"sd={sd}"):
        SigmoidPixels(CIFAR, (4, 4), sd=sd)


def test_images_without_parameters_are_refused():
    pixels = SigmoidPixels(CIFAR, (4, 4))
    with pytest.raises(FvlightError, match=r"shape \(1, 3, 4, 5\): \(images, 3, 4, 4\)"):
        pixels.raw_of(torch.zeros(1, 3, 4, 5))
    with pytest.raises(FvlightError, match="NaN"):
        pixels.raw_of(torch.full((1, 3, 4, 4), float("nan")))
    with pytest.raises(FvlightError, match=r"rgb from 0\.000 to 255\.000"):
        pixels.raw_of(CIFAR.from_rgb(torch.linspace(0, 255, 48).reshape(1, 3, 4, 4)))
