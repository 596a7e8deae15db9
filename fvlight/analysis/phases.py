"""Phases of the images of a complex cell, and the gaps between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def phase_plane(filters: Tensor) -> Tensor:
    """An orthonormal basis (2, D) of the plane that Gabor filters of all phases span.

    Args:
        filters: (k, ...) filters of one Gabor at k >= 2 phases. The first filter lies at phase 0 of the basis.
    """
    flat = filters.flatten(1).double()
    basis = torch.linalg.svd(flat, full_matrices=False)[2][:2]
    first = basis @ flat[0]
    cosine, sine = (first / first.norm()).tolist()
    return torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64) @ basis


def phases(images: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Phases in degrees [0, 360) and the share of each image's norm that lies in the plane.

    Args:
        images: (..., C, H, W).
        basis: (2, C · H · W) from `phase_plane`.

    Returns:
        Two tensors (...).
    """
    flat = images.flatten(-3).double()
    coordinates = flat @ basis.T
    angle = torch.atan2(coordinates[..., 1], coordinates[..., 0]).rad2deg() % 360
    return angle, coordinates.norm(dim=-1) / flat.norm(dim=-1)


def circular_gaps(degrees: Tensor) -> Tensor:
    """Gaps between neighbouring angles around the circle: (..., n) to (..., n), ascending angles; they sum to 360."""
    ordered = degrees.sort(-1).values
    return torch.diff(torch.cat([ordered, ordered[..., :1] + 360], -1), dim=-1)


def largest_cluster(degrees: Tensor, width: float = 20.0) -> int:
    """The most angles (n,) that lie within an arc of ``width`` degrees."""
    ahead = (degrees[None, :] - degrees[:, None]) % 360
    return int((ahead <= width).sum(1).max())


def in_plane_images(basis: Tensor, shape: tuple[int, ...], count: int) -> Tensor:
    """Unit-norm images (count, *shape) whose phases are spread evenly over the circle, the first at 0; float32."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return (torch.stack([angles.cos(), angles.sin()], 1) @ basis).float().view(count, *shape)
