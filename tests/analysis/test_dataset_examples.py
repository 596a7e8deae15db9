"""The running top-k against a full sort; windows against gradients; crops against slices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fvlight.analysis.dataset_examples import EMPTY, TopK, crop, readings, window
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.receptive_field import ReceptiveField, receptive_field
from tests.helpers import TOYS, full_map, supports, toy

N, UNITS, K = 40, 5, 6


def examples(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values with many ties, positions and numbers of images."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-4, 9, (N, UNITS), generator=generator).float()
    positions = torch.randint(0, 49, (N, UNITS), generator=generator)
    return values, positions, torch.arange(N)


def sorted_whole(values: Tensor, positions: Tensor, ids: Tensor) -> list[list[tuple[float, int, int]]]:
    """Of each unit (value, position, number) by a plain sort of all: largest value first, then smallest number."""
    table = [
        [(float(values[n, u]), int(positions[n, u]), int(ids[n])) for n in range(len(values))] for u in range(UNITS)
    ]
    return [sorted(row, key=lambda entry: (-entry[0], entry[2]))[:K] for row in table]


def as_lists(best: TopK) -> list[list[tuple[float, int, int]]]:
    columns = (best.values.tolist(), best.positions.tolist(), best.ids.tolist())
    return [list(zip(*row, strict=True)) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("batch", [1, 3, 7, N])
def test_streamed_in_any_order_it_is_a_full_sort(batch: int) -> None:
    values, positions, ids = examples()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(batch))
    best = TopK.empty(UNITS, K)
    for rows in order.split(batch):
        best = best.update(values[rows], positions[rows], ids[rows])
    assert as_lists(best) == sorted_whole(values, positions, ids)


def test_devices_merge_in_any_order() -> None:
    values, positions, ids = examples(1)
    parts = [TopK.empty(UNITS, K).update(values[i::3], positions[i::3], ids[i::3]) for i in range(3)]
    expected = sorted_whole(values, positions, ids)
    assert as_lists(parts[0].merge(parts[1]).merge(parts[2])) == expected
    assert as_lists(parts[2].merge(parts[0].merge(parts[1]))) == expected


def test_what_is_not_finite_never_enters_and_places_stay_empty() -> None:
    values, positions, ids = examples(2)
    values[3], values[5, 1], values[7, 2] = torch.nan, torch.inf, -torch.inf
    best = TopK.empty(UNITS, N).update(values, positions, ids)
    assert best.filled.sum(1).tolist() == [N - 1, N - 2, N - 2, N - 1, N - 1]
    assert bool(best.values[best.filled].isfinite().all())
    assert bool((best.values[~best.filled] == -torch.inf).all())
    assert 3 not in best.ids[best.filled].tolist()


def test_readings_are_the_maps_maxima_means_and_values() -> None:
    maps = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    units = [4, 1]
    values, places = readings(maps, units)
    for n in range(4):
        for i, unit in enumerate(units):
            row, column = divmod(int(places[n, i]), 5)
            assert float(values[n, i]) == float(maps[n, unit, row, column]) == float(maps[n, unit].max())
    means, nowhere = readings(maps, units, "mean")
    torch.testing.assert_close(means, torch.stack([maps[:, unit].flatten(1).sum(1) / 15 for unit in units], 1))
    assert bool((nowhere == EMPTY).all())
    for position, (row, column) in {"center": (1, 2), (2, 4): (2, 4), 7: (1, 2)}.items():
        values, places = readings(maps, units, position)  # type: ignore[arg-type]
        assert torch.equal(values, maps[:, units, row, column])
        assert bool((places == row * 5 + column).all())
    with pytest.raises(FvlightError, match=r"position=\(3, 0\).*3 x 5"):
        readings(maps, units, (3, 0))


@pytest.mark.parametrize("name", list(TOYS))
def test_windows_are_what_the_gradient_reaches(name: str) -> None:
    """Of every unit of the map, edges included: the support of its gradient in the image is the window's inside."""
    size, layer = 41, TOYS[name][1]
    field = receptive_field(Network(toy(name)), layer)
    height, width = full_map(toy(name), layer, torch.zeros(1, 3, size, size, dtype=torch.float64)).shape[2:]
    assert height > 2
    places = [(0, 0), (height // 2, width // 2), (height - 1, 0), (height - 1, width - 1)]

    found = supports(lambda images: full_map(toy(name), layer, images), places, size)
    for (row, column), support in zip(places, found, strict=True):
        top, left, tall, wide = window(field, row * width + column, width, (size, size))
        seen = ((max(top, 0), min(top + tall, size)), (max(left, 0), min(left + wide, size)))
        for (first, end), (begin, stop) in zip(seen, support, strict=True):
            assert first <= begin
            assert stop <= end  # within, and for an inner unit all of it
        if (row, column) == places[1]:
            assert seen == support


def test_a_window_as_large_as_the_image_is_the_image() -> None:
    whole = (0, 0, 30, 40)
    assert window(None, 5, 7, (30, 40)) == whole
    assert window(ReceptiveField((30, 41), (8, 8), (-3, -3)), 5, 7, (30, 40)) == whole
    assert window(ReceptiveField((9, 9), (8, 8), (-3, -3)), EMPTY, 7, (30, 40)) == whole
    assert window(ReceptiveField((9, 11), (8, 4), (-3, -2)), 2 * 7 + 5, 7, (30, 40)) == (13, 18, 9, 11)


def test_crops_are_slices_and_zeros_beyond_the_edge() -> None:
    image = torch.arange(1, 3 * 6 * 8 + 1).reshape(3, 6, 8).float()
    for top, left, height, width in [(1, 2, 3, 4), (-2, 5, 5, 6), (4, -1, 4, 3), (-1, -1, 8, 10), (0, 0, 6, 8)]:
        found = crop(image, (top, left, height, width))
        assert found.shape == (3, height, width)
        for y in range(height):
            for x in range(width):
                inside = 0 <= top + y < 6 and 0 <= left + x < 8
                expected = image[:, top + y, left + x] if inside else torch.zeros(3)
                assert torch.equal(found[:, y, x], expected)
