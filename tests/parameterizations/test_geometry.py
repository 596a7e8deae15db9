"""Maps for SRNet: mask, normal, depth."""

import math

import pytest
import torch

from fvlight import Readout
from fvlight.errors import FvlightError
from fvlight.network import InputSpace
from fvlight.parameterizations import GeometryMaps
from fvlight.zoo import load_network

FRAME, FILM = InputSpace(5, photographic=False), InputSpace(101, photographic=False)


@pytest.mark.parametrize("continuous", [False, True])
def test_every_parameter_gives_possible_maps(continuous):
    maps = GeometryMaps(FRAME, (6, 5), continuous)
    raw = 20 * torch.randn(4, *maps.shape, dtype=torch.float64)
    mask, normal, depth = maps(raw).split([1, 3, 1], 1)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(4, 6, 5, dtype=torch.float64))
    assert normal[:, 2].min() >= 0
    assert normal[:, 2].min() < 0.01
    assert normal[:, 2].max() > 0.99
    assert normal[:, :2].min() < -0.9 < 0.9 < normal[:, :2].max()
    assert 0 <= depth.min() < 0.01 < 0.99 < depth.max() <= 1
    if continuous:
        assert -1 <= mask.min() < -0.99 < 0.99 < mask.max() <= 1
    else:
        assert (mask == 1).all()


def test_angles_are_those_of_the_sphere():
    """Straight at the viewer; half way down towards +y; on the horizon towards -x."""
    infinite, raw = 50.0, torch.zeros(3, 4, 1, 1, dtype=torch.float64)
    raw[:, 0, 0, 0] = torch.tensor([0.3, math.pi / 2, 3 * math.pi])
    raw[:, 1, 0, 0] = torch.tensor([-infinite, 0, infinite])
    raw[:, 2, 0, 0] = torch.tensor([-infinite, 0, infinite])
    raw[:, 3, 0, 0] = torch.tensor([-infinite, 0, infinite])
    half = 0.5**0.5
    expected = [[-1, 0, 0, 1, 0], [0, 0, half, half, 0.5], [1, -1, 0, 0, 1]]
    found = GeometryMaps(FRAME, (1, 1), continuous_mask=True)(raw)[..., 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_first_frame_follows_no_other():
    raw = torch.randn(2, 3, 4, 4)
    film = GeometryMaps(FILM, (4, 4))(raw)
    assert film.shape == (2, 101, 4, 4)
    assert torch.equal(film[:, :5], GeometryMaps(FRAME, (4, 4))(raw))
    assert not film[:, 5:].any()


def test_derivatives_are_those_of_finite_differences_twice():
    maps = GeometryMaps(FRAME, (2, 2), continuous_mask=True)
    raw = torch.randn(1, *maps.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(maps, raw)
    assert torch.autograd.gradgradcheck(maps, raw)


def test_vmap_gives_what_a_batch_gives():
    maps = GeometryMaps(FILM, (4, 3), continuous_mask=True)
    raw = torch.randn(3, *maps.shape)
    torch.testing.assert_close(torch.func.vmap(lambda one: maps(one[None])[0])(raw), maps(raw))


@pytest.mark.parametrize("channels", [5, 101])
def test_srnet_takes_them(channels):
    network = load_network("srnet", "random", in_channels=channels)
    maps = GeometryMaps(network.input_space, (12, 10), continuous_mask=True)
    raw = maps.start(0)[None].requires_grad_()
    values = Readout(network, "blocks.7", window=False)(maps(raw))
    assert values.shape == (1, 64, 12, 10)
    (gradient,) = torch.autograd.grad(values.sum(), raw)
    assert (gradient.flatten(2).norm(dim=2) > 0).all()  # azimuth, polar angle, depth and mask all count


def test_a_start_depends_on_its_seed_alone_and_has_its_deviation():
    maps = GeometryMaps(FRAME, (32, 32), sd=0.3)
    first = maps.start(7)
    torch.rand(3)
    assert torch.equal(first, maps.start(7))
    assert not torch.equal(first, maps.start(8))
    assert (first.dtype, first.shape) == (torch.float32, (3, 32, 32))
    assert float(first.std()) == pytest.approx(0.3, rel=0.05)


def test_other_networks_and_settings_are_refused():
    with pytest.raises(FvlightError, match=r"3 input channels .* SRNet \(5 or 101 channels\)"):
        GeometryMaps(InputSpace(3), (4, 4))
    with pytest.raises(FvlightError, match="sd=-1"):
        GeometryMaps(FRAME, (4, 4), sd=-1)
    with pytest.raises(FvlightError, match=r"size=\(0, 4\)"):
        GeometryMaps(FRAME, (0, 4))
