"""Realizations [Reinbold & Westermann 2020, Sec. 2]: images whose feature response points along a target objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.diverse import finite
from fvlight.errors import FvlightError
from fvlight.objectives import direction_score
from fvlight.parameterizations.robust import Transformations
from fvlight.response import Response
from fvlight.solvers import LBFGS, Adam, Evaluation, Patience, Status
from fvlight.tasks.base import ProblemTask
from fvlight.tasks.identity import fingerprint, seed_of

# Starts that leave a target's features silent have no gradient. They are drawn again, larger: at 1/100 of the spread,
# as photographs nearly even, a third of GoogLeNet's features in inception4c are silent, at 1 half as many.
SCALES = (1, 1, 10, 100, 100, 100, 200, 200)
TOP = 8  # silent targets that are named


@dataclass
class RealizationResult:
    """Realizations of t target objectives over n features.

    Attributes:
        targets: (t, n) unit vectors.
        raw: (t, ...) parameters as they were solved.
        images: (t, C, H, W) float32 in the network's input space.
        responses: (t, n) feature responses, from a final pass in the parameters' number type.
        steps, status: (t,) solver steps; `converged`, `max_steps`, `nan` or `interrupted`.
    """

    targets: Tensor
    raw: Tensor
    images: Tensor
    responses: Tensor
    steps: Tensor
    status: list[str]
    layer: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def cosines(self) -> Tensor:
        """(t,) between response and target."""
        return torch.cosine_similarity(self.responses.double(), self.targets.double(), dim=1, eps=1e-300)

    @property
    def silent(self) -> list[int]:
        """Targets that no response has any share in: they had no gradient from any start."""
        reached = (self.responses.double() * self.targets.double()).sum(1)
        return (reached == 0).nonzero()[:, 0].tolist()  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """Whether every problem was solved to its end."""
        return all(word in ("converged", "max_steps") for word in self.status)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``, one per target; numbers that are not finite are None."""
        lengths = (self.responses.double() * self.targets.double()).sum(1)
        return [
            {
                "unit": f"target {i}",
                "largest_feature": int(self.targets[i].argmax()),
                "projection": finite(lengths[i]),
                "cosine": finite(self.cosines[i]),
                "steps": int(self.steps[i]),
                "status": self.status[i],
            }
            for i in range(len(self.targets))
        ]


class RealizationTask(ProblemTask):
    """For each target objective y an image that maximises ``<yh, y> cos(yh, y)^power`` [R, Sec. 2].

    Args:
        response: what is read and from which parameters.
        targets: (t, n) nonnegative or not; they are scaled to unit length.
        power: of the cosine (k; the paper's number is lost).
        floor: the cosine is never taken for less, as in Lucid; without it odd powers also rise towards -y.
        starts: (t, ...) parameters to begin from; None: each draws its own.
        robust: random transformations of each image at each step of the first stage; None for none.
        seed: of the starts and transformations; those of the i-th target depend on it and on i alone.
        adam, patience: the first stage; the paper's has 800 steps or 3000 (GoogLeNet), without an early end.
        polish: the second stage, L-BFGS, in the parameters' number type; None for none.
        at_once, inner_steps: as in `ProblemTask`; refill: as in `Pool`.

    After ``trainer.fit(task)``, ``task.result`` is the `RealizationResult`.
    """

    figures = ("score", "cosine")

    def __init__(
        self, response: Response, targets: Tensor, *, power: float = 2, floor: float = 0.1,
        starts: Tensor | None = None, robust: Transformations | None = None, seed: int = 0, adam: Adam | None = None,
        patience: Patience | None = None, polish: LBFGS | None = None, at_once: int | None = 16, inner_steps: int = 25,
        refill: bool = False,
    ) -> None:  # fmt: skip
        self._check(response, targets, power, floor, starts)
        patience = patience or Patience(800, 800)
        super().__init__(
            len(targets), response.parameterization.shape, adam=adam or Adam(0.05), patience=patience,
            polish=polish, at_once=at_once, inner_steps=inner_steps, refill=refill,
        )  # fmt: skip
        self.response, self.layer, self.seed = response, response.layer, seed
        self.power, self.floor, self.starts, self.robust = power, floor, starts, robust
        lengths = torch.linalg.vector_norm(targets.double(), dim=1, keepdim=True)
        self.targets = targets.double() / lengths
        self.redrawn = torch.zeros(len(targets), dtype=torch.int64)
        self._weights = fingerprint(response.network.module)
        self.result: RealizationResult | None = None

    @staticmethod
    def _check(response: Response, targets: Tensor, power: float, floor: float, starts: Tensor | None) -> None:
        if targets.dim() != 2 or targets.shape[1] != response.features or not len(targets):
            raise FvlightError(
                f"targets of shape {tuple(targets.shape)}: a row per target over the {response.features} features "
                f"of {response.layer!r} is needed"
            )
        bad = ~(targets.isfinite().all(1) & (targets != 0).any(1))
        if bad.any():
            raise FvlightError(f"target {int(bad.nonzero()[0, 0])} is zero or not finite: it has no direction")
        if not power >= 0 or not 0 <= floor < 1:
            raise FvlightError(f"power={power}, floor={floor} of the cosine: power 0 or more, floor from 0 to below 1")
        shape = (len(targets), *response.parameterization.shape)
        if starts is not None and tuple(starts.shape) != shape:
            raise FvlightError(f"starts of shape {tuple(starts.shape)}: parameters of shape {shape} are needed")

    def address(self, problem: int) -> tuple[int]:
        """The target of a problem."""
        return (problem,)

    def start(self, rows: Tensor) -> Tensor:
        if self.starts is not None:
            return self.starts[rows]
        return torch.stack([self._start(row) for row in rows.tolist()])

    def _start(self, row: int) -> Tensor:
        """Of several draws the first from which there is a way towards the target, else the last."""
        for attempt, scale in enumerate(SCALES):
            raw = self.response.parameterization.start(seed_of(self.seed, "realization", row, attempt)) * scale
            if self._reaches(raw, row):
                break
            self.redrawn[row] += 1
        return raw

    @torch.no_grad()
    def _reaches(self, raw: Tensor, row: int) -> bool:
        """Away from the target there is a gradient as well, save without a floor."""
        responses = self.response(raw[None].to(self.device, self.raw.dtype))
        share = float((responses.cpu().double() * self.targets[row]).sum())
        return share > 0 or (share < 0 and (self.floor > 0 or self.power == 0))

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """Score (b,) and figures (b, 2): score, cosine."""
        images = self.response.parameterization(raw)
        if self.robust and not bool(self.polishing[rows].any()):
            steps = zip(rows.tolist(), self.taken[rows].tolist(), strict=True)
            images = self.robust(images, [seed_of(self.seed, "transformation", *step) for step in steps])
        responses = self.response.of_images(images, dtype)
        targets = self.targets[rows].to(responses)
        score = direction_score(responses, targets, self.power, floor=self.floor)
        cosine = torch.cosine_similarity(responses.detach(), targets, dim=1)
        return Evaluation(score, torch.stack([score, cosine], 1))

    def identity(self) -> dict[str, Any]:
        return {
            "task": "realization",
            "network": self.response.network.name,
            "weights": self._weights,
            "layer": self.layer,
            "parameterization": str(self.response.parameterization),
            "aggregation": str(self.response.aggregation),
            "targets": fingerprint({"": self.targets}),
            "starts": "" if self.starts is None else fingerprint({"": self.starts}),
            "power": self.power,
            "floor": self.floor,
            "robust": str(self.robust) if self.robust else None,
            "seed": self.seed,
        }

    def extra_state(self) -> dict[str, Tensor]:
        return {"redrawn": self.redrawn}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.redrawn = state["redrawn"]

    @torch.no_grad()
    def collect(self) -> RealizationResult | None:
        """What there is now: a pass over all problems that have begun."""
        problems = len(self.share.mine)
        images = torch.zeros(problems, *self.response.image_shape)
        responses = torch.full((problems, self.response.features), float("nan"), dtype=self.raw.dtype)
        for rows in self.begun():
            found, here = self.response.parameterization(self.raw.data[self.rows_of(rows)]), self.share.place[rows]
            images[here] = found.float().cpu()
            responses[here] = self.response.of_images(found).cpu()
        raw, images, responses = (self.share.stack(rows) for rows in (self.raw.data.cpu(), images, responses))
        status, steps, redrawn = (self.share.merge(rows) for rows in (self.pool.status, self.steps, self.redrawn))
        if not self.share.first:
            return None
        words = [Status(int(value)).label for value in status]
        result = RealizationResult(self.targets, raw, images, responses, steps, words, self.layer)
        result.warnings = _warnings(int((redrawn > 0).sum()), result.silent)
        return result


def _warnings(redrawn: int, silent: list[int]) -> list[str]:
    texts = []
    if redrawn:
        texts.append(f"{redrawn} targets had starts that left their features silent; these were drawn again")
    if silent:
        named = ", ".join(str(target) for target in silent[:TOP]) + (" …" if len(silent) > TOP else "")
        texts.append(f"no image that was tried drives the features of {len(silent)} targets ({named})")
    return texts
