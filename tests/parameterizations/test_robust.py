"""fvlight.parameterizations.robust: planes are moved, scaled and turned as closed forms say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fvlight import FvlightError
from fvlight.parameterizations.robust import Transformations

HEIGHT, WIDTH = 40, 60


def places() -> tuple[Tensor, Tensor]:
    """Columns and rows from the image's centre, (H, W)."""
    rows, columns = torch.meshgrid(
        torch.arange(HEIGHT) - (HEIGHT - 1) / 2, torch.arange(WIDTH) - (WIDTH - 1) / 2, indexing="ij"
    )
    return columns.double(), rows.double()


def draws(seed: int) -> list[float]:
    return (2 * torch.rand(4, generator=torch.Generator().manual_seed(seed)).double() - 1).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("given", [(5.0, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 15.0), (4.0, 0.1, 10.0)])
def test_a_plane_is_moved_scaled_and_turned(seed: int, given: tuple[float, float, float]) -> None:
    columns, rows = places()
    image = torch.stack([columns, rows])[None]
    found = Transformations(*given)(image, [seed])[0]
    right, down, turn, size = draws(seed)
    factor, angle = (1 + given[1]) ** size, math.radians(turn * given[2])
    wanted = torch.stack([
        (math.cos(angle) * columns - math.sin(angle) * rows) / factor - given[0] * right,
        (math.sin(angle) * columns + math.cos(angle) * rows) / factor - given[0] * down,
    ])  # fmt: skip
    inside = (slice(None), slice(12, -12), slice(12, -12))  # at the rims the image is mirrored
    torch.testing.assert_close(found[inside], wanted[inside], rtol=0, atol=1e-5)


def test_each_image_has_draws_of_its_own() -> None:
    images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    robust = Transformations(4, 0.1, 10)
    together = robust(images, [7, 8, 7])
    for i, seed in enumerate((7, 8, 7)):
        torch.testing.assert_close(robust(images[i : i + 1], [seed])[0], together[i])
    assert float((robust(images[:1], [8]) - together[:1]).abs().max()) > 0.01


def test_nothing_is_nothing_and_less_than_nothing_is_refused() -> None:
    image = torch.rand(1, 3, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(Transformations()(image, [0]), image)
    assert not Transformations()
    assert Transformations(rotation=1)
    with pytest.raises(FvlightError, match=r"robust\.scale=-0\.1"):
        Transformations(scale=-0.1)
