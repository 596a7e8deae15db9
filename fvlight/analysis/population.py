"""Claims about many units at once, each a statistic with a bootstrap interval over units [Cadena et al. 2018]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fvlight.analysis.claims import Claim, MissingRun
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.indices import Estimate, bootstrap, combination_index, shift_index
from fvlight.errors import FvlightError
from fvlight.network import Network

LEAST = 0.05  # the share of units that "the least invariant" are
MIXTURES = 32  # random convex combinations per unit
LARGEST_LAMBDA = 20.48  # of the paper's grid
INVARIANT = (2.0, 0.5)  # our reading of "invariant to phase": gain at least, linear-combination index at most


def at_choice(values: Tensor, result: DiverseResult) -> Tensor:
    """A figure (U, L) of each unit at its chosen lambda: (U,), NaN where none was chosen."""
    nan = torch.tensor(float("nan"), dtype=values.dtype)
    return torch.stack([nan if k is None else values[u, k] for u, k in enumerate(result.selected)])


def chosen_images(result: DiverseResult) -> Tensor:
    """The images (U, n, C, H, W) at each unit's chosen lambda; those at lambda 0 where none was chosen."""
    return torch.stack([result.images[u, k or 0] for u, k in enumerate(result.selected)])


def diversity_gains(result: DiverseResult) -> Tensor:
    """Normalised diversity (U,) [C, Fig. 5]: smallest distance at the chosen lambda over that at lambda 0."""
    return at_choice(result.diversity_gain, result)


def invariance_of_units(results: Mapping[str, DiverseResult], networks: Mapping[str, Network]) -> list[Claim]:
    """Figs. 4 and 5, from a run `trained` and runs `random_…` of the same units with random weights."""
    others = [result for name, result in results.items() if name.startswith("random")]
    claims = gain_claims(results["trained"])
    if others:
        claims.append(_against_random(results["trained"], others))
    return claims


def gain_claims(result: DiverseResult) -> list[Claim]:
    """Fig. 5B: how much more diverse a layer's units become."""
    gains = diversity_gains(result)
    kept = at_choice(result.relative_activation, result)
    kept = kept[kept.isfinite()].amin() if kept.isfinite().any() else torch.tensor(float("nan"))
    least = bootstrap(lambda values: float(np.quantile(values, LEAST)), gains)
    largest = gains.nan_to_num(0).max()
    return [
        Claim(
            f"Even the least invariant units (lowest {LEAST:.0%}) are twice as diverse at the chosen lambda",
            "Cadena 2018, Fig. 5B", f"gain {least}, at activations of {float(kept):.2f} and more",
            "gain >= 2, activation >= 0.9", least.value >= 2 and bool(kept >= 0.9),
        ),
        Claim(
            "The most invariant ones gain up to a hundredfold",
            "Cadena 2018, Fig. 5B", f"largest gain {float(largest):.1f}, median {bootstrap(np.median, gains)}",
            "largest gain of the order of 100 (30 to 300)", bool(30 <= largest <= 300),
        ),
    ]  # fmt: skip


def trade_off(results: Mapping[str, DiverseResult], networks: Mapping[str, Network]) -> list[Claim]:
    """Figs. 4 and 5B, from one run of many units."""
    (result,) = results.values()
    chosen = sum(k is not None and k > 0 for k in result.selected)
    rising = result.min_distance.diff(dim=1) > -0.02 * result.min_distance[:, 1:]
    falling = result.mean_activation.diff(dim=1) < 0.02 * result.mean_activation[:, :1]
    share = float((rising & falling).double().mean())
    return [
        Claim(
            "Larger lambdas buy diversity with activation: along the grid the one rises and the other falls",
            "Cadena 2018, Fig. 4", f"in {share:.1%} of the steps of all units, up to 2 %", ">= 90 %", share >= 0.9,
        ),
        Claim(
            "Units have a lambda above 0 at which they keep nine tenths of their activation",
            "Cadena 2018, Fig. 4", f"{chosen} of {len(result.units)} units", ">= 90 %",
            chosen >= 0.9 * len(result.units),
        ),
        *gain_claims(result),
    ]  # fmt: skip


def _against_random(result: DiverseResult, others: Sequence[DiverseResult]) -> Claim:
    """The ratio of the medians; the two sets of units are resampled each by itself.

    Random weights have other activations, and other lambdas suit them: where a grid ends before them, and before the
    paper's, their gains are lower bounds, and nothing is decided.
    """
    trained, random = diversity_gains(result), torch.cat([diversity_gains(other) for other in others])
    at_end = sum(k == len(other.lambdas) - 1 for other in others for k in other.selected)
    whole = all(other.lambdas[-1] >= LARGEST_LAMBDA for other in others)
    found = bootstrap(ratio_of_medians, trained, random, paired=False)
    return Claim(
        "Units with random weights are clearly less invariant",
        "Cadena 2018, Sec. 4.2, Fig. 5",
        f"median gain {median(trained):.2f} trained, {median(random):.2f} random "
        f"({len(others)} seeds; for {at_end} of {len(random)} the largest lambda was chosen); ratio {found}",
        "ratio of the medians > 1, its interval above 1",
        found.low > 1 if at_end <= 0.1 * len(random) or whole else None,
    )


@dataclass(frozen=True)
class LayerIndices:
    """The two indices of a layer's units, (U,) each: linear combination, shift invariance; NaN without a lambda.

    ``layer`` is what its two runs are named by: the X of `diverse_X` and `texture_X`.
    """

    layer: str
    units: list[int]
    combination: Tensor
    shift: Tensor


def indices_of_layers(results: Mapping[str, Any], networks: Mapping[str, Network]) -> list[LayerIndices]:
    """From runs `diverse_X` and `texture_X` of the same units, for every X that has both, in their order.

    Raises:
        MissingRun: no X has both.
        FvlightError: the two are of different units.
    """
    found = []
    for name, diverse in results.items():
        kind, _, which = name.partition("_")
        if kind != "diverse" or f"texture_{which}" not in results:
            continue
        texture, network = results[f"texture_{which}"], networks[name]
        if diverse.units != texture.units:
            raise FvlightError(f"runs diverse_{which} and texture_{which} are of different units: give both the same")
        chosen = torch.tensor([k is not None for k in diverse.selected])
        templates = torch.stack([diverse.activations[u, k or 0] for u, k in enumerate(diverse.selected)])
        combination = combination_index(network, diverse.layer, chosen_images(diverse), diverse.units)
        shift = shift_index(texture.activations, templates)
        combination, shift = (index.where(chosen, float("nan")) for index in (combination, shift))
        found.append(LayerIndices(which, diverse.units, combination, shift))
    if not found:
        raise MissingRun("texture_X beside its diverse_X")
    return found


def shifts_and_averages(results: Mapping[str, Any], networks: Mapping[str, Network]) -> list[Claim]:
    """Fig. 8, from runs `diverse_X` and `texture_X`, of one layer each."""
    layers = indices_of_layers(results, networks)
    claims = []
    for one in layers:
        claims.append(anticorrelation(one.combination, one.shift, one.layer))
        claims.append(mixtures(results[f"diverse_{one.layer}"], networks[f"diverse_{one.layer}"], one))
    if len(layers) > 1:
        first, last = layers[0], layers[-1]
        found = bootstrap(fall, first.shift, last.shift, paired=False)
        means = ", ".join(f"{one.layer} {float(one.shift.nanmean()):.2f}" for one in layers)
        claims.append(
            Claim(
                f"The shift-invariance index falls from {first.layer} to {last.layer}",
                "Cadena 2018, Fig. 8", f"means {means}; fall {found}", "a fall, its interval above 0", found.low > 0,
            )
        )  # fmt: skip
    return claims


def median(values: Tensor) -> float:
    """Of the units that have a number; between the two middle ones where there are two."""
    return float(np.nanmedian(values))


def fall(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """By how much the mean of the second sample is below the first's."""
    return float(np.mean(one) - np.mean(other))


def ratio_of_medians(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The first sample's over the second's."""
    return float(np.median(one) / np.median(other))


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's."""
    return float(stats.spearmanr(one, other).statistic)


def anticorrelation(combination: Tensor, shift: Tensor, where: str) -> Claim:
    """Fig. 8: what likes averages of its images is not invariant to shifts, and the other way round."""
    found: Estimate = bootstrap(rank_correlation, combination, shift)
    return Claim(
        f"Linear-combination and shift-invariance index are anticorrelated over the units of {where}",
        "Cadena 2018, Fig. 8", f"Spearman's rho {found}", "rho < 0, its interval below 0", found.high < 0,
    )  # fmt: skip


def mixtures(result: DiverseResult, network: Network, layer: LayerIndices) -> Claim:
    """Beyond the paper: averages of three images and random mixtures of all of them beside averages of pairs."""
    images, pairs = chosen_images(result), layer.combination
    known = pairs.isfinite()
    medians, ranks = [f"{median(pairs):.2f}"], []
    for size, random in ((3, 0), (2, MIXTURES)):
        index = combination_index(network, result.layer, images, layer.units, size=size, random=random)
        index = index.where(known, float("nan"))
        medians.append(f"{median(index):.2f}")
        ranks.append(bootstrap(rank_correlation, pairs, index))
    return Claim(
        f"Averages of three images, and random mixtures of all, order units of {layer.layer} as averages of pairs do",
        "beyond the paper",
        f"median indices {medians[0]} (pairs), {medians[1]} (triples), {medians[2]} (random); "
        f"Spearman's rho with pairs {ranks[0]}, {ranks[1]}",
        "both rho >= 0.8", min(rank.value for rank in ranks) >= 0.8,
    )  # fmt: skip


def residual_network(results: Mapping[str, Any], networks: Mapping[str, Network]) -> list[Claim]:
    """Fig. 10: the layers of a residual network, from runs `diverse_X` and `texture_X`, against `…_vgg_conv3_1`."""
    indices = indices_of_layers(results, networks)
    (reference, *layers) = indices
    (gains_reference, *gains) = [diversity_gains(results[f"diverse_{one.layer}"]) for one in indices]
    every_gain, where = torch.cat(gains), ", ".join(one.layer for one in layers)
    shift, combination = (torch.cat([getattr(one, key) for one in layers]) for key in ("shift", "combination"))
    gain = bootstrap(ratio_of_medians, every_gain, gains_reference, paired=False)
    lower = bootstrap(fall, reference.shift, shift, paired=False)
    averages = bootstrap(np.median, combination)
    invariant = ((every_gain >= INVARIANT[0]) & (combination <= INVARIANT[1])).double()
    share = bootstrap(np.mean, invariant.where(every_gain.isfinite(), float("nan")))
    medians = ", ".join(f"{one.layer} {median(g):.2f}" for one, g in zip(layers, gains, strict=True))
    means = ", ".join(f"{one.layer} {float(one.shift.nanmean()):.2f}" for one in layers)
    return [
        Claim(
            f"Units of ResNet-50 ({where}) gain less diversity than VGG-19's conv3_1",
            "Cadena 2018, Sec. 5, Fig. 10",
            f"median gains {medians}; VGG-19 {median(gains_reference):.2f}; ratio of the medians {gain}",
            "ratio < 1, its interval below 1", gain.high < 1,
        ),
        Claim(
            "Their shift-invariance indices are lower",
            "Cadena 2018, Fig. 10",
            f"means {means}; VGG-19 {float(reference.shift.nanmean()):.2f}; fall {lower}",
            "a fall, its interval above 0", lower.low > 0,
        ),
        Claim(
            f"Hardly any of them is invariant to phase (gain >= {INVARIANT[0]:g}, and averages of pairs of its images "
            f"keep at most {INVARIANT[1]:g} of the activation)",
            "Cadena 2018, Sec. 5", f"share of units {share}", "<= 0.1", share.value <= 0.1,
        ),
        Claim(
            "Averages of pairs of their images stay highly active",
            "Cadena 2018, Fig. 10", f"median linear-combination index {averages}", ">= 0.8, its interval above 0.8",
            averages.low > 0.8,
        ),
    ]  # fmt: skip


def restarts(results: Mapping[str, DiverseResult], networks: Mapping[str, Network]) -> list[Claim]:
    """Quality of the optima at lambda 0, from runs `once`, `best_of_3` and `best_of_20` of the same units."""
    once, three, best = (results[name].mean_activation[:, 0] for name in ("once", "best_of_3", "best_of_20"))
    dead = int((~(once > 0)).sum())
    return [
        _reaches("one start reaches", once / best),
        _reaches("the best of three starts reaches", three / best),
        Claim("No unit ends dead", "optimisation", f"{dead} of {len(once)} units", "0", dead == 0),
    ]


def _reaches(words: str, shares: Tensor) -> Claim:
    return Claim(
        f"At lambda 0 {words} the best of twenty", "optimisation",
        f"share of its activation, mean of units {bootstrap(np.mean, shares)}; worst "
        f"{float(shares.nan_to_num(0).min()):.3f}",
        ">= 0.98", bool(shares.nanmean() >= 0.98),
    )  # fmt: skip
