"""What a natural-image prior does to units' images [Cadena et al. 2018, Sec. 3], from runs with and without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fvlight.analysis.claims import Claim
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.indices import bootstrap
from fvlight.analysis.population import at_choice
from fvlight.network import Network

SOURCE = "fvlight's demand; Cadena 2018, Sec. 3"
KEPT = 0.9


def likelihood_per_pixel(result: DiverseResult) -> Tensor:
    """(U,) nats per pixel, mean of a unit's images at its chosen lambda; NaN where none was chosen."""
    assert result.log_likelihood is not None
    height, width = result.images.shape[-2:]
    return at_choice(result.log_likelihood.double().mean(2) / (height * width), result)


def natural_prior(results: Mapping[str, DiverseResult], networks: Mapping[str, Network]) -> list[Claim]:
    """From runs ``without`` and ``with_prior`` of the same units, both of which tell likelihoods."""
    without, prior = results["without"], results["with_prior"]
    before, after = likelihood_per_pixel(without), likelihood_per_pixel(prior)
    rise = bootstrap(np.mean, after - before)
    kept = at_choice(prior.relative_activation, prior)
    lost = bootstrap(np.mean, at_choice(prior.mean_activation, prior) / at_choice(without.mean_activation, without))
    bits = -1 / (3 * np.log(2))
    least = float(kept.nan_to_num(0).min())
    return [
        Claim(
            "With the prior units' images at the chosen lambda are likelier", SOURCE,
            f"log-likelihood per pixel, in nats, rises by {rise}, from {_mean(before):.2f} to {_mean(after):.2f}, that "
            f"is from {bits * _mean(before):.2f} to {bits * _mean(after):.2f} bits per dimension",
            "> 0, with its interval", rise.low > 0,
        ),
        Claim(
            f"With the prior every unit keeps {KEPT:g} of its own activation at lambda 0 at a chosen lambda", SOURCE,
            f"mean {bootstrap(np.mean, kept)}, worst {least:.3f}; activation with the prior over that without: {lost}",
            f">= {KEPT:g}", least >= KEPT,
        ),
    ]  # fmt: skip


def _mean(values: Tensor) -> float:
    return float(torch.nanmean(values))
