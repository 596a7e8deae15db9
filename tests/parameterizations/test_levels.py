"""Levels of 0 to 255 about a network's zero, as a parameterization."""

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.network import InputSpace
from fvlight.parameterizations import Levels

CAFFE = InputSpace(3, 255.0, (123.0, 117.0, 104.0), (1.0,))
TORCHVISION = InputSpace(3, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = InputSpace()


def test_for_caffes_networks_they_are_the_input_itself():
    raw = 40 * torch.randn(2, 3, 4, 5)
    assert torch.equal(Levels(CAFFE, (4, 5))(raw), raw)
    assert torch.equal(Levels(CAFFE, (4, 5)).raw_of(raw), raw)


@pytest.mark.parametrize(
    ("space", "zero"), [(TORCHVISION, (0.485, 0.456, 0.406)), (CAFFE, (123 / 255, 117 / 255, 104 / 255)), (PLAIN, 0.5)]
)
def test_a_level_is_one_of_255_about_the_networks_mean(space, zero):
    """By way of a photograph's own numbers; mid-grey where the network subtracts no mean."""
    raw = 100 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    images = Levels(space, (4, 5))(raw)
    rgb = raw / 255 + torch.tensor(zero, dtype=torch.float64).reshape(-1, 1, 1)
    torch.testing.assert_close(space.to_rgb(images), rgb)
    torch.testing.assert_close(Levels(space, (4, 5)).raw_of(images), raw)


def test_preconditioned_levels_are_filtered_and_come_back() -> None:
    """Each wave of f cycles per image by the filter's share at f, an odd width included; against complex transforms."""
    size = (8, 9)
    levels, plain = Levels(TORCHVISION, size, preconditioned=True), Levels(TORCHVISION, size)
    raw = 30 * torch.randn(2, 3, *size, dtype=torch.float64)
    ty, tx = (torch.tensor([min(i, n - i) for i in range(n)], dtype=torch.float64) for n in size)
    gain = 1 / (ty[:, None] ** 2 + tx[None] ** 2).sqrt().sqrt().clamp_min(1)
    filtered = torch.fft.ifft2(torch.fft.fft2(raw) * gain / gain.mean()).real
    torch.testing.assert_close(levels(raw), plain(filtered))
    torch.testing.assert_close(levels.raw_of(levels(raw)), raw)
    torch.testing.assert_close(levels.of(levels(raw)), filtered)
    raw.requires_grad_()
    torch.autograd.gradcheck(levels, raw)


def test_starts_are_drawn_from_their_own_seeds():
    levels = Levels(TORCHVISION, (20, 30), sd=7)
    assert torch.equal(levels.start(3), levels.start(3))
    assert not torch.equal(levels.start(3), levels.start(4))
    assert float(levels.start(3).std()) == pytest.approx(7, rel=0.05)


def test_what_has_no_parameters_is_refused():
    levels = Levels(CAFFE, (4, 5))
    with pytest.raises(FvlightError, match="3, 4, 5"):
        levels.raw_of(torch.zeros(1, 3, 5, 4))
    with pytest.raises(FvlightError, match="NaN"):
        levels.raw_of(torch.full((1, 3, 4, 5), float("nan")))
    with pytest.raises(FvlightError, match="sd=0"):
        Levels(CAFFE, (4, 5), sd=0)
