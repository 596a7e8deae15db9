"""The text of errors: one line with the value, near alternatives, or the list of them."""

from __future__ import annotations

import pytest

from fvlight import FvlightError
from fvlight.errors import did_you_mean, unknown

LAYERS = [f"conv{block}_{i}" for block in range(1, 6) for i in range(1, 5)]


@pytest.mark.parametrize("slip", ["conv31", "conv_3_1", "Conv3_1", "conv3_1 "])
def test_the_nearest_name_comes_first(slip: str) -> None:
    text = did_you_mean(slip, LAYERS)
    assert text.startswith("did you mean ")
    assert text.endswith("?")
    assert "'conv3_1'" in text


def test_only_the_single_near_name_is_suggested() -> None:
    assert did_you_mean("energycell", ["energy_cell", "vgg19", "corner"]) == "did you mean 'energy_cell'?"


def test_at_most_three_suggestions() -> None:
    assert did_you_mean("conv3_9", LAYERS).count("'") == 2 * 3


def test_without_a_near_name_all_are_listed() -> None:
    assert did_you_mean("zzz", ["alpha", "beta"]) == "there are: alpha, beta"


@pytest.mark.parametrize("count", [12, 13, 40])
def test_long_lists_are_cut_and_counted(count: int) -> None:
    names = [f"layer{i:02}" for i in range(count)]
    text = did_you_mean("zzz", names)
    assert all((name in text) == (i < 12) for i, name in enumerate(names))
    assert (f"{count} in all" in text) == (count > 12)


def test_no_alternatives_at_all() -> None:
    assert did_you_mean("conv", []) == "there are none"
    assert did_you_mean("conv", iter([])) == "there are none"


def test_unknown_names_the_kind_the_value_and_the_place() -> None:
    error = unknown("layer", "conv31", iter(LAYERS), "network 'vgg'")
    assert isinstance(error, FvlightError)
    assert str(error).startswith("no layer 'conv31' in network 'vgg': did you mean ")
    assert "\n" not in str(error)
    assert " in " not in str(unknown("layer", "conv31", ["conv3_1"]))


def test_values_that_are_no_text_are_shown_as_text() -> None:
    assert "'3'" in str(unknown("network", 3, [1, 2]))  # type: ignore[list-item]
