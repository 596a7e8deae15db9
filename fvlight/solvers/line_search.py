"""Line searches for a batch of problems, each at its own stage: Moré & Thuente's, advanced all at once by masks.

Moré & Thuente 1994, *Line search algorithms with guaranteed sufficient decrease*, ACM TOMS 20, 286-307, in the form
of MINPACK-2's ``dcsrch`` and ``dcstep``, which L-BFGS-B uses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHRUNK = 0.66  # a bracket that two trials have not shrunk to this share is halved instead
NEAREST, FARTHEST = 1.1, 4.0  # an extrapolation goes so many times the last stride beyond the trial


class Rules(NamedTuple):
    """Constants of the strong Wolfe conditions, the narrowest relative bracket, and how many trials a search has."""

    decrease: float
    curvature: float
    bracket: float
    trials: int


class Line(NamedTuple):
    """The state of b searches along φ(step) = f(x + step · direction); every entry is (b,) float64.

    ``value`` and ``slope`` are those at 0, ``step`` is the trial and ``best`` the best step so far. Once
    ``bracketed`` (1, else 0), a minimum lies between ``best`` and ``other``. ``second`` is 1 after Moré & Thuente's
    first stage, ``lower`` and ``upper`` bound the next trial, ``width`` and ``width_before`` are those of the last
    two brackets, and ``trials`` counts evaluations.
    """

    value: Tensor
    slope: Tensor
    step: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    other: Tensor
    other_value: Tensor
    other_slope: Tensor
    lower: Tensor
    upper: Tensor
    width: Tensor
    width_before: Tensor
    bracketed: Tensor
    second: Tensor
    trials: Tensor


def begin(value: Tensor, slope: Tensor, step: Tensor) -> Line:
    """Searches from φ(0) = ``value`` with φ'(0) = ``slope`` < 0, whose first trial is ``step``; all (b,) float64."""
    zero, wide = torch.zeros_like(step), torch.full_like(step, math.inf)
    here = (zero, value, slope)
    return Line(value, slope, step, *here, *here, zero, step + FARTHEST * step, wide, wide, zero, zero, zero)


def advance(line: Line, value: Tensor, slope: Tensor, rules: Rules) -> tuple[Line, Tensor, Tensor]:
    """Take in φ and φ' at the trial of every search.

    Args:
        line: the searches.
        value: (b,) φ(step), in the number type it was computed in. Sufficient decrease is judged at that type's
            resolution; otherwise no search close to a minimum in float32 could end well.
        slope: (b,) φ'(step), float64.
        rules: constants.

    Returns:
        The searches with their next trial, and two (b,) bool: where the trial just judged is accepted, and where
        the search has failed. A trial is accepted when the strong Wolfe conditions hold. At a kink of φ they may
        hold nowhere: as in L-BFGS-B, sufficient decrease is then enough, once the bracket is as narrow as
        ``rules.bracket``.
    """
    bracketed, narrow = line.bracketed.bool(), _narrow(line, rules)
    stuck = bracketed & ((line.step <= line.lower) | (line.step >= line.upper) | narrow)
    enough = value <= (line.value + rules.decrease * line.slope * line.step).to(value.dtype)
    wolfe = enough & (slope.abs() <= -rules.curvature * line.slope)
    accepted = wolfe | (stuck & enough)

    value = value.double()
    line = line._replace(trials=line.trials + 1, second=torch.where(enough & (slope >= 0), 1, line.second))
    # In the first stage a lower value without sufficient decrease is interpolated on φ(step) - decrease · φ'(0) · step.
    tilt = torch.where(line.second.bool() | (value > line.best_value) | enough, 0, rules.decrease * line.slope)
    line = _refine(line, value, slope, tilt)

    bracketed = line.bracketed.bool()
    width = (line.other - line.best).abs()
    halved = line.best + 0.5 * (line.other - line.best)
    step = torch.where(bracketed & (width >= SHRUNK * line.width_before), halved, line.step)
    stride = step - line.best
    line = line._replace(
        step=step,
        width_before=torch.where(bracketed, line.width, line.width_before),
        width=torch.where(bracketed, width, line.width),
        lower=torch.where(bracketed, torch.minimum(line.best, line.other), step + NEAREST * stride),
        upper=torch.where(bracketed, torch.maximum(line.best, line.other), step + FARTHEST * stride),
    )
    # Where nothing is left between the ends, the next trial is the last: the best step so far, if there is one.
    spent = bracketed & ((step <= line.lower) | (step >= line.upper) | _narrow(line, rules))
    line = line._replace(step=torch.where(spent, line.best, step))
    hopeless = (line.step <= 0) | ~line.step.isfinite()
    return line, accepted, ~accepted & (stuck | hopeless | (line.trials >= rules.trials))


def _narrow(line: Line, rules: Rules) -> Tensor:
    return line.upper - line.lower <= rules.bracket * line.upper


def _refine(line: Line, value: Tensor, slope: Tensor, tilt: Tensor) -> Line:
    """``dcstep``: the next trial from the newest one, and the interval with a minimum made smaller."""
    bracketed, step, best, other = line.bracketed.bool(), line.step, line.best, line.other
    f, d = value - tilt * step, slope - tilt
    f_best, d_best = line.best_value - tilt * best, line.best_slope - tilt
    f_other, d_other = line.other_value - tilt * other, line.other_slope - tilt

    higher = f > f_best
    turned = ~higher & (d.sign() * d_best.sign() < 0)
    flatter = ~higher & ~turned & (d.abs() < d_best.abs())
    bound = torch.where(step > best, line.upper, line.lower)

    # 1: a higher value. The cubic step where it is nearer the best step, or halfway to the quadratic one.
    cubic, _ = _cubic(best, f_best, d_best, step, f, d)
    quadratic = best + d_best / ((f_best - f) / (step - best) + d_best) / 2 * (step - best)
    near = (cubic - best).abs() <= (quadratic - best).abs()
    first = torch.where(near, cubic, cubic + (quadratic - cubic) / 2)
    # 2: slopes of opposite sign. The cubic or the secant step, whichever is farther from the trial.
    cubic, extrapolates = _cubic(step, f, d, best, f_best, d_best)
    secant = step + d / (d - d_best) * (best - step)
    second = torch.where((cubic - step).abs() > (secant - step).abs(), cubic, secant)
    # 3: a flatter slope of the same sign. The cubic counts only if it has a minimum beyond the trial.
    cubic = torch.where(extrapolates, cubic, bound)
    nearer = torch.where((cubic - step).abs() < (secant - step).abs(), cubic, secant)
    farther = torch.where((cubic - step).abs() > (secant - step).abs(), cubic, secant)
    limit = step + SHRUNK * (other - step)
    inside = torch.where(step > best, torch.minimum(limit, nearer), torch.maximum(limit, nearer))
    third = torch.where(bracketed, inside, torch.minimum(torch.maximum(farther, line.lower), line.upper))
    # 4: a slope of the same sign that is no flatter.
    fourth = torch.where(bracketed, _cubic(step, f, d, other, f_other, d_other)[0], bound)

    def choose(if_higher: Tensor, if_turned: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(higher, if_higher, torch.where(turned, if_turned, otherwise))

    return line._replace(
        step=choose(first, second, torch.where(flatter, third, fourth)),
        best=torch.where(higher, best, step),
        best_value=torch.where(higher, line.best_value, value),
        best_slope=torch.where(higher, line.best_slope, slope),
        other=choose(step, best, other),
        other_value=choose(value, line.best_value, line.other_value),
        other_slope=choose(slope, line.best_slope, line.other_slope),
        bracketed=(bracketed | higher | turned).double(),
    )


def _cubic(a: Tensor, fa: Tensor, da: Tensor, b: Tensor, fb: Tensor, db: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of the cubic through two points and slopes; and whether it lies on the other side of a than b."""
    theta = 3 * (fa - fb) / (b - a) + da + db
    scale = torch.maximum(theta.abs(), torch.maximum(da.abs(), db.abs()))
    root = scale * ((theta / scale) ** 2 - (da / scale) * (db / scale)).clamp_min(0).sqrt()
    root = torch.where(a > b, -root, root)
    ratio = ((root - da) + theta) / ((root - da) + root + db)
    return a + ratio * (b - a), (ratio < 0) & (root != 0)
