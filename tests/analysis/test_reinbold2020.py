"""fvlight.analysis.reinbold2020: claims on results that are made up to hold, or not to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvlight import InputSpace, Network
from fvlight.analysis.inverse import angles
from fvlight.analysis.reinbold2020 import (
    TOWARD,
    always_accurate,
    inverted_layer,
    known_angles,
    measures,
    robustness,
    ssim,
    suffixes,
)
from fvlight.analysis.targets import random_targets
from fvlight.tasks import InverseResult, RealizationResult

COUNT, FEATURES, SIDE = 30, 12, 16
NETWORK = Network(nn.Identity(), "made up", InputSpace(3))


def turned(vectors: Tensor, degrees: float, seed: int) -> Tensor:
    """Unit vectors so many degrees away from the given ones."""
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    across = nn.functional.normalize(noise - (noise * vectors).sum(1, keepdim=True) * vectors, dim=1)
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return vectors * angle.cos() + across * angle.sin()


def images(noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(COUNT, 3, SIDE, SIDE, generator=generator)
    return (base + noise * torch.randn(base.shape, generator=generator)).clamp(0, 1)


def runs(predicted: float, response: float = 40.0, suffix: str = "") -> dict[str, Any]:
    """A realization and its inversion; the first target is silent."""
    targets = random_targets(COUNT, FEATURES, 0)
    responses = turned(targets, response, 1)
    responses[0] = 0
    status, zeros = ["max_steps"] * COUNT, torch.zeros(COUNT)
    realized = RealizationResult(targets, zeros, images(0), responses, zeros, status)
    inverted = InverseResult(
        [str(i) for i in range(COUNT)], zeros, images(0), turned(targets, predicted, 2), responses,
        torch.zeros(COUNT, FEATURES), zeros, zeros, torch.ones(COUNT, FEATURES, dtype=torch.bool),
        torch.zeros(COUNT, FEATURES), status, targets=targets,
    )  # fmt: skip
    return {f"realize{suffix}": realized, f"invert{suffix}": inverted}


def further(noise: dict[str, float]) -> dict[str, Any]:
    empty = torch.zeros(COUNT, FEATURES)
    return {
        f"again_{name}": RealizationResult(empty, empty, images(level), empty, empty, ["max_steps"] * COUNT)
        for name, level in noise.items()
    }


def test_angles_are_those_made_and_the_silent_target_has_none() -> None:
    found = known_angles(runs(7.0))
    for name, degrees in (("predicted", 7.0), ("predicted_living", 7.0), ("response", 40.0)):
        assert bool(found[name][0].isnan())
        torch.testing.assert_close(found[name][1:], torch.full((COUNT - 1,), degrees, dtype=torch.float64))
    assert float(found["random"][1:].median()) > 30


@pytest.mark.parametrize(("predicted", "hold"), [(5.0, [True, True]), (20.0, [False, True]), (60.0, [False, False])])
def test_claims_about_angles(predicted: float, hold: list[bool]) -> None:
    claims = inverted_layer(runs(predicted), {"realize": NETWORK})
    assert [claim.holds for claim in claims] == hold
    assert f"median angle {predicted:.3g} " in str(claims[0].measured)


def test_claims_about_noise_and_similarity() -> None:
    results = runs(10.0)
    results["invert_noise"] = runs(4.0)["invert"]
    levels = dict(zip(TOWARD, (0.02, 0.02, 0.2, 0.4), strict=True))
    claims = inverted_layer(results | further(levels), {"realize": NETWORK})
    assert [claim.holds for claim in claims[2:]] == [True, True, True]
    assert "falls by 6 [6, 6]" in str(claims[2].measured)
    results["invert_noise"] = runs(14.0)["invert"]
    worse = dict(zip(TOWARD, (0.02, 0.4, 0.2, 0.4), strict=True))
    claims = inverted_layer(results | further(worse), {"realize": NETWORK})
    assert [claim.holds for claim in claims[2:]] == [False, False, False]


def test_the_other_rule_is_compared_and_is_no_condition_of_its_own() -> None:
    results = runs(4.0) | {"invert_smallest": runs(10.0)["invert"]}
    assert suffixes(results | {"invert_small": None}) == ["", "_small"]
    (claim,) = inverted_layer(results, {"realize": NETWORK})[2:]
    assert claim.holds
    assert "falls by 6 [6, 6]" in str(claim.measured)
    found = measures(results, {"realize": NETWORK})["angles"]
    assert found["predicted_smallest"][1] == pytest.approx(10.0)
    assert found["predicted"][1] == pytest.approx(4.0)


def test_similarity_is_one_of_equal_images_and_falls_with_noise() -> None:
    found = [float(ssim(images(0), images(level)).mean()) for level in (0.0, 0.05, 0.3)]
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[0] > found[1] > found[2]


def test_measures_have_a_row_per_target() -> None:
    results = runs(7.0) | further(dict.fromkeys(TOWARD, 0.1))
    found = measures(results, {"realize": NETWORK})
    assert set(found["angles"]) == {"predicted", "predicted_living", "response", "random"}
    assert set(found["ssim"]) == set(TOWARD)
    assert found["angles"]["predicted"][0] is None
    assert found["angles"]["predicted"][1] == pytest.approx(7.0)
    assert found["silent_targets"] == [0]
    assert all(len(values) == COUNT for part in (found["angles"], found["ssim"]) for values in part.values())


def test_robustness_is_that_of_the_worst_condition() -> None:
    good = runs(3.0, suffix="_k2_mean_16") | runs(8.0, suffix="_k2_mean_64")
    assert [claim.holds for claim in robustness(good, {})] == [True]
    plain = runs(30.0, suffix="_k0_mean_16") | runs(40.0, suffix="_k0_mean_64")
    assert [claim.holds for claim in robustness(good | plain, {})] == [True, True]
    bad = runs(30.0, suffix="_k2_mean_16") | runs(3.0, suffix="_k0_mean_16")
    assert [claim.holds for claim in robustness(bad, {})] == [False, False]


def test_srnet_is_accurate_under_both_powers_or_not() -> None:
    good = runs(3.0, suffix="_k2") | runs(8.0, suffix="_k0")
    (claim,) = always_accurate(good, {})
    assert claim.holds
    assert "(k0)" in str(claim.measured)
    assert not always_accurate(good | runs(12.0, suffix="_k0"), {})[0].holds


def test_turned_turns() -> None:
    targets = random_targets(COUNT, FEATURES, 0)
    assert float((angles(turned(targets, 33.0, 3), targets) - 33).abs().max()) < 1e-9
