"""fvlight.analysis.population: claims about populations that are made up to hold, or not to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fvlight import FvlightError, Network
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.indices import combination_index
from fvlight.analysis.population import (
    LayerIndices,
    anticorrelation,
    chosen_images,
    diversity_gains,
    indices_of_layers,
    invariance_of_units,
    mixtures,
    residual_network,
    restarts,
    trade_off,
)
from fvlight.tasks import TextureResult
from fvlight.zoo.cells import Square


def result_with(gains: Tensor, kept: float = 0.95) -> DiverseResult:
    """Units (U,) that reach these gains at the second of three lambdas, the last that keeps their activation."""
    units = len(gains)
    relative = torch.tensor([1.0, kept, 0.5])
    distance = torch.stack([torch.ones(units), gains, 2 * gains], 1)
    return DiverseResult(
        units=list(range(units)), lambdas=[0.0, 1.0, 2.0],
        images=torch.arange(3.0)[None, :, None, None, None, None].expand(units, 3, 2, 1, 1, 1),
        activations=relative[None, :, None].expand(units, 3, 2), min_distance=distance, score=distance,
        steps=torch.ones(units, 3), status=[["converged"] * 3] * units, redrawn=torch.zeros(units, 3), threshold=0.9,
    )  # fmt: skip


def gains_of(median: float, spread: float, count: int = 60, seed: int = 0) -> Tensor:
    """Log-normal gains."""
    generator = torch.Generator().manual_seed(seed)
    return median * torch.exp(spread * torch.randn(count, generator=generator))


def test_gains_and_images_are_those_at_the_chosen_lambda() -> None:
    gains = gains_of(5, 0.5)
    result = result_with(gains)
    torch.testing.assert_close(diversity_gains(result), gains)
    assert bool((chosen_images(result) == 1).all())
    inactive = result_with(gains)
    inactive.activations = -inactive.activations
    assert bool(diversity_gains(inactive).isnan().all())
    assert bool((chosen_images(inactive) == 0).all())


@pytest.mark.parametrize(
    ("trained", "random", "hold"),
    [
        (gains_of(15, 0.8), gains_of(2, 0.3, seed=1), [True, True, True]),
        (gains_of(3, 0.8), gains_of(3, 0.8, seed=1), [False, False, False]),
        (gains_of(2, 0.3), gains_of(15, 0.8, seed=1), [False, False, False]),
    ],
)
def test_claims_hold_where_they_were_made_to(trained: Tensor, random: Tensor, hold: list[bool]) -> None:
    results = {"trained": result_with(trained), "random_0": result_with(random), "random_1": result_with(random + 0.1)}
    claims = invariance_of_units(results, {})
    assert [claim.holds for claim in claims] == hold
    assert f"{np.median(trained.numpy()):.2f} trained" in str(claims[2].measured)
    low = float(np.quantile(trained.numpy(), 0.05))
    assert f"gain {low:.3g} [" in str(claims[0].measured)


def test_a_grid_that_ends_too_early_decides_nothing() -> None:
    random = result_with(gains_of(2, 0.3, seed=1))
    random.activations = random.activations.clone()
    random.activations[:7, 2] = 0.95  # of 60
    claim = invariance_of_units({"trained": result_with(gains_of(15, 0.8)), "random_0": random}, {})[2]
    assert claim.holds is None
    assert "for 7 of 60 the largest lambda was chosen" in str(claim.measured)
    paper = dataclasses.replace(random, lambdas=[*random.lambdas[:-1], 20.48])  # there the definition of the gain ends
    assert invariance_of_units({"trained": result_with(gains_of(15, 0.8)), "random_0": paper}, {})[2].holds is True
    random.activations[0, 2] = 0.5
    assert invariance_of_units({"trained": result_with(gains_of(15, 0.8)), "random_0": random}, {})[2].holds is True


def test_without_random_weights_there_is_no_comparison() -> None:
    assert len(invariance_of_units({"trained": result_with(gains_of(15, 0.8))}, {})) == 2


def test_units_without_a_lambda_do_not_decide() -> None:
    """A unit that is silent, among many whose gains are large."""
    result = result_with(gains_of(15, 0.8))
    result.activations = result.activations.clone()
    result.activations[3] = 0
    assert diversity_gains(result).isnan().sum() == 1
    least, largest = invariance_of_units({"trained": result}, {})
    assert (least.holds, largest.holds) == (True, True)
    assert "over 59 units" in str(least.measured)
    assert "activations of 0.95 and more" in str(least.measured)


def test_the_trade_off_is_counted_step_by_step() -> None:
    """Three lambdas, two steps: of one unit in four the distance shrinks in the second."""
    result = result_with(gains_of(15, 0.8, count=40))
    holds = trade_off({"a": result}, {})
    assert [claim.holds for claim in holds] == [True] * 4
    assert "in 100.0% of" in str(holds[0].measured)
    assert str(holds[1].measured) == "40 of 40 units"
    result.min_distance = result.min_distance.clone()
    result.min_distance[::4, 2] = 0.5 * result.min_distance[::4, 1]
    shrinking = trade_off({"a": result}, {})[0]
    assert (shrinking.holds, "in 87.5% of" in str(shrinking.measured)) == (False, True)


@pytest.mark.parametrize(("slope", "holds"), [(-1.0, True), (0.0, False), (1.0, False)])
def test_the_indices_are_anticorrelated_or_not(slope: float, holds: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    one = torch.rand(64, generator=generator)
    other = slope * one + 0.3 * torch.rand(64, generator=generator)
    claim = anticorrelation(one, other, "conv3_1")
    assert claim.holds is holds
    rho = stats.spearmanr(one.numpy(), other.numpy()).statistic
    assert f"rho {rho:.3g} [" in str(claim.measured)


def test_the_indices_of_layers_come_from_pairs_of_runs() -> None:
    """A linear unit on the images' own plane; textures whose crops drive it half as much."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    images = torch.randn(2, 3, 6, 1, 5, 5)
    images /= images.flatten(3).norm(dim=3)[..., None, None, None]
    network, units = Network(module, "n"), [2, 0]
    with torch.no_grad():
        activations = torch.stack([module(images[u].flatten(0, 1))[:, unit].view(3, 6) for u, unit in enumerate(units)])
    relative = torch.tensor([1.0, 0.95, 0.2])
    scaled = activations[:, :1].abs() * relative[:, None]  # lambda 1 is chosen
    diverse = result_with(torch.tensor([3.0, 4.0]))
    diverse.units, diverse.images, diverse.activations, diverse.layer = units, images, scaled, "2"
    texture = TextureResult(units, torch.zeros(2, 1, 9, 9), 0.5 * scaled[:, 1:2, :4], torch.zeros(2), ["converged"] * 2)
    (found,) = indices_of_layers({"diverse_a": diverse, "texture_a": texture}, {"diverse_a": network})
    torch.testing.assert_close(found.shift, 0.5 * scaled[:, 1, :4].mean(1) / scaled[:, 1].mean(1))
    expected = combination_index(network, "2", images[:, 1], units)
    torch.testing.assert_close(found.combination, expected)
    texture.units = [2, 1]
    with pytest.raises(FvlightError, match="diverse_a and texture_a are of different units"):
        indices_of_layers({"diverse_a": diverse, "texture_a": texture}, {"diverse_a": network})


def test_a_residual_network_is_set_against_vgg() -> None:
    """Squared linear units: averages of images of one sign stay active, those of two signs do not."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 30, 5, bias=False)
    best = conv.weight.detach()[:, None, None]
    noise = 0.02 * best.norm() * torch.randn(30, 3, 6, 1, 5, 5)
    images, network = best + noise, Network(nn.Sequential(conv, Square()), "n")

    def runs(layer: str, gain: float, shift: float, seed: int) -> dict[str, object]:
        diverse = result_with(gains_of(gain, 0.3, 30, seed))
        diverse.images, diverse.layer = images, "1"
        level = shift * torch.exp(0.2 * torch.randn(30, generator=torch.Generator().manual_seed(seed)))
        activations = (0.95 * level)[:, None, None].expand(30, 4, 4)
        units, status = list(range(30)), ["converged"] * 30
        texture = TextureResult(units, torch.zeros(30, 1, 9, 9), activations, torch.zeros(30), status)
        return {f"diverse_{layer}": diverse, f"texture_{layer}": texture}

    def holds(vgg: tuple[float, float], residual: tuple[float, float]) -> list[bool | None]:
        results = runs("vgg_conv3_1", *vgg, seed=1)
        results |= runs("conv2_1", *residual, seed=2) | runs("conv2_2", *residual, seed=3)
        return [claim.holds for claim in residual_network(results, dict.fromkeys(results, network))]

    assert holds((8, 0.6), (3, 0.3)) == [True, True, True, True]
    assert holds((3, 0.3), (8, 0.6)) == [False, False, True, True]
    images = best * torch.tensor([1, -1] * 3)[:, None, None, None] + noise
    assert holds((8, 0.6), (3, 0.3))[2:] == [False, False]
    assert holds((8, 0.6), (1.2, 0.3))[2:] == [True, False]  # averages don't, but there is no gain


@pytest.mark.parametrize(("share", "dead", "hold"), [(0.99, 0, [True, True, True]), (0.97, 2, [False, True, False])])
def test_starts_are_compared_unit_by_unit(share: float, dead: int, hold: list[bool]) -> None:
    best = result_with(torch.ones(8))
    once = result_with(torch.ones(8))
    best.activations = best.activations * torch.arange(1.0, 9)[:, None, None]
    once.activations = best.activations * share
    once.activations[:dead] = 0
    three = result_with(torch.ones(8))
    three.activations = best.activations * 0.985
    results = {"once": once, "best_of_3": three, "best_of_20": best}
    assert [claim.holds for claim in restarts(results, {})] == hold


def test_triples_and_random_mixtures_beside_pairs() -> None:
    """Squared units: the fewer of a unit's images have its best one's sign, the less mixtures of any kind drive it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 24, 5, bias=False)
    best = conv.weight.detach()[:, None, None]
    shift = torch.linspace(-1, 3, 24)[:, None, None, None, None, None]  # from half and half to all of one sign
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[:, None, None, None] + shift
    images = signs * best + 0.05 * best.norm() * torch.randn(24, 3, 6, 1, 5, 5)
    images = images / images.flatten(3).norm(dim=3)[..., None, None, None]
    network, result = Network(nn.Sequential(conv, Square()), "n"), result_with(torch.full((24,), 3.0))
    result.images, result.layer = images, "1"
    pairs = combination_index(network, "1", images[:, 1], result.units)
    claim = mixtures(result, network, LayerIndices("a", result.units, pairs, pairs))
    triples = combination_index(network, "1", images[:, 1], result.units, size=3)
    rho = stats.spearmanr(pairs.numpy(), triples.numpy()).statistic
    assert claim.holds is True
    assert f"{np.median(pairs.numpy()):.2f} (pairs), {np.median(triples.numpy()):.2f} (triples)" in str(claim.measured)
    assert f"with pairs {rho:.3g} [" in str(claim.measured)
    assert mixtures(result, network, LayerIndices("a", result.units, pairs.flip(0), pairs)).holds is False
