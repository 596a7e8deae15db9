"""What users type: units, numbers, the norm."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network
from fvlight.receptive_field import receptive_field
from fvlight.settings import chosen_units, number, numbers, parse_position, parse_units, resolve_norm
from fvlight.zoo import load_network

CONF = Path(__file__).resolve().parents[1] / "conf"


# -- units -------------------------------------------------------------------------------------------------


def counted(start: int, stop: int, step: int) -> list[int]:
    """The numbers of a range, one by one."""
    found, unit = [], start
    while unit < stop:
        found.append(unit)
        unit += step
    return found


def test_a_sample_is_spread_evenly_over_what_was_named() -> None:
    def sample(unit: object, units: object, available: int = 256) -> list[int]:
        return chosen_units({"unit": unit, "units": units}, available, "conv3_1")

    assert sample("all", 64) == counted(0, 256, 4)
    assert sample("all", 64, 64) == sample("all", 100, 64) == sample("all", None, 64) == counted(0, 64, 1)
    assert sample([9, 1, 5], 2) == [9, 1]
    for count in (3, 7, 100):
        found = sample("all", count)
        gaps = {b - a for a, b in zip(found, [*found[1:], 256], strict=True)}
        assert (len(found), found[0]) == (count, 0)
        assert max(gaps) - min(gaps) <= 1
    for wrong, text in ((0, "units=0: a sample of at least 1"), (1.5, "units=1.5: a whole number")):
        with pytest.raises(FvlightError, match=text):
            sample("all", wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", counted(0, 256, 1)),
        (13, [13]),
        ("13", [13]),
        (" 13 ", [13]),
        (0, [0]),
        (255, [255]),
        ("0:64", counted(0, 64, 1)),
        ("0:256:8", counted(0, 256, 8)),
        ("3:20:7", [3, 10, 17]),
        (":5", counted(0, 5, 1)),
        ("250:", counted(250, 256, 1)),
        ("5:1:-1", [5, 4, 3, 2]),
        ([22, 13], [22, 13]),
        ((22, 13), [22, 13]),
        (["13", "22"], [13, 22]),
        ([13, 22, 13], [13, 22]),
        (["0:3", 2, "1:5", 9], [0, 1, 2, 3, 4, 9]),
        ([7, "all"], [7, *counted(0, 7, 1), *counted(8, 256, 1)]),
    ],
)
def test_units_in_order_each_once(given: Any, expected: list[int]) -> None:
    assert parse_units(given, 256, "conv3_1") == expected


@pytest.mark.parametrize("step", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("start", [0, 1, 9])
@pytest.mark.parametrize("stop", [10, 33, 64])
def test_ranges_as_counted_one_by_one(start: int, stop: int, step: int) -> None:
    assert parse_units(f"{start}:{stop}:{step}", 64, "layer") == counted(start, stop, step)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (-1, ["unit=-1", "0 to 255"]),
        (256, ["unit=256", "'conv3_1'", "0 to 255"]),
        ([3, 300], ["unit=300", "0 to 255"]),
        ("0:257", ["unit=0:257", "256 units", "257"]),
        ("5:5", ["unit=5:5", "no unit"]),
        ([], ["unit=[]", "no unit"]),
        ("", ["unit=", "all", "0:64"]),
        ("0:8:0", ["unit=0:8:0", "0:64"]),
        ("0:1:2:3", ["unit=0:1:2:3", "0:64"]),
        ("a:b", ["unit=a:b", "[13,22]"]),
        ("1.5", ["unit=1.5"]),
        (1.5, ["unit=1.5"]),
        (None, ["unit=None"]),
        (True, ["unit=True"]),
        ({"a": 1}, ["unit="]),
        ("13,22", ["unit=13,22", "[13,22]"]),
    ],
)
def test_units_that_are_none(given: Any, words: list[str]) -> None:
    with pytest.raises(FvlightError) as caught:
        parse_units(given, 256, "conv3_1")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [(3, int, 3), (3.0, int, 3), (-2, int, -2), (3, float, 3.0), (0.5, float, 0.5), (1e3, int, 1000)],
)
def test_numbers(value: Any, kind: Any, expected: Any) -> None:
    found = number({"key": value}, "key", kind)
    assert found == expected
    assert type(found) is kind


@pytest.mark.parametrize("value", ["3", "abc", None, True, math.nan, math.inf, -math.inf, [1], {"a": 1}])
@pytest.mark.parametrize("kind", [int, float])
def test_what_is_no_number(value: Any, kind: Any) -> None:
    with pytest.raises(FvlightError, match=r"solver\.lr=.*number is needed"):
        number({"lr": value}, "lr", kind, "solver.")


def test_a_fraction_is_no_whole_number() -> None:
    with pytest.raises(FvlightError, match=r"seed=0\.5: a whole number"):
        number({"seed": 0.5}, "seed", int)


def test_lists_of_numbers() -> None:
    assert numbers({"betas": [0.9, 1]}, "betas", 2) == (0.9, 1.0)
    assert numbers({"size": (4, 5.0)}, "size", 2, int) == (4, 5)


@pytest.mark.parametrize("value", [0.9, [0.9], [0.9, 0.9, 0.9], "ab", None, {"a": 1, "b": 2}])
def test_what_is_no_list_of_two(value: Any) -> None:
    with pytest.raises(FvlightError, match=r"solver\.betas=.*list of 2"):
        numbers({"betas": value}, "betas", 2, float, "solver.")


def test_the_entry_that_is_no_number_is_named() -> None:
    with pytest.raises(FvlightError, match=r"^betas=x: a number"):
        numbers({"betas": [0.9, "x"]}, "betas", 2)


# -- the norm ----------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Network:
    """Grey input scaled to 0-10: a photograph that is white everywhere has patches of norm 10 sqrt(h w)."""
    return Network(nn.Sequential(nn.Conv2d(1, 2, 3)), "tiny", InputSpace(channels=1, scale=10.0))


@pytest.fixture
def white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (9, 7), (255, 255, 255)).save(folder / "white.png")
    return folder


def config(norm: Any = None, images: Any = None, presets: Any = None, fraction: Any = 0.5) -> dict[str, Any]:
    return {
        "norm": norm,
        "images": images,
        "norm_fraction": fraction,
        "network": {"study": {"norms": presets}},
    }


def test_a_number_comes_before_photographs_and_preset(network: Network, white: Path) -> None:
    norm, origin = resolve_norm(config(8, white, {"0": 100.0}), network, "0", (3, 4))
    assert norm == 8 * 0.5
    assert "number" in origin
    assert "8" in origin


def test_photographs_come_before_the_preset(network: Network, white: Path) -> None:
    norm, origin = resolve_norm(config(None, str(white), {"0": 100.0}), network, "0", (3, 4))
    assert norm == pytest.approx(0.5 * 10 * math.sqrt(3 * 4), rel=1e-6)
    assert "1 photographs" in origin


def test_the_preset_comes_last(network: Network) -> None:
    norm, origin = resolve_norm(config(presets={"0": 100.0}, fraction=0.25), network, "0", (3, 4))
    assert norm == 25.0
    assert "preset of 0" in origin


@pytest.mark.parametrize("presets", [None, {}, {"other": 1.0}])
def test_without_any_the_error_says_what_to_give(network: Network, presets: Any) -> None:
    with pytest.raises(FvlightError) as caught:
        resolve_norm(config(presets=presets), network, "0", (3, 4))
    for word in ("'0'", "'tiny'", "images=FOLDER", "norm=NUMBER"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (config(norm=0), r"norm=0\.0: .*positive"),
        (config(norm=-3), r"norm=-3\.0: .*positive"),
        (config(norm="big"), "norm=big: a number"),
        (config(norm=1, fraction=0), r"norm_fraction=0\.0: must be positive"),
        (config(norm=1, fraction="half"), "norm_fraction=half: a number"),
    ],
)
def test_norms_that_are_none(network: Network, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(FvlightError, match=text):
        resolve_norm(settings, network, "0", (3, 4))


def vgg_norm(folder: Path, layer: str) -> tuple[float, float]:
    """The norm from photographs and from the authors' table, for VGG-19's input space and windows."""
    network = load_network("vgg19_normalised", "random")
    study = yaml.safe_load((CONF / "network" / "vgg19_normalised.yaml").read_text())["study"]
    size = receptive_field(network, layer).size
    settings = config(images=str(folder), presets=study["norms"])
    measured, _ = resolve_norm(settings, network, layer, size)
    return measured, study["norms"][layer] * 0.5


def test_norm_of_some_photographs_is_near_the_preset(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(photographs.glob("*.jpg"))[::30]:
        shutil.copy(path, some)
    measured, preset = vgg_norm(some, "conv3_1")
    assert measured == pytest.approx(preset, rel=0.1)


@pytest.mark.slow
def test_norm_of_all_photographs_is_near_the_preset(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured, preset = vgg_norm(photographs, "conv3_1")
    assert measured == pytest.approx(preset, rel=0.1)


def test_the_preset_belongs_to_a_layer_of_the_network() -> None:
    """The table names layers that exist, and norms grow with the windows (as the root of their area)."""
    network = load_network("vgg19_normalised", "random")
    norms = yaml.safe_load((CONF / "network" / "vgg19_normalised.yaml").read_text())["study"]["norms"]
    sides = {layer: receptive_field(network, layer).size[0] for layer in norms}
    pixel = {layer: norm / sides[layer] for layer, norm in norms.items()}
    assert max(pixel.values()) / min(pixel.values()) < 1.5
    assert torch.tensor(list(norms.values())).diff().gt(0).all()


@pytest.mark.parametrize("given", [None, "center", "mean", 0, -1, 17])
def test_positions_are_passed_on(given: Any) -> None:
    assert parse_position(given) == given


def test_a_position_in_a_map() -> None:
    assert parse_position([3, -1]) == (3, -1)


@pytest.mark.parametrize("given", ["centre", True, 1.5, [1], [1, 2, 3], ["a", 1], [True, 1]])
def test_what_is_no_position_is_named(given: Any) -> None:
    with pytest.raises(FvlightError, match=r"position=.*write center, mean, the number of a token, or \[row, column\]"):
        parse_position(given)
