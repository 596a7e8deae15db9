"""fvlight.analysis.description: slow loops over units, images and values; closed forms for the cells."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight import InputSpace, Network, Readout
from fvlight.analysis.description import Description, describe_units
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.transformations import DEFAULTS, Curve
from fvlight.zoo.cells import energy_cell, gabor

NAN = float("nan")


def network_of(channels: int = 3) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3))
    module[2].bias.data.copy_(torch.tensor([-0.05, 0.02, 0, 0, 0.04]))  # most images, but not all, drive a unit
    return Network(module, input_space=InputSpace(channels, photographic=False))


def result_of(images: Tensor, units: list[int], activations: Tensor) -> DiverseResult:
    """Images (U, L, n, C, H, W) with activations (U, L, n), which alone choose the lambda."""
    grid = images.shape[:2]
    return DiverseResult(
        units, [0.0, 0.5, 1.0][: grid[1]], images, activations, torch.ones(grid), torch.ones(grid),
        torch.ones(grid, dtype=torch.int64), [["converged"] * grid[1]] * grid[0],
        torch.zeros(grid, dtype=torch.int64), 0.9,
    )  # fmt: skip


def slow(relative: list[float], values: list[float], identity: float) -> tuple[float, float, float]:
    """Share, low and high of one curve, its ends by walking along it in small steps."""
    ends = []
    for last in (values[0], values[-1]):
        walk = np.linspace(identity, last, 200001)
        below = np.interp(walk, values, relative) < 0.5
        ends.append(float(walk[below.argmax()]) if below.any() else last)
    return sum(value >= 0.5 for value in relative) / len(relative), ends[0], ends[1]


@torch.no_grad()
@pytest.mark.parametrize("position", [None, "mean", (0, 3)])
def test_numbers_are_those_of_a_slow_loop(position: Any) -> None:
    """Of a unit's window, and of whole images, read where the task's readout reads them."""
    network = network_of()
    size = (5, 5) if position is None else (9, 8)
    readout = Readout(network, ["2", "0"], position=position, image_size=None if position is None else size)

    def read(image: Tensor, unit: int) -> float:
        maps = network.module(image[None])[0, unit]
        if position is None:  # without the padding that an image of the window's size would see
            first, _, last = network.module
            hidden = torch.relu(nn.functional.conv2d(image[None], first.weight, first.bias))
            return float(last(hidden)[0, unit, 0, 0])
        return float(maps.mean() if position == "mean" else maps[position])

    units, n = [4, 1, 0], 4
    images = torch.randn(3, 2, n, 3, *size, generator=torch.Generator().manual_seed(2))
    images /= images.flatten(3).norm(dim=3)[..., None, None, None]
    activations = torch.ones(3, 2, n)
    activations[1, 1] = 0.5  # chosen: lambda 0
    activations[2, 0] = NAN  # none
    found = describe_units(result_of(images, units, activations), readout, at_once=5)
    assert found is not None
    summary = found.summary()
    json.dumps(summary, allow_nan=False)
    for u, chosen in enumerate([1, 0]):  # the second unit is silent to some of its images
        mine, unit = images[u, chosen], units[u]
        own = [read(image, unit) for image in mine]
        mixed = [(mine[i] + mine[j]) / 2 for i in range(n) for j in range(i)]
        pairs = [read(image / image.norm(), unit) for image in mixed]
        assert summary[u]["combination_index"] == pytest.approx(np.mean(pairs) / np.mean(own), rel=1e-4)
        s = np.linalg.svd((mine - mine.mean(0)).flatten(1).double().numpy(), compute_uv=False)
        assert summary[u]["local_dimension"] == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-6)
        assert list(summary[u]["transformations"]) == list(DEFAULTS)
        for name, transformation in DEFAULTS.items():
            rows = []
            for i, image in enumerate(mine):
                changed = [transformation(image[None], value, network.input_space) for value in transformation.values]
                curve = [read(one[0], unit) for one in changed]
                np.testing.assert_allclose(found.curves[name].activations[u, i], curve, rtol=1e-4, atol=1e-6)
                if own[i] > 0:
                    relative = [value / own[i] for value in curve]
                    rows.append(slow(relative, list(transformation.values), transformation.identity))
            assert (len(rows) < n) == (u == 1)
            share, low, high = np.mean(rows, 0)[0], *np.median(rows, 0)[1:]
            numbers = summary[u]["transformations"][name]
            assert numbers["share"] == pytest.approx(share, abs=0.02)  # a value at just one half may go either way
            assert [numbers["low"], numbers["high"]] == pytest.approx([low, high], abs=5e-3)
            assert numbers["tested"] == [transformation.values[0], transformation.values[-1]]
    assert summary[2]["combination_index"] is summary[2]["local_dimension"] is None
    assert summary[2]["transformations"]["hue"] == {"share": None, "low": None, "high": None, "tested": [-180, 180]}


def test_a_complex_cell_in_numbers() -> None:
    """Six phases lie on a circle: two dimensions. The average of two phases, brought to norm 1, is a Gabor again."""
    phases = torch.arange(6) * math.pi / 3
    # Opposite phases cancel: 12 of 15 pairs are left, so turn every other one a little.
    images = gabor(32, phases + torch.tensor([0, 0.1] * 3))[None, None, :, None].float()
    found = describe_units(result_of(images, [0], torch.ones(1, 1, 6)), Readout(energy_cell(), "complex"))
    assert found is not None
    (unit,) = found.summary()
    assert unit["local_dimension"] == pytest.approx(2, abs=0.02)
    assert unit["combination_index"] == pytest.approx(1, abs=0.01)
    assert "hue" not in unit["transformations"]
    # A quadratic cell: half the activation at a contrast of 1/sqrt(2), between the values 1/2 and 3/4 a straight line.
    assert unit["transformations"]["contrast"]["low"] == pytest.approx(0.5 + 0.25 * 0.25 / (0.5625 - 0.25), abs=1e-3)
    assert unit["transformations"]["contrast"]["high"] == 2


def test_images_of_one_point_have_no_dimension() -> None:
    images = gabor(32, torch.zeros(3))[None, None, :, None].float()
    found = describe_units(result_of(images, [0], torch.ones(1, 1, 3)), Readout(energy_cell(), "complex"))
    assert found is not None
    assert found.summary()[0]["local_dimension"] in (None, pytest.approx(1))  # 0 / 0, or of rounding
    assert found.summary()[0]["combination_index"] == pytest.approx(1)


def test_no_unit_chosen_no_description() -> None:
    readout = Readout(network_of(), "2")
    images = torch.randn(2, 1, 3, 3, 5, 5)
    assert describe_units(result_of(images, [0, 1], -torch.ones(2, 1, 3)), readout) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_progress_ends_at_one(channels: int) -> None:
    shares: list[float] = []
    images = torch.randn(3, 1, 2, channels, 5, 5)
    result = result_of(images, [0, 1, 2], torch.ones(3, 1, 2))
    describe_units(result, Readout(network_of(channels), "2"), at_once=4, progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) > 100
    assert shares[-1] == pytest.approx(1)


def test_tensors_hold_all_that_the_numbers_come_from() -> None:
    curve = Curve(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.rand(2, 3, 2, dtype=torch.float64), 1.0)
    tensors = Description({"contrast": curve}, torch.ones(2), torch.ones(2)).tensors()
    assert set(tensors) == {"contrast", "contrast.values", "contrast.identity"}
    assert torch.equal(tensors["contrast"], curve.activations.float())
    assert torch.equal(tensors["contrast.values"], curve.values)
    assert float(tensors["contrast.identity"]) == 1
