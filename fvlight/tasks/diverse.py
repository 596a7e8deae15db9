"""Diverse feature visualization [Cadena et al. 2018]: images that all drive a unit, as different as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvlight.analysis.diverse import DiverseResult
from fvlight.errors import FvlightError
from fvlight.graphs.operations import Unsupported
from fvlight.graphs.tracing import preceding_layer
from fvlight.network import Network
from fvlight.objectives import Convention, convention_named, diverse_score, min_pair_distance
from fvlight.parameterizations import NormSphere
from fvlight.priors import identity_of, likelihoods
from fvlight.readout import Position, Readout
from fvlight.solvers import Adam, Evaluation, Patience, Status
from fvlight.tasks.base import ProblemTask, count_units, require_units
from fvlight.tasks.identity import fingerprint, seed_of

LAMBDAS = (0.0, *(0.02 * 2**k for k in range(11)))  # [C]: 0.02 ... 20.48, and 0 to compare with
PIXELS = "pixels"
REDRAWS = 20  # how often a start is drawn again for an image that leaves its unit silent

Continuation = Literal["none", "ascending", "descending"]


class UnitReadout:
    """One unit per image and the features in which distances are measured.

    Args:
        image_size, position: as in `Readout`.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        distance_layer: str = "auto",
        image_size: tuple[int, int] | None = None,
        position: Position = None,
    ) -> None:
        if distance_layer == "auto":
            try:
                distance_layer = preceding_layer(network, layer)
            except Unsupported as error:
                raise FvlightError(
                    f"the layer before {layer!r} can't be told ({error}): set distance_layer to a layer or to pixels"
                ) from error
        self.layer, self.distance_layer = layer, distance_layer
        layers = [layer] if distance_layer == PIXELS else [layer, distance_layer]
        self.readout = Readout(network, layers, image_size=image_size, position=position)
        self.image_size = self.readout.image_size
        self.image_shape = (network.input_space.channels, *self.image_size)
        self.units = count_units(self.readout)

    def __call__(self, images: Tensor, units: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Images (b, n, C, H, W) and units (b,) to activations (b, n) and features (b, n, D)."""
        problems, n = images.shape[:2]
        flat = images.flatten(0, 1)
        values = self.readout(flat, units.repeat_interleave(n), dtype=dtype)
        features = flat if self.distance_layer == PIXELS else values[1]
        if features.dim() == 4:
            features = features.permute(0, 2, 3, 1)  # as channels-last lies in memory: no copy
        return values[0].view(problems, n), features.reshape(problems, n, -1).to(images.dtype)


class DiverseTask(ProblemTask):
    """For each unit and each lambda, n images of fixed norm that maximise `diverse_score`.

    Args:
        network: the network; only read.
        layer: whose units are looked at, by the value that the layer itself puts out (for a convolution: before
            its ReLU).
        units: indices of the units.
        norm: L2 norm of each image in the network's input space.
        lambdas: the grid; must contain 0, against which the others are compared.
        distance_layer: a layer, ``pixels``, or ``auto``: the activation after the preceding convolution.
        convention: ``code`` or ``paper``, see `Convention`.
        threshold: least relative activation at the chosen lambda.
        images_per_problem: n.
        restarts: starts per unit and lambda, of which the best is kept.
        seed: of the run; each problem draws from its own seed, made of this, its unit, lambda and start.
        continuation: ``none``: every lambda starts from noise; ``ascending`` (``descending``): from the solution
            of the next smaller (larger) one; the first lambda of such a chain is solved twice.
        prior, alpha: a module from images (N, C, H, W) to log-likelihoods (N,), and its weight; with 0 it is not
            asked at all, or with ``measure_prior`` of the final images alone, for the result.
        preconditioned: see `NormSphere`.
        adam, patience: the solver.
        at_once, inner_steps: see `ProblemTask`; refill: see `Pool`.
        image_size, position: see `Readout`.
        reader: of this layer, distance_layer, image_size and position, where one has been made already.

    After ``trainer.fit(task)``, ``task.result`` is the `DiverseResult`.
    """

    figures = ("score", "activation", "min_distance")

    def __init__(
        self,
        network: Network,
        layer: str,
        units: Sequence[int],
        *,
        norm: float,
        lambdas: Sequence[float] = LAMBDAS,
        distance_layer: str = "auto",
        convention: str = "code",
        threshold: float = 0.9,
        images_per_problem: int = 6,
        restarts: int = 1,
        seed: int = 0,
        continuation: Continuation = "none",
        prior: nn.Module | None = None,
        alpha: float = 0.0,
        measure_prior: bool = False,
        preconditioned: bool = True,
        adam: Adam | None = None,
        patience: Patience | None = None,
        at_once: int | None = 64,
        inner_steps: int = 25,
        refill: bool = True,
        image_size: tuple[int, int] | None = None,
        position: Position = None,
        reader: UnitReadout | None = None,
    ) -> None:
        self._check(lambdas, images_per_problem, restarts, threshold, continuation)
        reader = reader or UnitReadout(network, layer, distance_layer, image_size, position)
        units = require_units(units, reader.readout, layer)
        grid = sorted({float(value) for value in lambdas})
        stages, reported = _stages(len(grid), continuation)
        table = torch.cartesian_prod(torch.arange(len(units)), torch.tensor(stages), torch.arange(restarts)).view(-1, 3)
        super().__init__(
            len(table),
            (images_per_problem, *reader.image_shape),
            adam=adam or Adam(),
            patience=patience or Patience(),
            at_once=at_once,
            inner_steps=inner_steps,
            refill=refill,
            parent=_parents(len(units), len(stages), restarts, continuation),
        )
        self._reported = reported
        self.reader, self.units, self.lambdas = reader, units, grid
        self.images_per_problem, self.restarts = images_per_problem, restarts
        self.convention: Convention = convention_named(convention)
        self.parameterization = NormSphere(norm, reader.image_shape, preconditioned)
        self.preconditioned = preconditioned
        self.threshold, self.seed, self.continuation = threshold, seed, continuation
        self.prior, self.alpha = prior if alpha or measure_prior else None, alpha
        self._unit_of = torch.tensor(self.units)[table[:, 0]]
        self._lambda_of = torch.tensor(grid, dtype=torch.float64)[table[:, 1]]
        self._start_of = table[:, 2]
        self.redrawn = torch.zeros(len(table), dtype=torch.int64)
        self.silent = torch.zeros(len(table), dtype=torch.bool)
        self.network_name = network.name
        self._weights = fingerprint(network.module)
        self.result: DiverseResult | None = None

    @staticmethod
    def _check(lambdas: Sequence[float], images: int, restarts: int, threshold: float, continuation: str) -> None:
        for value in lambdas:
            if not 0 <= value < float("inf"):
                raise FvlightError(f"lambda {value} in the grid: lambdas are finite and not negative")
        if 0 not in lambdas:
            raise FvlightError(
                f"lambda_grid.values={list(lambdas)}: the grid must contain 0, against which activation and "
                "diversity of the others are measured"
            )
        if images < 2:
            raise FvlightError(f"images_per_problem={images}: diversity needs at least 2")
        if restarts < 1:
            raise FvlightError(f"restarts={restarts}: must be at least 1")
        if not 0 < threshold <= 1:
            raise FvlightError(f"threshold={threshold}: a share of the activation, in (0, 1]")
        if continuation not in ("none", "ascending", "descending"):
            raise FvlightError(f"continuation={continuation!r}: there are none, ascending, descending")

    def address(self, problem: int) -> tuple[int, float, int]:
        """Unit, lambda and start of a problem."""
        return int(self._unit_of[problem]), float(self._lambda_of[problem]), int(self._start_of[problem])

    # -- the problems --------------------------------------------------------------------------------------

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """Score (b,) and figures (b, 3): score, mean activation, smallest distance."""
        score, activations, distance = self._scores(raw, rows, dtype)
        return Evaluation(score, torch.stack([score, activations.mean(1), distance], 1))

    def _scores(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
        images = self.parameterization(raw)
        activations, features = self.reader(images, self._unit_of[rows].to(raw.device), dtype)
        distance = min_pair_distance(features, self.convention)
        log_prior = None
        if self.prior is not None and self.alpha:
            log_prior = self.alpha * likelihoods(self.prior, images, dtype)
        lambdas = self._lambda_of[rows].to(raw.device, raw.dtype)
        return (
            diverse_score(activations, distance, lambdas, self.convention, log_prior),
            activations,
            distance,
        )

    def start(self, rows: Tensor) -> Tensor:
        """From noise, or from the parent's solution. Images on which the unit is silent are drawn again.

        Silent means that the unit's activation has no gradient at all with respect to the image, as behind a
        closed rectifier: no solver could leave such a start.
        """
        parents = self.pool.parent[rows]
        raw = torch.stack(
            [
                self.raw.data[self.rows_of(parent)].cpu() if parent >= 0 else self._noise(row, 0)
                for row, parent in zip(rows.tolist(), parents, strict=True)
            ]
        )
        for attempt in range(1, REDRAWS + 1):
            silent = self._silent(raw, rows) & (parents < 0)[:, None]
            problems = silent.any(1).nonzero()[:, 0].tolist()
            if not problems:
                break
            for i in problems:
                again = silent[i]
                raw[i, again] = self._noise(int(rows[i]), attempt)[again]
                self.redrawn[rows[i]] += int(again.sum())
        else:
            self.silent[rows] = self._silent(raw, rows).any(1) & (parents < 0)
        return raw

    def _noise(self, row: int, attempt: int) -> Tensor:
        """The start of one problem: a function of run seed, unit, lambda, start and attempt, and of nothing else."""
        unit, value, start = self.address(row)
        return self.parameterization.start(
            self.images_per_problem, seed_of(self.seed, unit, repr(value), start, attempt)
        )

    @torch.enable_grad()
    def _silent(self, raw: Tensor, rows: Tensor) -> Tensor:
        """(b, n) bool: images at which the unit's gradient vanishes."""
        images = self.parameterization(raw.to(self.device)).detach().requires_grad_()
        activations, _ = self.reader(images, self._unit_of[rows].to(self.device))
        (gradient,) = torch.autograd.grad(activations.sum(), images)
        return (gradient.flatten(2) == 0).all(2).cpu()

    def identity(self) -> dict[str, Any]:
        return {
            "task": "diverse",
            "network": self.network_name,
            "weights": self._weights,
            "layer": self.reader.layer,
            "distance_layer": self.reader.distance_layer,
            "position": str(self.reader.readout.position),
            "units": self.units,
            "lambdas": self.lambdas,
            "images_per_problem": self.images_per_problem,
            "restarts": self.restarts,
            "seed": self.seed,
            "norm": self.parameterization.norm,
            "image_size": list(self.reader.image_size),
            "convention": self.convention.name,
            "continuation": self.continuation,
            "preconditioned": self.preconditioned,
            "prior": identity_of(self.prior),
            "alpha": self.alpha,
        }

    def extra_state(self) -> dict[str, Tensor]:
        return {"redrawn": self.redrawn, "silent": self.silent}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.redrawn, self.silent = state["redrawn"], state["silent"]

    # -- the result ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> DiverseResult | None:
        """What there is now: a float32 pass over all problems that have begun, of several starts the best."""
        problems, n = len(self.share.mine), self.images_per_problem
        images = torch.zeros(problems, n, *self.parameterization.shape)
        activations = torch.full((problems, n), float("nan"))
        log_likelihood = activations.clone()
        distance, score = torch.full((problems,), float("nan")), torch.full((problems,), float("-inf"))
        for rows in self.begun():
            raw, here = self.raw.data[self.rows_of(rows)].float(), self.share.place[rows]
            images[here] = self.parameterization(raw).cpu()
            values = [value.cpu() for value in self._scores(raw, rows, None)]
            score[here], activations[here], distance[here] = values
            if self.prior is not None:
                log_likelihood[here] = likelihoods(self.prior, self.parameterization(raw)).cpu()
        stack, merge = self.share.stack, self.share.merge
        log_likelihood = stack(log_likelihood)
        images, activations, distance, score = stack(images), stack(activations), stack(distance), stack(score)
        states, steps = merge(self.pool.status), merge(self.steps)
        redrawn, silent = merge(self.redrawn), merge(self.silent)
        if not self.share.first:
            return None
        grid = (len(self.units), -1, self.restarts)
        # a start that ended in NaN only counts where there is no other
        rank = score.where(states != int(Status.NAN), score - 1e30).view(grid)
        best = torch.arange(len(states)).view(grid).gather(2, rank.argmax(2, keepdim=True))[:, self._reported, 0]
        status = [[Status(int(states[i])).label for i in row] for row in best]
        return DiverseResult(
            units=self.units, lambdas=self.lambdas, images=images[best], activations=activations[best],
            min_distance=distance[best], score=score[best], steps=steps[best], status=status,
            redrawn=redrawn[best], threshold=self.threshold, warnings=_warnings(redrawn, silent),
            layer=self.reader.layer, log_likelihood=None if self.prior is None else log_likelihood[best],
        )  # fmt: skip


def _warnings(redrawn: Tensor, silent: Tensor) -> list[str]:
    texts = []
    if count := int(redrawn.sum()):
        texts.append(f"{count} starting images left their unit silent and were drawn again")
    if count := int(silent.sum()):
        texts.append(
            f"{count} problems began with a silent unit even after {REDRAWS} draws: "
            "their images may be noise; try another seed or more restarts"
        )
    return texts


def _stages(lambdas: int, continuation: str) -> tuple[list[int], slice]:
    """The lambdas (by index) that are solved for a unit, in the order of the grid, and which of them are reported.

    A chain begins with its first lambda solved twice, the second time from the first one's solution with fresh
    moments: the first solution is not yet as settled as those that descend from it, and would not lie on their curve.
    """
    grid = list(range(lambdas))
    if continuation == "ascending":
        return [0, *grid], slice(1, None)
    if continuation == "descending":
        return [*grid, lambdas - 1], slice(0, lambdas)
    return grid, slice(0, lambdas)


def _parents(units: int, stages: int, restarts: int, continuation: str) -> Tensor:
    """(units · stages · restarts,) index of the problem each one starts from, -1 for noise."""
    parent = torch.full((units, stages, restarts), -1)
    index = torch.arange(units * stages * restarts).view(units, stages, restarts)
    if continuation == "ascending":
        parent[:, 1:] = index[:, :-1]
    elif continuation == "descending":
        parent[:, :-1] = index[:, 1:]
    return parent.flatten()
