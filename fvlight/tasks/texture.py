"""Shift-invariant textures [Cadena et al. 2018, Sec. 4.4]: one texture per unit that drives it wherever it looks."""

from __future__ import annotations

import itertools
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
from fvlight.priors import identity_of, likelihoods
from fvlight.readout import Readout
from fvlight.solvers import Adam, Evaluation, Patience, Status
from fvlight.tasks.base import ProblemTask, require_units
from fvlight.tasks.identity import fingerprint, seed_of

REDRAWS = 20  # how often a start is drawn again that leaves its unit silent in every crop
LOOKED_AT = 16  # crops of a start at once: most starts are not silent, and the first few tell


@dataclass
class TextureResult:
    """Textures of U units; of several starts the best one.

    Attributes:
        units: indices of the units in their layer.
        textures: (U, C, S, S') float32 in the network's input space, at their scale.
        activations: (U, P, Q) of all windowed crops, by where they begin, from a final float32 pass.
        steps, status: (U,) solver steps; `converged`, `max_steps`, `nan` or `interrupted`.
        layer: of the units.
        log_likelihood: (U,) of the textures by the task's prior, in nats; None without one.
    """

    units: list[int]
    textures: Tensor
    activations: Tensor
    steps: Tensor
    status: list[str]
    warnings: list[str] = field(default_factory=list)
    layer: str = ""
    log_likelihood: Tensor | None = None

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
                **({} if self.log_likelihood is None else {"log_likelihood": finite(self.log_likelihood[u])}),
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
        network, layer, units, norm, restarts, seed, prior, alpha, measure_prior, preconditioned, adam, patience,
            at_once, inner_steps, refill: as in `DiverseTask`; the norm is the root mean square of the crops' norms.
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
        prior: nn.Module | None = None, alpha: float = 0.0, measure_prior: bool = False, preconditioned: bool = True,
        adam: Adam | None = None, patience: Patience | None = None, at_once: int | None = 4, inner_steps: int = 10,
        refill: bool = True, crops_at_once: int = 4096, readout: Readout | None = None,
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
            refill=refill,
        )
        self.readout, self.texture, self.layer = readout, texture, layer
        self.units = require_units(units, readout, layer)
        self.restarts, self.seed, self.worst, self.crops_per_step = restarts, seed, worst, crops_per_step
        self._stride = texture.stride(crops_per_step) if crops_per_step else 1
        self.crops_at_once = crops_at_once
        self.prior, self.alpha = prior if alpha or measure_prior else None, alpha
        self.preconditioned, self.sigma_ratio = preconditioned, sigma_ratio
        self._unit_of = torch.tensor(self.units).repeat_interleave(restarts)
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
        textures = self.texture.textures(raw)
        mean, least = self._summed_up(textures, rows, dtype)
        score = (1 - self.worst) * mean
        if self.worst:
            score = score + self.worst * least
        if self.prior is not None and self.alpha:
            score = score + self.alpha * likelihoods(self.prior, textures, dtype)
        return Evaluation(score, torch.stack([score, mean], 1))

    def _summed_up(self, textures: Tensor, rows: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Mean and least activation (b,) of the crops at this step's places, which go by each problem's steps."""
        step = self._stride
        turns = self.taken[rows] % step**2
        mean, least = textures.new_zeros(len(rows)), textures.new_zeros(len(rows))
        for turn in turns.unique().tolist():
            which = (turns == turn).nonzero()[:, 0].to(textures.device)
            units = self._unit_of[rows[which.cpu()]]
            found = self._activations(textures[which], units, dtype, step, (turn // step, turn % step)).flatten(1)
            mean, least = mean.index_put((which,), found.mean(1)), least.index_put((which,), found.amin(1))
        return mean, least

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
        """Whether no crop has a gradient: a few of them, far apart, are looked at first, and mostly tell."""
        texture = raw[None].to(self.device).requires_grad_()
        height, width = self.texture.places
        step = self.texture.stride(LOOKED_AT)
        for first in itertools.product(range(min(step, height)), range(min(step, width))):
            activations = self._activations(
                self.texture.textures(texture), self._unit_of[row : row + 1], step=step, first=first
            )
            (gradient,) = torch.autograd.grad(activations.sum(), texture)
            if (gradient != 0).any():
                return False
        return True

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
            "prior": identity_of(self.prior),
            "alpha": self.alpha,
        }

    def extra_state(self) -> dict[str, Tensor]:
        return {"redrawn": self.redrawn}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.redrawn = state["redrawn"]

    # -- the result ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> TextureResult | None:
        """What there is now: a float32 pass over all crops of all problems that have begun, of several the best."""
        textures = torch.zeros(len(self.share.mine), *self.texture.shape)
        activations = torch.full((len(textures), *self.texture.places), float("nan"))
        log_likelihood = torch.full((len(textures),), float("nan"))
        for rows in self.begun():
            found, here = self.texture.textures(self.raw.data[self.rows_of(rows)].float()), self.share.place[rows]
            textures[here] = found.cpu()
            activations[here] = self._activations(found, self._unit_of[rows]).cpu()
            if self.prior is not None:
                log_likelihood[here] = likelihoods(self.prior, found).cpu()
        textures, activations = self.share.stack(textures), self.share.stack(activations)
        log_likelihood = self.share.stack(log_likelihood)
        status, steps, redrawn = (self.share.merge(rows) for rows in (self.pool.status, self.steps, self.redrawn))
        if not self.share.first:
            return None
        mean = activations.flatten(1).mean(1).nan_to_num(float("-inf"))
        rank = mean.where(status != int(Status.NAN), mean - 1e30).view(-1, self.restarts)
        best = torch.arange(len(status)).view(-1, self.restarts).gather(1, rank.argmax(1, keepdim=True))[:, 0]
        count = int(redrawn.sum())
        warnings = [f"{count} starting textures left their unit silent and were drawn again"] if count else []
        return TextureResult(
            self.units, textures[best], activations[best], steps[best],
            [Status(int(status[i])).label for i in best], warnings, self.layer,
            None if self.prior is None else log_likelihood[best],
        )  # fmt: skip
