"""Which lambda to look at."""

from __future__ import annotations

from torch import Tensor


def relative_activation(mean_activation: Tensor) -> Tensor:
    """Mean activations (units, lambdas) over that of the first lambda, which is 0; NaN where that is not positive."""
    base = mean_activation[:, :1]
    return mean_activation / base.where(base > 0, float("nan"))


def select_lambda(mean_activation: Tensor, threshold: float) -> list[int | None]:
    """The largest lambda that keeps the unit active [C, Sec. 3]: an index per unit.

    Args:
        mean_activation: (units, lambdas), lambdas ascending from 0.
        threshold: the least activation relative to lambda = 0 (0.8 for the complex cells, 0.9 for networks).

    Returns:
        For each unit the index of the largest lambda whose mean activation is at least ``threshold`` times that
        of lambda = 0; None where the unit is not active at lambda = 0 either.
    """
    keeps = relative_activation(mean_activation) >= threshold
    return [int(row.nonzero()[-1]) if bool(row.any()) else None for row in keeps]
