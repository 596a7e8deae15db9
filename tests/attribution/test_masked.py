"""Networks on masked images: crops around the boxes give what whole masked images give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fvlight.attribution.masked import MaskedImage, MaskedRuns
from fvlight.attribution.occlusion import occlusion
from fvlight.network import Network
from tests.helpers import (
    built,
    full_map,
    one_thread,  # noqa: F401
    relative_error,
    torchvision_network,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def both(runs: MaskedRuns, module: nn.Module, layer: str | None, image: Tensor, box: tuple[int, int]) -> list[Tensor]:
    """Maps by `MaskedImage` and of whole masked images, for boxes in the corners, at the borders and inside."""
    (height, width), (high, wide) = image.shape[1:], box
    tops, lefts = torch.cartesian_prod(
        torch.tensor([0, 1, height // 2, height]).clamp_max(height - high),
        torch.tensor([0, width // 2 + 1, width]).clamp_max(width - wide),
    ).T
    fills = random(len(tops), high, wide, 3, seed=1)
    masked = image.repeat(len(tops), 1, 1, 1)
    for one, top, left, its in zip(masked, tops, lefts, fills, strict=True):
        one[:, top : top + high, left : left + wide] = its.permute(2, 0, 1)
    found = MaskedImage(runs, image, box, runs.cut(box))(tops, lefts, fills)
    return [found, module(masked) if layer is None else full_map(module, layer, masked)]


CROPPED = [
     ("squeezenet1_1", "features.12", 97, 111, 16),
    ("googlenet", "inception3b", 85, 90, 16), ("googlenet", None, 90, 81, 9), ("resnet50", "layer1.1", 65, 70, 6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "height", "width", "box"), CROPPED)
def test_crops_give_what_whole_masked_images_give(
    name: str, layer: str | None, height: int, width: int, box: int
) -> None:
    """In images that no stride divides."""
    module, image = torchvision_network(name), random(3, height, width)
    runs = MaskedRuns(Network(module), layer, image[None], torch.float64)
    cut = runs.cut((box, box + 3))
    assert cut is not None, "the point of the test"
    assert math.prod(window.pixels for window in cut.windows) < 0.6 * height * width
    found, expected = both(runs, module, layer, image, (box, box + 3))
    assert relative_error(found, expected) < 1e-11
    assert relative_error(found[1:], found[:1].expand_as(found[1:])) > 1e-7, "the boxes make a difference"


class Borders(nn.Module):
    """One operation that treats the image's borders, or places, in its own way, before two convolutions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        mode = how if how in ("reflect", "circular", "replicate") else "zeros"
        self.how, self.first = how, nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode)
        self.middle, self.last = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 4, 3, stride=2)
        self.place = nn.Parameter(torch.randn(8, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "slice":
            x = torch.relu(x[:, :, 2:-3, 1:])
        elif self.how == "place":
            x = x + self.place
        elif self.how == "size":
            x = x * (x.shape[2] / 7)
        elif self.how == "flip":
            x = x.flip(3)
        elif self.how == "pad":
            x = nn.functional.pad(x, (3, 1, 2, 0), mode="replicate")
        elif self.how == "skip":
            return self.last(self.middle(x) + x[:, :, :31, :31])
        return self.last(torch.relu(self.middle(torch.relu(x))))


@pytest.mark.parametrize(
    "how", ["zeros", "reflect", "circular", "replicate", "slice", "place", "size", "flip", "pad", "skip"]
)
def test_borders_of_all_kinds(how: str) -> None:
    module, image = built(lambda: Borders(how)), random(3, 64, 64)
    runs = MaskedRuns(Network(module, image_size=(64, 64)), None, image[None], torch.float64)
    assert (runs.cut((9, 12)) is not None) == (how not in ("reflect", "circular", "replicate"))
    found, expected = both(runs, module, None, image, (9, 12))
    assert relative_error(found, expected) < 1e-11


def test_a_box_as_large_as_the_image() -> None:
    """Nothing is shared, or every position is new."""
    module, image = torchvision_network("squeezenet1_1"), random(3, 64, 50)
    runs = MaskedRuns(Network(module), "features.7", image[None], torch.float64)
    assert runs.cut((64, 50)) is None
    found, expected = both(runs, module, "features.7", image, (64, 20))
    assert relative_error(found, expected) < 1e-11


def test_logits_are_not_rounded_to_8_bits() -> None:
    """A last linear layer adds up in float32: an offset of 1000, where bfloat16 has steps of 4, costs nothing."""
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    images = random(1, 3, 24, 24).float()
    options = {"unit": 0, "sizes": (8, 4), "fill": "grey", "dtype": torch.bfloat16}
    before = occlusion(module, images, **options)
    with torch.no_grad():
        module[4].bias += 1000
    assert relative_error(occlusion(module, images, **options), before) < 0.01
