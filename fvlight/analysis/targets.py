"""Target objectives: unit vectors over a layer's features, nonnegative and of uniform sparseness [R, Sec. 3.1].

Whether the authors project onto a sparseness or draw until it fits is not known: here it is Hoyer's projection (2004,
*Non-negative matrix factorization with sparseness constraints*, `projfunc.m`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fvlight.errors import FvlightError


def hoyer_sparseness(vectors: Tensor) -> Tensor:
    """``(√n - |y|₁ / |y|₂) / (√n - 1)``, (..., n) to (...): 1 of a single feature, 0 of a constant, NaN of zero."""
    root = math.sqrt(_features(vectors.shape[-1]))
    return (root - vectors.abs().sum(-1) / torch.linalg.vector_norm(vectors, dim=-1)) / (root - 1)


def project_to_sparseness(vectors: Tensor, sparseness: Tensor) -> Tensor:
    """The nearest nonnegative unit vectors of a given sparseness, (t, n), by Hoyer's `projfunc`.

    In turn, on the entries that are not yet zero: onto the plane of the wanted sum, from the mean along the rest of the
    vector onto the sphere, negative entries to zero. Hoyer finds the step onto the sphere as the root of a quadratic;
    the rest sums to 0 and so is orthogonal to the mean, which gives it without cancellation.

    Args:
        vectors: (t, n), float64 where the sparseness shall be exact to 1e-15.
        sparseness: (t,), 0 to 1.

    Raises:
        FvlightError: a sparseness that is none, or a vector whose largest entries are equal and can't be parted.
    """
    n = _features(vectors.shape[1])
    if not bool(((sparseness >= 0) & (sparseness <= 1)).all()) or not bool(vectors.isfinite().all()):
        raise FvlightError("project_to_sparseness: give finite vectors, and a sparseness from 0 to 1 for each")
    total = (math.sqrt(n) - sparseness * (math.sqrt(n) - 1))[:, None]  # the L1 norm of a unit vector
    found, active = vectors, torch.ones_like(vectors, dtype=torch.bool)
    for _ in range(n):
        count = active.sum(1, keepdim=True)
        mean = total / count
        rest = torch.where(active, found - found.sum(1, keepdim=True) / count, 0)
        rest = torch.where(active, rest - rest.sum(1, keepdim=True) / count, 0)  # again: nearly equal entries cancel
        missing = (1 - total.square() / count).clamp(min=0)  # squared length that the rest shall have
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        equal = length <= 16 * torch.finfo(found.dtype).eps * torch.linalg.vector_norm(found, dim=1, keepdim=True)
        if bool((equal & (missing > 1e-12)).any()):
            raise FvlightError("project_to_sparseness: a vector's largest entries are equal, no direction is nearest")
        step = torch.where(equal, 0, missing.sqrt() / length)
        found = torch.where(active, mean + step * rest, 0)
        done = (found >= 0).all(1, keepdim=True)
        if bool(done.all()):
            break
        active &= done | (found > 0)
        found = torch.where(active, found, 0)
    return found


def random_targets(count: int, features: int, seed: int) -> Tensor:
    """Targets (count, n), float64, their sparseness uniform in (0, 1).

    Each has a seed of its own: it depends on ``seed`` and its row, not on how many there are.
    """
    if count < 0:
        raise FvlightError(f"count={count} of random targets: 0 or more")
    starts, sparseness = torch.empty(count, _features(features), dtype=torch.float64), torch.empty(count).double()
    for row in range(count):
        name = f"{seed}|target|{row}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big"))
        sparseness[row] = torch.rand((), generator=generator, dtype=torch.float64)
        starts[row] = torch.rand(features, generator=generator, dtype=torch.float64)
    return project_to_sparseness(starts, sparseness)


def canonical_targets(indices: Sequence[int], features: int) -> Tensor:
    """Targets (len(indices), n), float64, of single features: 1 at the feature, 0 elsewhere."""
    wrong = [index for index in indices if not 0 <= index < features]
    if wrong:
        raise FvlightError(f"feature {wrong[0]} of a canonical target: there are 0 to {features - 1}")
    return torch.eye(features, dtype=torch.float64)[list(indices)]


def _features(count: int) -> int:
    if count < 2:
        raise FvlightError(f"features={count}: sparseness is defined for 2 or more")
    return count
