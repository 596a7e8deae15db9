"""Between a unit's images: does it respond to their averages? [C, Sec. 4.5]"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from fvlight.errors import FvlightError


def subset_averages(images: Tensor, size: int = 2) -> Tensor:
    """Averages of all subsets of ``size`` images in pixel space, brought to the images' mean norm.

    Args:
        images: (..., n, C, H, W).
        size: 2 for pairs (15 of 6 images), 3 for triples (20).

    Returns:
        (..., n over size, C, H, W), subsets in lexicographic order.
    """
    n = images.shape[-4]
    if not 1 <= size <= n:
        raise FvlightError(f"size={size}: subsets of {n} images have 1 to {n}")
    members = torch.tensor(list(combinations(range(n), size)))
    weights = torch.zeros(len(members), n, dtype=torch.float64).scatter_(1, members, 1 / size)
    return convex_combinations(images, weights)


def random_weights(images: int, count: int, seed: int = 0) -> Tensor:
    """Weights (count, images) spread evenly over the simplex: positive, summing to 1."""
    generator = torch.Generator().manual_seed(seed)
    exponential = -torch.rand(count, images, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()
    return exponential / exponential.sum(1, keepdim=True)


def convex_combinations(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted averages in pixel space, brought to the mean norm of the images they come from.

    Args:
        images: (..., n, C, H, W).
        weights: (k, n).

    Returns:
        (..., k, C, H, W).
    """
    flat = images.flatten(-3)
    mixed = weights.to(flat) @ flat
    norm = flat.norm(dim=-1).mean(-1)[..., None, None]
    mixed = mixed * (norm / mixed.norm(dim=-1, keepdim=True))
    return mixed.unflatten(-1, images.shape[-3:])
