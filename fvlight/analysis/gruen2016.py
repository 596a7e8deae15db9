"""Claims of Gruen et al. 2016 about maps of attribution, and what it leaves open, measured on pictures.

Each measured difference is paired by picture; an interval around 0 decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from fvlight.analysis.claims import Claim
from fvlight.analysis.indices import Estimate, bootstrap
from fvlight.analysis.map_comparison import BASELINES, GREY, RESAMPLES, MapQuality, mean_difference
from fvlight.attribution.methods import METHODS
from fvlight.errors import FvlightError
from fvlight.network import Network

PAPER = "Gruen 2016"


def attribution_comparison(results: Mapping[str, MapQuality], networks: Mapping[str, Network]) -> list[Claim]:
    """What the paper says, and what it leaves open, over networks; each about the methods that were compared."""
    claims = []
    for run, result in results.items():
        claims += [claim for claim in (guided_is_focused(run, result), relevance_is_conserved(run, result)) if claim]
        claims += [claim for claim in (grey_is_biased(run, result), orders_tell(run, result)) if claim]
    return claims + error_and_focus(results)


def _difference(result: MapQuality, one: str, other: str, name: str) -> Estimate:
    """The first method's measure beyond the second's, paired by picture."""
    return bootstrap(mean_difference, result.of(one, name), result.of(other, name), resamples=RESAMPLES)


def _verdict(found: Sequence[Estimate]) -> bool | None:
    """True where all intervals are above 0, False where one is not above it at all; between these undecided."""
    if any(one.high <= 0 for one in found):
        return False
    return True if all(one.low > 0 for one in found) else None


def guided_is_focused(run: str, result: MapQuality) -> Claim | None:
    """Guided backpropagation is sharper than the two methods it combines."""
    if not {"guided", "gradient", "deconvnet"} <= set(result.entries):
        return None
    found = [_difference(result, "guided", other, "share") for other in ("gradient", "deconvnet")]
    return Claim(
        f"{run}: guided backpropagation is more focused than gradient and deconvnet",
        f"{PAPER}, Sec. 4",
        f"share of the mass in 10 % of the pixels: beyond the gradient's by {_of(found[0])}, the deconvnet's by "
        f"{_of(found[1])}",
        "both differences > 0, their intervals above 0",
        _verdict(found),
    )


def relevance_is_conserved(run: str, result: MapQuality) -> Claim | None:
    """The shares of relevance propagation add up to the unit's value, but for what biases take."""
    if "lrp" not in result.entries:
        return None
    found = bootstrap(np.median, result.of("lrp", "conservation"), resamples=RESAMPLES)
    return Claim(
        f"{run}: relevance is conserved but for what biases absorb",
        f"{PAPER}, Sec. 4; Bach et al. 2015",
        f"conservation error, the median: {_of(found)}; biases took {mean_of(result, 'lrp', 'bias_share'):.0%}",
        "< 5 %",
        found.value < 0.05 if found.count else None,
    )


def grey_is_biased(run: str, result: MapQuality) -> Claim | None:
    """A grey box finds what is not grey, a random one less so."""
    if not {"occlusion", GREY} <= set(result.entries):
        return None
    found = _difference(result, GREY, "occlusion", "grey_bias")
    return Claim(
        f"{run}: maps of random boxes follow the picture's distance from grey less than those of a constant grey box",
        f"{PAPER}, Sec. 3",
        f"rank correlation with that distance: {mean_of(result, GREY):.2f} grey, {mean_of(result, 'occlusion'):.2f} "
        f"random; difference {_of(found)}",
        "a difference > 0, its interval above 0",
        _verdict([found]),
    )


def mean_of(result: MapQuality, entry: str, name: str = "grey_bias") -> float:
    """Over the pictures that have a number."""
    return float(result.of(entry, name).nanmean())


def orders_tell(run: str, result: MapQuality) -> Claim | None:
    """Beyond the paper: maps put pixels into an order that tells more of the unit than chance or the middle do."""
    methods = [entry for entry in result.entries if entry not in BASELINES]
    if not methods or not set(BASELINES) <= set(result.entries):
        return None
    chance = [_difference(result, entry, "random", "insertion") for entry in methods]
    middle = [_difference(result, entry, "central", "insertion") for entry in methods]
    texts = [
        f"{entry} {one.value:+.2f} / {other.value:+.2f}"
        for entry, one, other in zip(methods, chance, middle, strict=True)
    ]
    return Claim(
        f"{run}: every method's order of pixels drives the unit sooner than a random order and than a centred Gaussian",
        "beyond the paper; Petsiuk et al. 2018",
        "insertion area beyond chance / beyond the Gaussian: " + ", ".join(texts),
        "all differences > 0, their intervals above 0",
        _verdict([*chance, *middle]),
    )


def error_and_focus(results: Mapping[str, MapQuality]) -> list[Claim]:
    """Over networks of known error, which need to have seen the same pictures.

    A map's focus is its share of the mass in a tenth of the pixels, the mean over methods. With few networks a rank
    correlation says little: neighbours in the order of errors are compared, picture by picture. Where two errors can't
    be told apart on these pictures nothing is decided.
    """
    known = {run: result for run, result in results.items() if not np.isnan(result.error)}
    order = sorted(known, key=lambda run: known[run].error)
    pairs = list(pairwise(order))
    if any(known[one].pictures != known[other].pictures for one, other in pairs):
        raise FvlightError("claims over networks need the same pictures in all of them: give all runs the same images")
    found, errors = [], []
    for one, other in pairs:
        right = (known[run].correct for run in (one, other))
        errors.append(bootstrap(mean_difference, *right, resamples=RESAMPLES))
        methods = [e for e in known[one].entries if e in known[other].entries and e in METHODS]
        shares = [torch.stack([known[run].of(entry, "share") for entry in methods]).nanmean(0) for run in (one, other)]
        found.append(bootstrap(mean_difference, *shares, resamples=RESAMPLES))
    texts = [
        f"{one} (error {known[one].error:.0%}) beyond {other} ({known[other].error:.0%}) by {_of(estimate)}"
        + ("" if _verdict([error]) else ", whose errors can't be told apart")
        for (one, other), estimate, error in zip(pairs, found, errors, strict=True)
    ]
    return [
        Claim(
            "Networks with a lower error show more focused maps",
            f"{PAPER}, Sec. 5",
            "share of the mass in 10 % of the pixels, mean over methods: " + "; ".join(texts)
            if texts
            else "fewer than two networks whose error on these pictures can be told",
            "differences > 0, their intervals above 0",
            _verdict(found) if found and _verdict(errors) else None,
        )
    ]  # fmt: skip


def _of(found: Estimate) -> str:
    """An estimate over pictures."""
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}] over {found.count} pictures"


CLAIMS = {"attribution_comparison": attribution_comparison}
