"""What the comparison measures: closed forms of a linear network, classes from file names, the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvlight.analysis import map_quality
from fvlight.analysis.map_comparison import (
    COLUMNS,
    ENTRIES,
    MEASURES,
    TITLES,
    Address,
    MapQuality,
    Protocol,
    explainer,
    grey_distance,
    imagenet_class,
    measure,
    table,
)
from fvlight.attribution.units import read_maps
from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network
from tests.helpers import one_thread, snapshot  # noqa: F401

SIDE = 12
OPTIONS = {"occlusion": {"sizes": (3, 3)}, "occlusion_grey": {"sizes": (3, 3)}}
QUICK = Protocol(steps=6, draws=2, stages=2, box=3)


def network(bias: bool = False) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, bias=bias), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 16, 5, bias=bias),
    )  # fmt: skip
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return Network(module.double().eval(), input_space=InputSpace(mean=(0.5,)))


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5


def address(of: Network, images: Tensor) -> Address:
    return Address(None, read_maps(of, images, None).argmax(1))


# -- measures


@pytest.mark.parametrize("entry", ENTRIES)
def test_measures_do_not_depend_on_the_batch_and_leave_the_network_alone(entry: str) -> None:
    net, images = network(), pictures()
    before, options = snapshot(net.module), OPTIONS.get(entry, {})
    units = address(net, images).units
    whole = measure(entry, net, images, [4, 5, 6], Address(None, units), QUICK, options)
    single = measure(entry, net, images[1:2], [5], Address(None, units[1:2]), QUICK, options)
    assert set(whole.measures) == set(MEASURES)
    for name, values in whole.measures.items():
        np.testing.assert_allclose(values[1:2], single.measures[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert whole.maps.shape == (3, SIDE, SIDE)
    assert whole.cascade.shape == (2, 3)
    assert snapshot(net.module) == before


def test_baselines_know_nothing_of_picture_or_network() -> None:
    net, images = network(), pictures()
    for entry in ("random", "central"):
        found = measure(entry, net, images, range(3), address(net, images), QUICK).measures
        assert found["sensitivity"].tolist() == [0, 0, 0]
        np.testing.assert_allclose(found["randomised"], 1)
        assert found["conservation"].isnan().all()
    maps = explainer("random", address(net, images), [7, 8, 9], {}, 0)(net, images)[1]
    again = explainer("random", address(net, images), [8], {}, 0)(net, images[1:2])[1]
    other = explainer("random", address(net, images), [8], {}, 1)(net, images[1:2])[1]
    assert maps[1].equal(again[0])
    assert not other.equal(again)


def test_gradient_times_picture_adds_up_without_biases_and_relevance_with_them() -> None:
    """A network of ReLUs without biases is homogeneous: its value is its gradient times the picture [Euler]."""
    images = pictures()
    plain, biased = network(), network(bias=True)
    assert (
        measure("gradient", plain, images, range(3), address(plain, images), QUICK).measures["conservation"] < 1e-9
    ).all()
    there = address(biased, images)
    assert (measure("gradient", biased, images, range(3), there, QUICK).measures["conservation"] > 1e-3).all()
    found = measure("lrp", biased, images, range(3), there, QUICK)
    raw = explainer("lrp", there, range(3), {}, 0)(biased, images)[0]
    missing = 1 - raw.flatten(1).sum(1) / there.values(biased, images)
    torch.testing.assert_close(found.measures["bias_share"], missing, rtol=1e-3, atol=1e-3)  # but for epsilon
    assert (found.measures["conservation"] < 1e-3).all()
    assert missing.abs().min() > 1e-2


def test_measures_are_those_of_the_maps_that_are_shown() -> None:
    net, images = network(), pictures()
    there = address(net, images)
    found = measure("guided", net, images, range(3), there, QUICK)
    fill = map_quality.fill_of(images, "blur", net.input_space)
    for name in ("deletion", "insertion"):
        curve = getattr(map_quality, name)(lambda x: there.values(net, x), images, found.maps, fill, 6)
        torch.testing.assert_close(found.measures[name], curve.area, equal_nan=True)
    torch.testing.assert_close(found.measures["share"], map_quality.focus(found.maps).share)
    torch.testing.assert_close(found.measures["entropy"], map_quality.focus(found.maps).relative)


def test_the_distance_from_grey_is_the_mean_over_a_box() -> None:
    space = InputSpace(scale=255, mean=(100.0,))
    rgb = torch.rand(2, 3, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = grey_distance(space.from_rgb(rgb), space, 4)
    distance = (rgb - 0.5).square().sum(1).sqrt()
    assert found.shape == (2, 9, 10)
    for row, column in ((2, 2), (4, 5), (7, 8)):
        expected = distance[:, row - 2 : row + 2, column - 2 : column + 2].mean((1, 2))
        torch.testing.assert_close(found[:, row, column], expected)
    assert grey_distance(space.from_rgb(torch.full((1, 3, 8, 8), 0.5)), space, 3).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n01440764_tench.jpg", 0),
        ("n01443537_goldfish.jpg", 1),
        ("deep/n15075141.JPEG", 999),
        ("n00000000_nothing.jpg", None),
        ("n014407645.jpg", None),
        ("cat.jpg", None),
    ],
)
def test_a_file_name_tells_its_class(name: str, expected: int | None) -> None:
    """Of ImageNet's 1000 synsets tench is the first, goldfish the second, bathroom tissue the last."""
    assert imagenet_class(name) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps=0: at least 1"),
        ({"draws": 0}, "draws=0"),
        ({"radius": 0.0}, r"radius=0\.0: a positive share"),
        ({"fill": "gray"}, "no fill 'gray'"),
    ],
)
def test_protocols_that_measure_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(FvlightError, match=words):
        Protocol(**settings)  # type: ignore[arg-type]


def test_an_unknown_method_is_told() -> None:
    net, images = network(), pictures()
    with pytest.raises(FvlightError, match=r"no method of attribution 'guide'"):
        measure("guide", net, images, range(3), address(net, images), QUICK)


# -- results


def result(measures: dict[str, list[list[float]]], entries: list[str], correct: list[float]) -> MapQuality:
    """Made-up results; NaN for measures that are not given."""
    count = len(correct)
    every = {name: torch.full((len(entries), count), math.nan).double() for name in MEASURES}
    every |= {name: torch.tensor(values).double() for name, values in measures.items()}
    nothing = torch.zeros(count)
    return MapQuality(
        "net", "layer", [f"{n}.png" for n in range(count)], entries, nothing.long(), nothing,
        torch.tensor(correct).double(), every, torch.zeros(len(entries), 1, count),
        torch.zeros(1, 3, 2, 2), torch.zeros(len(entries), 1, 2, 2),
    )  # fmt: skip


def test_the_table_has_every_measure_that_applies_with_its_interval() -> None:
    one = result({"share": [[0.1, 0.2, 0.6], [0.5, 0.5, math.nan]]}, ["gradient", "random"], [1, 0, 0])
    other = result({"deletion": [[0.3, 0.5]]}, ["lrp"], [math.nan, math.nan])
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table({"one": one, "other": other})]
    assert [(row["run"], row["method"], row["measure"]) for row in rows] == [
        ("one", "gradient", "share"), ("one", "random", "share"), ("other", "lrp", "deletion"),
    ]  # fmt: skip
    assert rows[0]["mean"] == pytest.approx(0.3)
    assert rows[0]["low"] == pytest.approx(0.1)  # of 27 equally likely samples one has all the smallest: 3.7 % > 2.5 %
    assert rows[0]["high"] == pytest.approx(0.6)
    assert (rows[1]["mean"], rows[1]["low"], rows[1]["high"], rows[1]["pictures"]) == (0.5, 0.5, 0.5, 2)
    assert rows[0]["error"] == pytest.approx(2 / 3, abs=1e-4)
    assert rows[2]["error"] == ""


def test_a_summary_has_no_numbers_that_are_none() -> None:
    one = result({"share": [[0.1, math.nan, 0.3]]}, ["gradient"], [1, 1, 1])
    (entry,) = one.summary()
    assert entry["unit"] == TITLES["gradient"]
    assert entry["share"]["value"] == pytest.approx(0.2)
    assert entry["share"]["count"] == 2
    assert entry["deletion"] == {"value": None, "low": None, "high": None, "count": 0}
    assert one.error == 0
