"""The critical space: which directions of the feature space images can tell of at all [R, Sec. 3.4, Algorithm 1].

Where ``vᵀ J = 0`` at *every* image (v = (1 … 1) if a softmax follows, v of one feature if that is dead), ``M⁻¹ v`` has
no gradient whatever the target was: it is the trivial answer to every inversion. T is the space of all such v, the
common co-kernel of the Jacobians, and the critical space C is its orthogonal complement. With ``M y`` restricted to C
(`inverse.predict`) what can be found of y is M⁻¹ P_C M y up to its length, see `identifiable`.

What counts as zero is a threshold τ, relative to the largest singular value of each Jacobian. `critical_spaces` finds
every space that some threshold gives, `choose_space` tells by known targets which one is right.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fvlight.analysis.inverse import Spectrum, angles
from fvlight.analysis.principal_angles import LARGEST_ANGLE, complement, intersect, principal_angles
from fvlight.errors import FvlightError, unknown

STATISTICS = ("median", "mean")
NOTHING = 1e-6  # what is shorter in C than this share of its length has no direction there: C is no more exact


@dataclass(frozen=True)
class CriticalSpace:
    """What every threshold ``lowest <= τ < highest`` gives.

    Attributes:
        basis: (n, m) orthonormal columns that span C.
        trivial: (n, n - m), those of T, as found amid the interval on a logarithmic scale: near its lower end noise
            still turns the space, where some of the Jacobians have only just all of its directions below the threshold.
    """

    basis: Tensor
    trivial: Tensor
    lowest: float
    highest: float


class Choice(NamedTuple):
    """What `choose_space` found.

    Attributes:
        space: the best one; None: all of R^n.
        angles: (1 + spaces, t) degrees, 0 to 90, within R^n first and then within each space; NaN where nothing of a
            target lies in it.
    """

    space: CriticalSpace | None
    angles: Tensor


def co_kernel(found: Spectrum, threshold: float) -> list[Tensor]:
    """For each of b Jacobians the left singular vectors (n, p_i) with ``s <= threshold · s_max``.

    Args:
        found: of J itself, not of M J, which has another co-kernel at each image: `inverse.spectrum` of Gram matrices,
            or `inverse.spectrum_of_rows`, with power 0. From Gram matrices values below √ε = 1.5e-8 of the largest
            (times about √n) are rounding, from rows those below 1e-15: no threshold tells anything below.
    """
    return [vectors[:, low] for vectors, low in zip(found.vectors, _ratios(found) <= threshold, strict=True)]


def critical_spaces(
    found: Spectrum, *, smallest: float = 1e-6, largest: float = 1e-2, largest_angle: float = LARGEST_ANGLE,
    coarse: int = 16, most: int = 16,
) -> list[CriticalSpace]:  # fmt: skip
    """Every critical space but R^n that a threshold from ``smallest`` to ``largest`` gives, each once.

    By nested intervals: those at whose ends T differs (in dimension, or by an angle beyond ``largest_angle``) are
    halved. T changes only where a threshold passes a ratio s / s_max of one of the Jacobians, so that the search goes
    over these numbers, and ends exactly.

    More vectors per Jacobian never make a single merging smaller, but what it gives may turn, so over several of them
    T neither grows steadily nor contains what it was. The search therefore begins with ``coarse`` intervals, of as many
    ratios each, and takes no order for granted; what it can miss is a space that comes and goes within one of them.

    Args:
        found: see `co_kernel`; the paper takes the Jacobians of 32 realizations.
        smallest: ratios up to this count as zero. The default is above the rounding of Gram matrices and of Jacobians
            in float32; for `spectrum_of_rows` in float64 it can be 1e-13.
        largest: a ratio beyond it is no near-zero.
        coarse: see above; as many as there are ratios is the full search.
        most: changes to look for, from the smallest threshold on. Each takes about log2 of the number of ratios
            intersections of b spaces, and where ``largest`` is no near-zero of this layer there are thousands.

    Raises:
        FvlightError: values that are not finite, a Jacobian that is zero, thresholds that are none.
    """
    if not 0 <= smallest <= largest < 1 or min(coarse, most) < 1:
        raise FvlightError(
            f"smallest={smallest}, largest={largest}, coarse={coarse}, most={most}: 0 <= smallest <= largest < 1, and "
            "coarse and most at least 1"
        )
    ratios = _ratios(found)
    thresholds = [smallest, *ratios[(ratios > smallest) & (ratios <= largest)].unique().tolist()]

    @functools.cache
    def at(index: int) -> Tensor:
        return intersect(co_kernel(found, thresholds[index]), largest_angle)

    changes = _changes(at, len(thresholds) - 1, coarse, largest_angle, most)
    spaces: list[CriticalSpace] = []
    for index, following in pairwise(changes):
        low, high = thresholds[index], thresholds[following] if following < len(thresholds) else largest
        middle = at(max(index, bisect.bisect_right(thresholds, math.sqrt(low * high)) - 1))
        trivial = middle if _same(middle, at(index), largest_angle) else at(index)
        if trivial.shape[1] and not any(_same(trivial, other.trivial, largest_angle) for other in spaces):
            spaces.append(CriticalSpace(critical_basis(trivial), trivial, low, high))
    return spaces


def _changes(at: Callable[[int], Tensor], last: int, coarse: int, largest_angle: float, most: int) -> list[int]:
    """Where runs of equal spaces begin, and where the last one of them ends.

    Args:
        at: the space of an index from 0 to ``last``.
        most: changes after which to stop.
    """
    marks = sorted({round(last * i / coarse) for i in range(coarse + 1)})
    intervals = list(pairwise(marks))[::-1]  # the lowest is taken first
    changes = [0]
    while intervals and len(changes) <= most:
        low, high = intervals.pop()
        if _same(at(low), at(high), largest_angle):
            continue
        if high - low == 1:
            changes.append(high)
        else:
            middle = (low + high) // 2
            intervals += [(middle, high), (low, middle)]
    return changes if len(changes) > most else [*changes, last + 1]


def critical_basis(trivial: Tensor) -> Tensor:
    """C = T⊥: orthonormal columns (n, n - m) for T (n, m); the features themselves where T is {0}.

    Raises:
        FvlightError: T is all of R^n.
    """
    if trivial.shape[0] == trivial.shape[1]:
        raise FvlightError(
            f"no direction of {len(trivial)} features is left in the critical space: take a smaller threshold"
        )
    return complement(trivial)


def choose_space(
    spaces: Sequence[CriticalSpace], predict: Callable[[Tensor | None], Tensor], targets: Tensor,
    m: Tensor | None = None, statistic: str = "median",
) -> Choice:  # fmt: skip
    """The space that predicts known targets best, R^n among them [R, Sec. 3.4]. Where two are equal the first is.

    Predictions and targets are compared within each space, see `projected_angles`, up to the sign: what lies outside
    is not to be found, and would hide by chance what is. In a space of one dimension all lines are equal: it is not
    chosen. The targets chosen by are not those to report.

    Args:
        predict: from a basis of C, or None for R^n, to predictions (t, n): `inverse.predict` on the realizations.
        targets: (t, n).
        m: (t, n, n), `inverse.scaling` of the responses; None for power 0, or for the paper's measure.
        statistic: ``median`` or ``mean`` of the angles over those targets that have one.

    Raises:
        FvlightError: predictions that are not finite; no angle at all.
    """
    if statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    found: list[Tensor] = []
    scores: list[float] = []
    for basis in (torch.eye(targets.shape[1]), *(space.basis for space in spaces)):
        predicted = predict(basis if found else None)
        if not bool(predicted.isfinite().all()):
            raise FvlightError("choose_space: a prediction is not finite; leave out realizations that have none")
        angle = projected_angles(predicted, targets, basis, m)
        found.append(torch.minimum(angle, 180 - angle))
        score = found[-1].nanquantile(0.5) if statistic == "median" else found[-1].nanmean()  # the middle two averaged
        scores.append(float(score) if basis.shape[1] > 1 and score.isfinite() else math.inf)
    best = scores.index(min(scores))
    if scores[best] == math.inf:
        raise FvlightError("choose_space: no prediction has an angle to its target: one of them is zero each time")
    return Choice(spaces[best - 1] if best else None, torch.stack(found))


def identifiable(targets: Tensor, m: Tensor, basis: Tensor) -> Tensor:
    """What an inversion within C can find of targets: M⁻¹ P_C M y, of unit length; NaN where y lies in M⁻¹ T.

    The rest of y is a shift along trivial answers, which changes nothing of the image.

    Args:
        targets: (b, n).
        m: (b, n, n), `inverse.scaling` of the responses.
        basis: (n, m) of C.
    """
    basis = basis.to(targets)
    within = basis @ _within(targets, basis, m)[..., None]
    return torch.nn.functional.normalize(torch.linalg.solve(m.to(targets), within)[..., 0], dim=-1)


def projected_angles(predicted: Tensor, targets: Tensor, basis: Tensor, m: Tensor | None = None) -> Tensor:
    """Degrees (b,) between predictions and targets (b, n), both projected onto C; NaN where nothing is left of one.

    With ``m`` (b, n, n) P_C M y is compared, which an inversion tells exactly; without it P_C y, the paper's
    measure, which it does not where k > 0: the length that is lost with the trivial part is not the same along the
    response as across.
    """
    basis = basis.to(targets)
    return angles(_within(predicted.to(targets), basis, m), _within(targets, basis, m))


def oriented(predicted: Tensor, m: Tensor, responses: Tensor, reference: Tensor) -> Tensor:
    """Predictions (b, n) within C with the sign that the response's way from a reference tells.

    The target's own sign has ``<y, yh> > 0``. What is identifiable of it need not: where yh has a large part in T (the
    same at all images), the trivial part of y may outweigh the rest. But the objective's gradient at the response is
    along M y, and an optimum lies further along it than responses in general do: ``<M y, yh - reference> > 0``, to
    which T contributes nothing.

    Args:
        m: (b, n, n), `inverse.scaling` of the responses.
        responses: (b, n).
        reference: (n,), a usual response: the mean over realizations, or over any images.
    """
    along = (m @ predicted[..., None])[..., 0] * (responses - reference)
    return torch.where(along.sum(-1, keepdim=True) < 0, -predicted, predicted)


def _within(vectors: Tensor, basis: Tensor, m: Tensor | None) -> Tensor:
    """Coordinates (b, m) in C of vectors (b, n), or of M times them; NaN where they vanish."""
    found = (vectors if m is None else (m.to(vectors) @ vectors[..., None])[..., 0]) @ basis
    small = torch.linalg.vector_norm(found, dim=-1) < NOTHING * torch.linalg.vector_norm(vectors, dim=-1)
    return torch.where(small[..., None], torch.nan, found)


def _ratios(found: Spectrum) -> Tensor:
    """``s / s_max`` (b, n) of each Jacobian."""
    if not len(found.values):
        raise FvlightError("no Jacobians: the critical space needs those of at least one realization")
    if not bool(found.values.isfinite().all() & found.vectors.isfinite().all()):
        raise FvlightError("the Jacobians' singular values or vectors are not finite: check that the parameters are")
    largest = found.values.amax(-1, keepdim=True)
    zero = (largest[:, 0] <= 0).nonzero()[:, 0].tolist()
    if zero:
        raise FvlightError(f"realization {zero[0]} has a Jacobian of zero, and no critical space: leave it out")
    return found.values / largest


def _same(a: Tensor, b: Tensor, largest_angle: float) -> bool:
    """Spaces of which a merging would keep every direction."""
    if a.shape != b.shape:
        return False
    return bool((torch.rad2deg(principal_angles(a, b).angles) < largest_angle).all())
