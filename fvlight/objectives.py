"""From activations to one score per problem [C, Eqs. 1 and 2]. Every function keeps the axis of problems."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fvlight.errors import FvlightError, unknown


class Convention(NamedTuple):
    """How a score is put together: the paper's equations and the authors' code differ.

    Attributes:
        name: ``paper`` or ``code``.
        mean_activation: average the activations over the images of a problem, rather than sum them.
        rms_distance: root mean squared difference of features, rather than its L2 norm.

    A lambda of the paper's convention is the code's times ``n / sqrt(D)`` for n images and D features.
    """

    name: str
    mean_activation: bool
    rms_distance: bool


CONVENTIONS = {
    "paper": Convention("paper", mean_activation=False, rms_distance=False),
    "code": Convention("code", mean_activation=True, rms_distance=True),
}


def convention_named(name: str) -> Convention:
    """`CONVENTIONS[name]`, or an error with the alternatives."""
    if name not in CONVENTIONS:
        raise unknown("convention", name, CONVENTIONS)
    return CONVENTIONS[name]


def pair_distances(features: Tensor, convention: Convention) -> Tensor:
    """Distances of all pairs of images: (b, n, D) to (b, n (n - 1) / 2), pairs in lexicographic order.

    Differences are formed before squaring: two nearly equal images keep their distance to full precision.
    """
    images, dimension = features.shape[1:]
    norms = [torch.linalg.vector_norm(features[:, i, None] - features[:, i + 1 :], dim=-1) for i in range(images - 1)]
    if not norms:
        raise FvlightError("images_per_problem=1: a distance needs at least two images")
    return torch.cat(norms, 1) / _scale(dimension, convention)


def _scale(dimension: int, convention: Convention) -> float:
    """What an L2 norm over so many features is divided by."""
    return math.sqrt(dimension) if convention.rms_distance else 1.0


def min_pair_distance(features: Tensor, convention: Convention) -> Tensor:
    """The smallest distance between two of a problem's images: (b, n, D) to (b,) [C, Eq. 2].

    Differentiable (once) in the closest pair alone, which is a subgradient. Where two images coincide every unit
    vector is one: a fixed arbitrary direction is taken, so that they can part again (a zero gradient would end all
    diversity, since no other pair is pushed while theirs is the smallest distance).
    """
    return _MinPairDistance.apply(features, convention)  # type: ignore[no-any-return]


class _MinPairDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, convention: Convention) -> Tensor:
        distances = pair_distances(features, convention)
        closest = distances.nan_to_num(nan=math.inf).argmin(1)
        pairs = torch.triu_indices(features.shape[1], features.shape[1], 1, device=features.device)[:, closest]
        ctx.save_for_backward(features, pairs)
        ctx.convention = convention
        return distances.gather(1, closest[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, pairs = ctx.saved_tensors
        problem, (first, second) = torch.arange(len(features), device=features.device), pairs
        difference = features[problem, first] - features[problem, second]
        norm = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        unit = torch.where(norm > 0, difference / norm, _direction(features.shape[2]).to(difference))
        push = unit * (gradient / _scale(features.shape[2], ctx.convention))[:, None]
        images = torch.arange(features.shape[1], device=features.device)
        sign = (images == first[:, None]).to(push) - (images == second[:, None]).to(push)
        return sign[..., None] * push[:, None], None


@functools.lru_cache(maxsize=8)
def _direction(dimension: int) -> Tensor:
    """An arbitrary unit vector (dimension,), the same at every call."""
    direction = torch.randn(dimension, generator=torch.Generator().manual_seed(0))
    return direction / direction.norm()


def diverse_score(
    activations: Tensor,
    min_distance: Tensor,
    lambdas: Tensor,
    convention: Convention,
    log_prior: Tensor | None = None,
) -> Tensor:
    """What diverse feature visualization maximises, one number per problem [C, Eq. 1].

    ``sum_i y_i + lambda min_{i<j} d(x_i, x_j) + alpha sum_i log P(x_i)``; in the code's convention the activations
    are averaged, but the log-likelihoods are still summed, as in the authors' code.

    Args:
        activations: (b, n).
        min_distance, lambdas: (b,).
        log_prior: (b, n), already multiplied by alpha; None for no prior.
    """
    drive = activations.mean(1) if convention.mean_activation else activations.sum(1)
    score = drive + lambdas * min_distance
    return score if log_prior is None else score + log_prior.sum(1)


def direction_score(responses: Tensor, targets: Tensor, power: float = 2, floor: float = 0.1) -> Tensor:
    """How far responses reach along target objectives: ``<yh, y> cos(yh, y)^power``, (b,) [R, Sec. 2].

    Where the cosine is above the floor the gradient with respect to ``yh`` is ``c^k M_k y`` exactly, with
    ``M_k = (k + 1) I - k yh yh' / |yh|²`` and c the cosine. Below it the factor is the constant ``floor^k``: the
    gradient points along y, the way out of responses that are orthogonal to the target or away from it, where powers
    of the cosine itself have saddle points (even k), or rise towards -y (odd k).

    Args:
        responses: (b, n) feature responses yh. Those of zero score 0, with the gradient of the floor.
        targets: (b, n) target objectives y, of unit length.
        power: k, the paper's is lost; 0 gives ``<yh, y>``.
        floor: the cosine is never taken for less, in [0, 1). Lucid's is 0.1; at 0 a response that points away from its
            target has no gradient. Lucid also adds 1e-4 to both lengths, which the gradient's closed form would not
            survive: lengths are clamped instead, and only where they are zero.
    """
    if not power >= 0 or not 0 <= floor < 1:
        raise FvlightError(f"power={power}, floor={floor} of the cosine: power 0 or more, floor from 0 to below 1")
    projections = (responses * targets).sum(1)
    lengths = torch.linalg.vector_norm(responses, dim=1).clamp_min(torch.finfo(responses.dtype).tiny)
    return projections * (projections / lengths).clamp_min(floor).pow(power)
