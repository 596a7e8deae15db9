"""The outcome of diverse feature visualization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fvlight.analysis.lambda_selection import relative_activation, select_lambda


@dataclass
class DiverseResult:
    """Images and their figures for U units at L lambdas, n images each; of several starts the best one.

    Attributes:
        units: indices of the units in their layer.
        lambdas: the grid, ascending from 0.
        images: (U, L, n, C, H, W) float32 in the network's input space; zeros where a problem never began.
        activations: (U, L, n) from a final float32 pass.
        min_distance: (U, L) likewise.
        score: (U, L) what was maximised.
        steps: (U, L) solver steps.
        status: (U, L) `converged`, `max_steps`, `nan` or `interrupted`.
        redrawn: (U, L) images whose start left the unit silent and was drawn again.
        threshold: least relative activation at the chosen lambda.
        layer: of the units.
        log_likelihood: (U, L, n) of the images by the task's prior, in nats, from the final pass; None without one.
    """

    units: list[int]
    lambdas: list[float]
    images: Tensor
    activations: Tensor
    min_distance: Tensor
    score: Tensor
    steps: Tensor
    status: list[list[str]]
    redrawn: Tensor
    threshold: float
    warnings: list[str] = field(default_factory=list)
    layer: str = ""
    log_likelihood: Tensor | None = None

    @property
    def mean_activation(self) -> Tensor:
        """(U, L)."""
        return self.activations.mean(-1)

    @property
    def relative_activation(self) -> Tensor:
        """(U, L): mean activation over that at lambda = 0."""
        return relative_activation(self.mean_activation)

    @property
    def diversity_gain(self) -> Tensor:
        """(U, L): smallest distance over that at lambda = 0 [C, Fig. 5]; infinite where that is exactly 0."""
        return self.min_distance / self.min_distance[:, :1]

    @property
    def selected(self) -> list[int | None]:
        """Per unit the index of the chosen lambda, see `select_lambda`."""
        return select_lambda(self.mean_activation, self.threshold)

    @property
    def complete(self) -> bool:
        """Whether every problem was solved to its end."""
        return all(word in ("converged", "max_steps") for row in self.status for word in row)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``; numbers that are not finite are None."""
        selected = self.selected
        return [self._unit_summary(u, selected[u]) for u in range(len(self.units))]

    def _unit_summary(self, u: int, chosen: int | None) -> dict[str, Any]:
        relative, gain, mean = self.relative_activation[u], self.diversity_gain[u], self.mean_activation[u]
        likely = None if self.log_likelihood is None else self.log_likelihood[u]
        sweep = [
            {
                "lambda": value,
                "mean_activation": finite(mean[k]),
                "relative_activation": finite(relative[k]),
                "min_distance": finite(self.min_distance[u, k]),
                "diversity_gain": finite(gain[k]),
                "steps": int(self.steps[u, k]),
                "status": self.status[u][k],
                "redrawn": int(self.redrawn[u, k]),
                "activations": [finite(a) for a in self.activations[u, k]],
                **({} if likely is None else {"log_likelihoods": [finite(value) for value in likely[k]]}),
            }
            for k, value in enumerate(self.lambdas)
        ]
        return {
            "unit": self.units[u],
            "lambda_selected": None if chosen is None else self.lambdas[chosen],
            "sweep": sweep,
        }


def finite(value: Tensor | float) -> float | None:
    """A number as JSON knows it, or None."""
    number = float(value)
    return number if math.isfinite(number) else None
