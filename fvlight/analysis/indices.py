"""Numbers that describe a unit: how it takes shifts, averages and other changes of what drives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fvlight.analysis.combinations import convex_combinations, random_weights, subset_averages
from fvlight.network import Network
from fvlight.readout import Readout


@torch.no_grad()
def read_units(readout: Readout, images: Tensor, units: list[int], at_once: int = 512) -> Tensor:
    """Activations (U, k) of images (U, k, C, H, W), each read by its row's unit of the readout's first layer."""
    which = torch.tensor(units, device=images.device).repeat_interleave(images.shape[1])
    parts = []
    for x, u in zip(images.flatten(0, 1).split(at_once), which.split(at_once), strict=True):
        value = readout(x, u)
        parts.append(value if isinstance(value, Tensor) else value[0])
    return torch.cat(parts).view(images.shape[:2])


def combination_index(
    network: Network, layer: str, images: Tensor, units: list[int], *, size: int = 2, random: int = 0, seed: int = 0,
    readout: Readout | None = None,
) -> Tensor:  # fmt: skip
    """The linear-combination index (U,) [C, Sec. 4.5]: the averages' mean activation over the images' own.

    1 where a unit likes the averages of its images as well as the images: what they share is what drives it; near 0
    where it is invariant to which of them it sees, but not to a mixture.

    Args:
        images: (U, n, C, H, W), of one norm each.
        size: averages of all subsets of so many; the paper's are pairs.
        random: instead, so many random convex combinations.
        readout: windowed, its first layer this one, where one has been made already.
    """
    readout = readout or Readout(network, layer)
    if random:
        mixed = convex_combinations(images, random_weights(images.shape[1], random, seed))
    else:
        mixed = subset_averages(images, size)
    return read_units(readout, mixed, units).mean(1) / read_units(readout, images, units).mean(1)


def shift_index(texture_activation: Tensor, template_activation: Tensor) -> Tensor:
    """The shift-invariance index (U,) [C, Sec. 4.4]: mean activation of a texture's crops over that of templates.

    Args:
        texture_activation: (U, P, Q) of all windowed crops of each unit's texture.
        template_activation: (U, n) of its diverse images at the chosen lambda.
    """
    return texture_activation.flatten(1).mean(1) / template_activation.mean(1)


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval; ``count``: of the units that it was computed over."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] over {self.count} units"


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor | NDArray[np.float64], paired: bool = True,
    confidence: float = 0.95, resamples: int = 5000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """A statistic of units with a percentile bootstrap interval over units; units with a number that is no number
    are left out.

    Args:
        statistic: of one array per sample.
        samples: (U,) each; of several, the same units where ``paired``, else each resampled by itself.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if paired:
        good = np.logical_and.reduce([np.isfinite(array) for array in arrays])
        arrays = [array[good] for array in arrays]
    else:
        arrays = [array[np.isfinite(array)] for array in arrays]
    count = min(len(array) for array in arrays)
    if count < 2:
        value = float(statistic(*arrays)) if count else float("nan")
        return Estimate(value, float("nan"), float("nan"), count)
    found = stats.bootstrap(
        arrays, statistic, paired=paired, vectorized=False, method="percentile", confidence_level=confidence,
        n_resamples=resamples, rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(float(statistic(*arrays)), float(found.low), float(found.high), count)


def local_dimension(images: Tensor) -> Tensor:
    """How many directions the images of each unit differ in: (U, n, C, H, W) to (U,), from 1 to n - 1.

    The participation ratio ``(sum s²)² / sum s⁴`` of the singular values s of their differences from the mean.
    """
    centred = (images - images.mean(1, keepdim=True)).flatten(2).double()
    squares = torch.linalg.svdvals(centred).square()
    return squares.sum(1).square() / squares.square().sum(1)
