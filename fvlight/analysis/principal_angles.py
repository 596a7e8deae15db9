"""Principal angles between subspaces, and their intersection where it is only nearly one [R, Algorithm 1].

A subspace of R^n is a matrix (n, p) of orthonormal columns, float64; p = 0 is the space {0}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.errors import FvlightError

LARGEST_ANGLE = 45.0  # degrees; the paper's number is lost. At 90 only orthogonal directions are left out.


class PrincipalAngles(NamedTuple):
    """Between spaces of p and q dimensions, m = min(p, q).

    Attributes:
        angles: (m,), radians, ascending.
        left, right: (n, m), the principal vectors: an orthonormal column of each space per angle, and orthogonal to
            all columns of the other space but its own.
    """

    angles: Tensor
    left: Tensor
    right: Tensor


def principal_angles(a: Tensor, b: Tensor) -> PrincipalAngles:
    """Accurate at both ends [Knyazev & Argentati 2002, Alg. 3.1].

    Cosines, the singular values of AᵀB, tell nothing of angles below 1e-8, nor of planes whose angles differ by less.
    Within what is nearer than 45 degrees the sines do: the singular values of ``B - A AᵀB``.

    Args:
        a, b: (n, p), (n, q), orthonormal columns.

    Raises:
        FvlightError: of different n, or not finite.
    """
    if a.shape[0] != b.shape[0] or not bool(a.isfinite().all() & b.isfinite().all()):
        raise FvlightError(f"spaces of shape {tuple(a.shape)}, {tuple(b.shape)}: give finite bases of as many features")
    y, cosines, z = torch.linalg.svd(a.mT @ b, full_matrices=False)
    left, right = a @ y, b @ z.mT
    near = int((cosines.square() > 0.5).sum())
    inner = left[:, :near].mT @ right[:, :near]
    _, sines, w = torch.linalg.svd(right[:, :near] - left[:, :near] @ inner, full_matrices=False)
    turn = w.flip(0).mT
    lengths = torch.linalg.vector_norm(inner @ turn, dim=0)  # the cosines again, in the order of the sines
    return PrincipalAngles(
        torch.cat([torch.atan2(sines.flip(0), lengths), torch.acos(cosines[near:])]),
        torch.cat([left[:, :near] @ (inner @ turn / lengths), left[:, near:]], 1),
        torch.cat([right[:, :near] @ turn, right[:, near:]], 1),
    )


def merge(
    a: Tensor, weight_a: float, b: Tensor, weight_b: float, largest_angle: float = LARGEST_ANGLE
) -> tuple[Tensor, float]:
    """What two spaces nearly have in common, and its weight [R, Algorithm 1].

    Each pair of principal vectors nearer than ``largest_angle`` (degrees) gives one direction, on the great circle from
    the left to the right one at ``weight_b / (weight_a + weight_b)`` of the way (SLERP). They are orthonormal, as
    the pairs lie in planes that are orthogonal to each other.
    """
    if not 0 < largest_angle <= 90:
        raise FvlightError(f"largest_angle={largest_angle} of spaces to be merged: above 0, up to 90 degrees")
    angles, left, right = principal_angles(a, b)
    keep = angles < math.radians(largest_angle)
    angles, share = angles[keep], weight_b / (weight_a + weight_b)

    def part(t: float) -> Tensor:  # sin(t θ) / sin θ, which is t at θ = 0
        return t * torch.sinc(t * angles / math.pi) / torch.sinc(angles / math.pi)

    return part(1 - share) * left[:, keep] + part(share) * right[:, keep], weight_a + weight_b


def intersect(spaces: Sequence[Tensor], largest_angle: float = LARGEST_ANGLE) -> Tensor:
    """What all spaces nearly have in common, (n, m): merged by a balanced binary tree in the order given.

    Every space has weight 1. Merging is not associative where spaces only nearly coincide, and the paper's order is
    lost; in a tree each of k spaces goes through log2 k mergings at most, and none is treated unlike the others.
    """
    if not spaces:
        raise FvlightError("no spaces to intersect: give at least one")
    if any(space.shape[1] == 0 for space in spaces):
        return spaces[0][:, :0]
    return _intersect(spaces, largest_angle)[0]


def _intersect(spaces: Sequence[Tensor], largest_angle: float) -> tuple[Tensor, float]:
    if len(spaces) == 1:
        return spaces[0], 1.0
    half = (len(spaces) + 1) // 2
    first, second = _intersect(spaces[:half], largest_angle), _intersect(spaces[half:], largest_angle)
    return merge(*first, *second, largest_angle)


def complement(space: Tensor) -> Tensor:
    """Orthonormal columns (n, n - m) that are orthogonal to a space (n, m); the features themselves for {0}."""
    n, m = space.shape
    if m == 0:
        return torch.eye(n).to(space)
    return torch.linalg.qr(space, mode="complete")[0][:, m:]
