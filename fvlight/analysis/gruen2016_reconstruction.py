"""Claims about input reconstruction [Mahendran & Vedaldi 2015; Gruen et al. 2016], measured on an experiment's runs.

Runs are known by their names: that of a layer, in the order of the network, `free_LAYER` without priors, and
`featurevis_LAYER` with FeatureVis's solver and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from fvlight.analysis.claims import Claim
from fvlight.network import Network
from fvlight.priors import TotalVariation

Results = Mapping[str, Any]
Networks = Mapping[str, Network]
PAPER = "Mahendran & Vedaldi 2015"
FREE, FEATUREVIS = "free_", "featurevis_"
NEAR = 0.1  # relative error, not squared
DEMANDED = "inception3b"


def by_depth(results: Results) -> dict[str, Any]:
    """The runs of plain layers, in their order."""
    return {name: result for name, result in results.items() if not name.startswith((FREE, FEATUREVIS))}


def reconstruction_depth(results: Results, networks: Networks) -> list[Claim]:
    """What layers keep, and what the priors are for."""
    layers = by_depth(results)
    claims = [_met(layers), _falls(layers)] if len(layers) > 1 else [_met(layers)]
    for name, result in results.items():
        layer = name.partition("_")[2]
        if name.startswith(FREE) and layer in layers:
            claims.append(_priors_needed(layer, layers[layer], result, networks[name]))
        if name.startswith(FEATUREVIS):
            claims.append(_too_short_steps(layer, result))
    return claims


def _met(layers: Results) -> Claim:
    """Optimisation finds an image that the layer takes for the picture."""
    worst = {name: float(result.errors.max()) for name, result in layers.items()}
    found = worst.get(DEMANDED)
    return Claim(
        f"{DEMANDED}: reconstructions have a relative error below {NEAR:g} (not squared)",
        "fvlight's demand; FeatureVis, reconstruction",
        "largest over pictures: " + ", ".join(f"{name} {value:.3f}" for name, value in worst.items()),
        f"< {NEAR:g}",
        None if found is None else found < NEAR,
    )


def _falls(layers: Results) -> Claim:
    """The deeper a layer, the less its reconstruction looks like the picture."""
    values = torch.stack([result.ssim for result in layers.values()])  # (layers, pictures)
    order = range(len(values))
    ranks = [float(stats.spearmanr(order, column).statistic) for column in values.T.tolist()]
    means = ", ".join(f"{name} {float(row.mean()):.2f}" for name, row in zip(layers, values, strict=True))
    finite = bool(values.isfinite().all())
    return Claim(
        "The deeper the layer, the less a reconstruction resembles the picture pixel by pixel",
        f"{PAPER}, Fig. 6",
        f"rank correlation of depth and SSIM over {len(ranks)} pictures {min(ranks):.2f} to {max(ranks):.2f}; mean "
        f"SSIM {means}",
        "every rank correlation <= -0.7",
        max(ranks) <= -0.7 if finite else None,
    )


def roughness(images: Tensor, network: Network) -> Tensor:
    """Total variation (t,) of images as photographs in [0, 1], per pixel."""
    return -TotalVariation(1)(network.input_space.to_rgb(images)) / images[0, 0].numel()


def _priors_needed(layer: str, kept: Any, free: Any, network: Network) -> Claim:
    """Without the priors an image as near to the layer's value is less like a photograph."""
    rough = [roughness(images, network) for images in (kept.images, free.images, kept.originals)]
    gain = float((rough[1] / rough[0]).min())
    loss = kept.ssim - free.ssim
    return Claim(
        f"{layer}: without Lp and total variation reconstructions are noisier and less like the picture",
        f"{PAPER}, Sec. 3; FeatureVis",
        f"total variation {float(rough[1].mean() / rough[2].mean()):.1f} times the pictures' instead of "
        f"{float(rough[0].mean() / rough[2].mean()):.1f}; SSIM lower by {float(loss.min()):.2f} to "
        f"{float(loss.max()):.2f}; relative error {float(free.errors.mean()):.3f} instead of "
        f"{float(kept.errors.mean()):.3f} (means)",
        "more total variation and less SSIM on every picture",
        gain > 1 and float(loss.min()) > 0,
    )


def _too_short_steps(layer: str, result: Any) -> Claim:
    """Ours: FeatureVis's rule has no step size, and the gradient of a relative error is tiny."""
    return Claim(
        f"{layer}: FeatureVis's solver (100 steps of momentum without a step size) leaves the start where it is",
        "fvlight, of FeatureVis's code",
        f"relative error {float(result.errors.min()):.2f} to {float(result.errors.max()):.2f}",
        ">= 0.9: nothing is rebuilt",
        float(result.errors.min()) >= 0.9,
    )


CLAIMS: dict[str, Callable[[Results, Networks], list[Claim]]] = {"reconstruction_depth": reconstruction_depth}
