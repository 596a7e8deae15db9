"""Shift-invariant textures [Cadena et al. 2018, Sec. 4.4]: one texture per unit that drives it wherever it looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fvlight.analysis.diverse import finite
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.parameterizations import Texture
from fvlight.readout import Readout
from fvlight.solvers import Adam, Evaluation, Patience, Status
from fvlight.tasks.base import ProblemTask, fingerprint, require_units, seed_of

REDRAWS = 20  # how often a start is drawn again that leaves its unit silent in every crop


@dataclass
class TextureResult:
    """Textures of U units; of several starts the best one.

    Attributes:
        units: indices of the units in their layer.
        textures: (U, C, S, S') float32 in the network's input space, at their scale.
        activations: (U, P, Q) of all windowed crops, by where they begin, from a final float32 pass.
        steps, status: (U,) solver steps; `converged`, `max_steps`, `nan` or `interrupted`.
        layer: of the units.
    """

    units: list[int]
    textures: Tensor
    activations: Tensor
    steps: Tensor
    status: list[str]
    warnings: list[str] = field(default_factory=list)
    layer: str = ""

    @property
    def mean_activation(self) -> Tensor:
        """(U,) over all crops."""
        return self.activations.flatten(1).mean(1)

    @property
    def complete(self) -> bool:
        """Whether every problem was solved to its end."""
        return all(word in ("converged", "max_steps") for word in self.status)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``; numbers that are not finite are None."""
        return [
            {
                "unit": unit,
                "mean_activation": finite(self.mean_activation[u]),
                "least_activation": finite(self.activations[u].min()),
                "largest_activation": finite(self.activations[u].max()),
                "steps": int(self.steps[u]),
                "status": self.status[u],
            }
            for u, unit in enumerate(self.units)
        ]


class TextureTask(ProblemTask):
    """For each unit one texture, all of whose windowed crops drive it.

    Maximises ``(1 - worst) mean + worst min`` of the activations of the crops, plus ``alpha`` times the texture's
    log-likelihood [C, authors' code].

    Args:
        network, layer, units, norm, restarts, seed, prior, alpha, preconditioned, adam, patience, at_once,
            inner_steps: as in `DiverseTask`; the norm is the root mean square of the crops' norms.
        sigma_ratio, every_place: see `Texture`.
        worst: the weight of the least active crop.
        crops_per_step: look at no more than so many crops in each step: at every n-th place in height and in width,
            beginning one further in each step; the final figures are of all places. None: at all.
        crops_at_once: so many crops of all problems are kept for the backward pass; of more, parts are computed
            again there.
        readout: of this layer, where one has been made already.

    After ``trainer.fit(task)``, ``task.result`` is the `TextureResult`.
    """

    figures = ("score", "activation")

    def __init__(
        self, network: Network, layer: str, units: Sequence[int], *, norm: float, restarts: int = 1, seed: int = 0,
        sigma_ratio: float = 2.4, every_place: bool = False, worst: float = 0.0, crops_per_step: int | None = None,
        prior: nn.Module | None = None, alpha: float = 0.0, preconditioned: bool = True, adam: Adam | None = None,
        patience: Patience | None = None, at_once: int = 4, inner_steps: int = 10, crops_at_once: int = 4096,
        readout: Readout | None = None,
    ) -> None:  # fmt: skip
        self._check(restarts, worst, crops_per_step, crops_at_once)
        readout = readout or Readout(network, layer)
        if readout.field is not None and readout.field.whole_image:
            raise FvlightError(
                f"the units of layer {layer!r} in {network.name!r} see the whole image ({readout.field.reason}): "
                "a texture needs a layer whose units see windows"
            )
        shape = (network.input_space.channels, *readout.image_size)
        texture = Texture(norm, shape, sigma_ratio=sigma_ratio, every_place=every_place, preconditioned=preconditioned)
        super().__init__(
            len(units) * restarts,
            texture.shape,
            adam=adam or Adam(),
            patience=patience or Patience(700),
            at_once=at_once,
            inner_steps=inner_steps,
        )
        self.readout, self.texture, self.layer = readout, texture, layer
        self.units = require_units(units, readout, layer)
        self.restarts, self.seed, self.worst, self.crops_per_step = restarts, seed, worst, crops_per_step
        places = texture.places[0] * texture.places[1]
        self._stride = math.ceil(math.sqrt(places / (crops_per_step or places)))
        self.crops_at_once = crops_at_once
        self.prior, self.alpha = prior if alpha else None, alpha
        self.preconditioned, self.sigma_ratio = preconditioned, sigma_ratio
        self._unit_of = torch.tensor(self.units).repeat_interleave(restarts)
        self._turn = 0  # which places are looked at
        self.redrawn = torch.zeros(len(self._unit_of), dtype=torch.int64)
        self.network_name, self._weights = network.name, fingerprint(network.module)
        self.result: TextureResult | None = None

    @staticmethod
    def _check(restarts: int, worst: float, crops_per_step: int | None, crops_at_once: int) -> None:
        counts = {"restarts": restarts, "crops_per_step": crops_per_step, "crops_at_once": crops_at_once}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise FvlightError(f"{name}={value}: must be at least 1")
        if not 0 <= worst <= 1:
            raise FvlightError(f"worst={worst}: a weight in [0, 1]")

    def address(self, problem: int) -> tuple[int, int]:
        """Unit and start of a problem."""
        return int(self._unit_of[problem]), problem % self.restarts

    # -- the problems --------------------------------------------------------------------------------------

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """Score (b,) and figures (b, 2): score, mean activation of the crops."""
        step = self._stride
        first = (self._turn // step % step, self._turn % step)
        self._turn += 1
        textures = self.texture.textures(raw)
        activations = self._activations(textures, self._unit_of[rows], dtype, step, first).flatten(1)
        score = (1 - self.worst) * activations.mean(1)
        if self.worst:
            score = score + self.worst * activations.amin(1)
        if self.prior is not None:
            score = score + self.alpha * self.prior(textures)
        return Evaluation(score, torch.stack([score, activations.mean(1)], 1))

    def _activations(
        self, textures: Tensor, units: Tensor, dtype: torch.dtype | None = None, step: int = 1,
        first: tuple[int, int] = (0, 0),
    ) -> Tensor:  # fmt: skip
        """Activations (b, p, q) of the crops at every ``step``-th place; chunks of rows, computed again if many."""
        (height, width), units = self.texture.places, units.to(textures.device)
        rows, columns = len(range(first[0], height, step)), len(range(first[1], width, step))

        def read(textures: Tensor, begin: int, end: int) -> Tensor:
            crops = self.texture.crops(textures, slice(begin, end), step, first)
            values = self.readout(crops.flatten(0, 1), units.repeat_interleave(crops.shape[1]), dtype=dtype)
            return values.view(len(textures), -1, columns)  # type: ignore[union-attr]

        at_once = max(1, self.crops_at_once // (len(textures) * columns))
        if at_once >= rows or not torch.is_grad_enabled():
            parts = [read(textures, begin, min(begin + at_once, rows)) for begin in range(0, rows, at_once)]
        else:
            parts = [
                checkpoint(read, textures, begin, min(begin + at_once, rows), use_reentrant=False)
                for begin in range(0, rows, at_once)
            ]
        return torch.cat(parts, 1)

    def start(self, rows: Tensor) -> Tensor:
        """From noise; a texture in which the unit is silent everywhere is drawn again."""
        return torch.stack([self._start(row) for row in rows.tolist()])

    def _start(self, row: int) -> Tensor:
        for attempt in range(REDRAWS + 1):
            unit, start = self.address(row)
            raw = self.texture.start(seed_of(self.seed, unit, start, attempt))
            if attempt == REDRAWS or not self._silent(raw, row):
                break
            self.redrawn[row] += 1
        return raw

    @torch.enable_grad()
    def _silent(self, raw: Tensor, row: int) -> bool:
        texture = raw[None].to(self.device).requires_grad_()
        activations = self._activations(self.texture.textures(texture), self._unit_of[row : row + 1])
        (gradient,) = torch.autograd.grad(activations.sum(), texture)
        return bool((gradient == 0).all())

    def identity(self) -> dict[str, Any]:
        return {
            "task": "texture",
            "network": self.network_name,
            "weights": self._weights,
            "layer": self.layer,
            "units": self.units,
            "restarts": self.restarts,
            "seed": self.seed,
            "norm": self.texture.norm,
            "sigma_ratio": self.sigma_ratio,
            "places": list(self.texture.places),
            "worst": self.worst,
            "crops_per_step": self.crops_per_step,
            "preconditioned": self.preconditioned,
            "prior": "none" if self.prior is None else type(self.prior).__name__,
            "alpha": self.alpha,
        }

    def extra_state(self) -> dict[str, Any]:
        return {"redrawn": self.redrawn, "turn": self._turn}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.redrawn, self._turn = state["redrawn"], state["turn"]

    # -- the result ----------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        self.result = self.collect()

    @torch.no_grad()
    def collect(self) -> TextureResult:
        """What there is now: a float32 pass over all crops of all problems that have begun, of several the best."""
        problems = len(self.pool)
        textures = torch.zeros(problems, *self.texture.shape)
        activations = torch.full((problems, *self.texture.places), float("nan"))
        begun = (self.pool.status != int(Status.WAITING)).nonzero()[:, 0]
        for rows in begun.split(self.pool.capacity):
            found = self.texture.textures(self.raw.data[rows.to(self.device)].float())
            textures[rows] = found.cpu()
            activations[rows] = self._activations(found, self._unit_of[rows]).cpu()
        mean = activations.flatten(1).mean(1).nan_to_num(float("-inf"))
        good = self.pool.status != int(Status.NAN)
        rank = mean.where(good, mean - 1e30).view(-1, self.restarts)
        best = torch.arange(problems).view(-1, self.restarts).gather(1, rank.argmax(1, keepdim=True))[:, 0]
        count = int(self.redrawn.sum())
        warnings = [f"{count} starting textures left their unit silent and were drawn again"] if count else []
        return TextureResult(
            self.units, textures[best], activations[best], self.steps[best],
            [Status(int(self.pool.status[i])).label for i in best], warnings, self.layer,
        )  # fmt: skip
