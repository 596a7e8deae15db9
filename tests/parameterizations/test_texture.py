"""fvlight.parameterizations.texture: crops and their scale against a loop over places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.parameterizations import Texture, window_mask


def looped_crops(raw: Tensor, size: int, norm: float, places: int) -> Tensor:
    """The authors' way: every crop cut out, windowed, and all scaled by the root mean square of their norms."""
    sigma, centre = size / 2.4, (size - 1) / 2
    crops = []
    for top in range(places):
        for left in range(places):
            crop = raw[:, top : top + size, left : left + size].clone()
            for y in range(size):
                for x in range(size):
                    radius = math.hypot(y - centre, x - centre)
                    crop[:, y, x] *= math.exp(-((radius / sigma) ** 4))
            crops.append(crop)
    stacked = torch.stack(crops)
    return stacked * (norm / stacked.flatten(1).square().sum(1).mean().sqrt())


@pytest.mark.parametrize(("every_place", "places"), [(False, 4), (True, 5)])
def test_crops_are_those_of_a_loop_over_places(every_place: bool, places: int) -> None:
    texture = Texture(7.0, (2, 5, 5), every_place=every_place)
    texture.mask = window_mask((5, 5), (5 / 2.4, 5 / 2.4))
    assert texture.places == (places, places)
    raw = torch.stack([texture.start(1), 3 * texture.start(2)]).double()
    crops = texture.crops(texture.textures(raw))
    expected = torch.stack([looped_crops(one, 5, 7.0, places) for one in raw])
    torch.testing.assert_close(crops, expected, rtol=1e-12, atol=1e-12)
    norms = crops.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms.square().mean(1).sqrt(), torch.full((2,), 7.0, dtype=torch.float64))


def test_parts_of_the_crops() -> None:
    texture = Texture(1.0, (3, 6, 4))
    textures = texture.textures(texture.start(0)[None])
    whole = texture.crops(textures).view(1, 5, 3, 3, 6, 4)
    assert torch.equal(texture.crops(textures, slice(1, 3)).view(1, 2, 3, 3, 6, 4), whole[:, 1:3])
    assert torch.equal(texture.crops(textures, step=2, first=(1, 0)).view(1, 2, 2, 3, 6, 4), whole[:, 1::2, ::2])


def test_the_gradient_is_filtered_crop_by_crop() -> None:
    plain, filtered = (Texture(3.0, (1, 4, 4), preconditioned=flag) for flag in (False, True))
    raw = plain.start(0)[None].double().requires_grad_()
    mix = torch.randn(1, 9, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frequency = torch.fft.fftfreq(4, 1 / 4, dtype=torch.float64)
    gain = 1 / (frequency[:, None] ** 2 + frequency[None] ** 2).pow(0.25).clamp(min=1)
    smooth = torch.fft.ifft2(torch.fft.fft2(mix) * (gain / gain.mean()).float()).real
    (expected,) = torch.autograd.grad((plain.crops(plain.textures(raw)) * smooth).sum(), raw)
    (gradient,) = torch.autograd.grad((filtered.crops(filtered.textures(raw)) * mix).sum(), raw)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_the_window_falls_off_as_the_fourth_power() -> None:
    mask = window_mask((5, 7), (2.0, 2.0))
    assert mask[2, 3] == 1
    assert float(mask[2, 5]) == pytest.approx(math.exp(-1))
    assert float(mask[0, 3]) == pytest.approx(math.exp(-1))
    assert float(mask[0, 0]) == pytest.approx(math.exp(-((math.sqrt(13) / 2) ** 4)))


@pytest.mark.parametrize("options", [{"norm": 0.0}, {"norm": -1.0}, {"norm": 1.0, "sigma_ratio": 0.0}])
def test_what_is_not_positive_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(FvlightError, match="must be positive"):
        Texture(options["norm"], (1, 3, 3), sigma_ratio=options.get("sigma_ratio", 2.4))
