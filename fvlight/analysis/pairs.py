"""Averages of pairs of images: does a unit respond to what lies between its templates? [C, Sec. 4.5]"""

from __future__ import annotations

import torch
from torch import Tensor


def pair_averages(images: Tensor) -> Tensor:
    """Averages of all pairs in pixel space, brought to the mean norm of the images they come from.

    Args:
        images: (..., n, C, H, W).

    Returns:
        (..., n (n - 1) / 2, C, H, W), pairs in lexicographic order.
    """
    n = images.shape[-4]
    first, second = torch.triu_indices(n, n, 1)
    averages = (images[..., first, :, :, :] + images[..., second, :, :, :]) / 2
    norm = images.flatten(-3).norm(dim=-1).mean(-1)[..., None, None, None, None]
    return averages * (norm / averages.flatten(-3).norm(dim=-1)[..., None, None, None])
