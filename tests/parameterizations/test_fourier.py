"""Fourier coefficients to images: against Lucid's arithmetic in numpy, and back."""

import numpy as np
import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.network import InputSpace
from fvlight.parameterizations import FourierImage

RGB, GREY, FOUR = InputSpace(3), InputSpace(1), InputSpace(4)
CIFAR = InputSpace(3, 1.0, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SIZES = [(6, 8), (5, 8), (6, 7), (7, 5), (1, 4), (4, 1)]


def lucid(raw, size, decay_power, decorrelated):
    """(2, C, H, W // 2 + 1) to rgb (C, H, W): Lucid's steps, with the inverse transform as a plain sum of waves."""
    (height, width), columns = size, size[1] // 2 + 1
    frequency = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.abs(np.fft.fftfreq(width)[None, :columns]) ** 2)
    scale = np.sqrt(width * height) / np.maximum(frequency, 1 / max(height, width)) ** decay_power
    spectrum = (raw[0] + 1j * raw[1]) * scale
    y, x = np.mgrid[:height, :width]
    image = np.zeros((raw.shape[1], height, width))
    for row in range(height):
        for column in range(columns):
            own_mirror = column == 0 or 2 * column == width
            wave = np.exp(2j * np.pi * (row * y / height + column * x / width))
            image += (1 if own_mirror else 2) * (spectrum[:, row, column, None, None] * wave).real
    image /= 4 * height * width
    if decorrelated:
        matrix = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
        matrix /= np.linalg.norm(matrix, axis=0).max()
        image = np.moveaxis(np.moveaxis(image, 0, -1) @ matrix.T, -1, 0)
    return 1 / (1 + np.exp(-image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decay_power", [0, 1])
@pytest.mark.parametrize(("space", "decorrelated"), [(RGB, True), (RGB, False), (GREY, False)])
def test_images_are_lucids(size, decay_power, space, decorrelated):
    fourier = FourierImage(space, size, decay_power, decorrelated)
    raw = torch.randn(2, *fourier.shape, dtype=torch.float64)
    expected = torch.stack([torch.from_numpy(lucid(one.numpy(), size, decay_power, decorrelated)) for one in raw])
    assert expected.std() > 0.01
    torch.testing.assert_close(fourier(raw), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("space", [GREY, FOUR])
def test_only_three_channels_are_colours(space):
    raw = torch.randn(1, 2, space.channels, 4, 3)
    assert torch.equal(FourierImage(space, (4, 4))(raw), FourierImage(space, (4, 4), decorrelated=False)(raw))


def test_images_are_in_the_networks_input_space():
    raw = torch.randn(1, 2, 3, 4, 3)
    torch.testing.assert_close(FourierImage(CIFAR, (4, 4))(raw), CIFAR.from_rgb(FourierImage(RGB, (4, 4))(raw)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decay_power", [0, 1, 0.5])
@pytest.mark.parametrize("space", [RGB, GREY, FOUR, CIFAR])
def test_an_image_comes_back_from_its_parameters(size, decay_power, space):
    fourier = FourierImage(space, size, decay_power)
    rgb = 0.01 + 0.98 * torch.rand(2, space.channels, *size, dtype=torch.float64)
    images = (rgb - torch.tensor(space.mean).double()[:, None, None]) / torch.tensor(space.std).double()[:, None, None]
    raw = fourier.raw_of(images)
    assert raw.shape == (2, *fourier.shape)
    torch.testing.assert_close(fourier(raw), images, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_the_jacobian_has_the_rank_of_the_image_and_columns_of_zeros(size):
    """A null space where real images need no numbers: the rank is exactly H W for each channel."""
    fourier = FourierImage(GREY, size)
    raw = torch.randn(1, *fourier.shape, dtype=torch.float64)
    jacobian = torch.func.jacrev(fourier)(raw).reshape(size[0] * size[1], -1)
    assert torch.linalg.matrix_rank(jacobian) == size[0] * size[1]
    mirrors = [(y, x) for y in {0, size[0] / 2} for x in {0, size[1] / 2} if y % 1 == 0 and x % 1 == 0]
    zero = (jacobian.reshape(-1, 2, *fourier.shape[2:]) == 0).all(0)
    assert zero.nonzero().tolist() == sorted([1, int(y), int(x)] for y, x in mirrors)  # 1: imaginary parts


def test_derivatives_are_those_of_finite_differences_twice():
    fourier = FourierImage(RGB, (3, 4))
    raw = torch.randn(1, *fourier.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fourier, raw)
    assert torch.autograd.gradgradcheck(fourier, raw)


def test_vmap_gives_what_a_batch_gives():
    fourier = FourierImage(CIFAR, (6, 5))
    raw = torch.randn(3, *fourier.shape)
    torch.testing.assert_close(torch.func.vmap(lambda one: fourier(one[None])[0])(raw), fourier(raw))


def test_a_start_depends_on_its_seed_alone_and_has_its_deviation():
    fourier = FourierImage(CIFAR, (32, 32), sd=0.3)
    first = fourier.start(7)
    torch.rand(3)
    assert torch.equal(first, fourier.start(7))
    assert not torch.equal(first, fourier.start(8))
    assert (first.dtype, first.shape) == (torch.float32, (2, 3, 32, 17))
    assert float(first.std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("power", [-1, float("nan"), float("inf")])
def test_settings_must_be_possible(power):
    with pytest.raises(FvlightError, match=f"decay_power={power}"):
        FourierImage(RGB, (4, 4), decay_power=power)
    with pytest.raises(FvlightError, match="sd=0"):
        FourierImage(RGB, (4, 4), sd=0)
    with pytest.raises(FvlightError, match=r"size=\(4, 0\)"):
        FourierImage(RGB, (4, 0))


def test_images_of_another_size_are_refused():
    with pytest.raises(FvlightError, match=r"shape \(1, 3, 5, 5\): \(images, 3, 4, 4\)"):
        FourierImage(RGB, (4, 4)).raw_of(torch.zeros(1, 3, 5, 5))
