"""Claims of Gruen et al. 2016 on results made up so that they hold, do not hold, or can't be told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from fvlight.analysis.claims import Claim
from fvlight.analysis.gruen2016 import CLAIMS, attribution_comparison
from fvlight.analysis.map_comparison import BASELINES, ENTRIES, MapQuality
from fvlight.application import CLAIMS as EVERY
from fvlight.attribution.methods import METHODS
from fvlight.errors import FvlightError
from tests.analysis.test_map_comparison import result

COUNT = 12
NOISE = np.random.default_rng(0).normal(0, 0.01, (len(ENTRIES), COUNT))


def made_up(correct: ArrayLike = (1.0,) * COUNT, **values: dict[str, float]) -> MapQuality:
    """By measure and method the mean over pictures; methods that are not named have 0.5. With a little noise."""
    measures = {}
    for name in ("share", "insertion", "grey_bias", "conservation", "bias_share"):
        given = values.get(name, {})
        levels = np.array([given.get(entry, 0.5) for entry in ENTRIES])[:, None]
        measures[name] = (levels + NOISE).tolist()
    return result(measures, list(ENTRIES), list(np.asarray(correct, dtype=float)))


def claims(**results: MapQuality) -> dict[str, Claim]:
    return {claim.claim: claim for claim in attribution_comparison(results, {})}


def of(found: dict[str, Claim], words: str) -> Claim:
    (claim,) = (claim for text, claim in found.items() if words in text)
    return claim


@pytest.mark.parametrize(("other", "holds"), [(0.4, True), (0.6, False)])
def test_guided_must_be_beyond_both(other: float, holds: bool) -> None:
    net = made_up(share={"guided": 0.5, "gradient": 0.3, "deconvnet": other})
    claim = of(claims(net=net), "net: guided backpropagation is more focused")
    assert claim.holds is holds
    assert "0.2" in str(claim.measured)


@pytest.mark.parametrize(("error", "holds"), [(0.02, True), (0.3, False)])
def test_relevance_is_conserved_to_five_per_cent(error: float, holds: bool) -> None:
    claim = of(claims(net=made_up(conservation={"lrp": error}, bias_share={"lrp": 0.25})), "relevance is conserved")
    assert claim.holds is holds
    assert "25%" in str(claim.measured)


@pytest.mark.parametrize(("random", "holds"), [(0.1, True), (0.5, None), (0.8, False)])
def test_grey_boxes_must_follow_grey_more_than_random_ones(random: float, holds: bool | None) -> None:
    net = made_up(grey_bias={"occlusion_grey": 0.5, "occlusion": random})
    if random == 0.5:  # an interval around 0, not a difference of exactly 0
        net.measures["grey_bias"][ENTRIES.index("occlusion")] += 0.02 * torch.arange(COUNT).cos()
    assert of(claims(net=net), "distance from grey").holds is holds


def test_an_order_must_beat_chance_and_the_middle() -> None:
    good: dict[str, float] = dict.fromkeys(ENTRIES, 0.8)
    base = {"random": 0.3, "central": 0.5}
    assert of(claims(net=made_up(insertion={**good, **base})), "order of pixels").holds is True
    assert of(claims(net=made_up(insertion={**good, **base, "gradient": 0.4})), "order of pixels").holds is False
    undecided = made_up(insertion={**good, **base})
    undecided.measures["insertion"][ENTRIES.index("lrp")] = math.nan
    assert of(claims(net=undecided), "order of pixels").holds is None


@pytest.mark.parametrize(("focused", "holds"), [("good", True), ("bad", False), ("neither", False)])
def test_focus_is_compared_in_the_order_of_errors(focused: str, holds: bool) -> None:
    high: dict[str, float] = dict.fromkeys(METHODS, 0.7)
    shares: dict[str, dict[str, Any]] = {name: {"share": high if name == focused else {}} for name in ("good", "bad")}
    few, many = [1.0] * 10 + [0.0] * 2, [1.0] * 5 + [0.0] * 7
    found = claims(bad=made_up(many, **shares["bad"]), good=made_up(few, **shares["good"]))
    claim = of(found, "lower error show more focused")
    assert claim.holds is holds
    assert "good (error 17%) beyond bad (58%)" in str(claim.measured)


def test_baselines_do_not_count_as_maps_of_a_network() -> None:
    few, many = [1.0] * 10 + [0.0] * 2, [1.0] * 5 + [0.0] * 7
    both = claims(good=made_up(few, share=dict.fromkeys(BASELINES, 0.9)), bad=made_up(many))
    assert of(both, "lower error").holds is False


def test_without_errors_or_methods_nothing_is_decided() -> None:
    unknown = made_up([math.nan] * COUNT)
    assert of(claims(one=unknown, other=unknown), "lower error").holds is None
    assert of(claims(one=made_up()), "lower error").holds is None
    alone = result({"share": [[0.5] * COUNT]}, ["gradient"], [1.0] * COUNT)
    assert len(claims(one=alone)) == 1


def test_errors_that_can_not_be_told_apart_decide_nothing() -> None:
    few, more = [1.0] * 6 + [0.0] * 6, [1.0] * 5 + [0.0] * 6 + [1.0]
    claim = of(claims(one=made_up(few), other=made_up(more, share=dict.fromkeys(METHODS, 0.9))), "lower error")
    assert claim.holds is None
    assert "can't be told apart" in str(claim.measured)


def test_other_pictures_can_not_be_compared() -> None:
    one, other = made_up(), made_up([0.0] * COUNT)
    other.pictures = [f"other {name}" for name in other.pictures]
    with pytest.raises(FvlightError, match="same pictures"):
        claims(one=one, other=other)


def test_the_claims_have_their_name() -> None:
    assert set(CLAIMS) == {"attribution_comparison"}
    assert EVERY["attribution_comparison"] is attribution_comparison
