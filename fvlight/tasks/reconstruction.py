"""Input reconstruction [Mahendran & Vedaldi 2015; Gruen et al. 2016, Sec. 3.3]: the image that a layer remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fvlight.analysis.diverse import finite
from fvlight.analysis.similarity import psnr, ssim
from fvlight.errors import FvlightError
from fvlight.network import Network
from fvlight.parameterizations import Levels
from fvlight.priors import Lp, TotalVariation
from fvlight.readout import Readout
from fvlight.response import Parameterization, read_whole
from fvlight.solvers import LBFGS, Adam, Evaluation, Momentum, Patience, Status
from fvlight.tasks.base import ProblemTask
from fvlight.tasks.identity import fingerprint, seed_of

RATE, MOMENTUM = 10.0, 0.95  # on preconditioned levels, the rate per pixel; stable in all layers of GoogLeNet


class Regularisers(NamedTuple):
    """Weights of the priors, as shares of FeatureVis's, and the power of the first.

    FeatureVis divides ``sum |x|^p`` by ``H W 128^p`` and ``sum (x_p - x_q)^2`` by ``H W (0.01 128)^2``, x in levels of
    0 to 255 about the mean: its defaults are a weight of 1 for both. Of photographs the second then counts some hundred
    times as much as the whole error, and grey is the best image: our defaults leave an error of 0.1 within reach. The
    gradient of FeatureVis's code lacks the factor 2 of its loss, ours has it: it runs with what is ``tv`` 0.5 here.
    """

    lp: float = 0.01
    tv: float = 3e-6
    power: float = 6.0


def pixel_rate(rate: float, pixels: int, weights: Regularisers, anneal: float) -> float:
    """A rate per pixel times the number of pixels, but no more than half of what total variation alone allows.

    Of ``w sum (x_p - x_q)^2`` no curvature exceeds 16 w: each pixel has four neighbours.
    """
    steepest = 16 * weights.tv * anneal / (pixels * (0.01 * 128.0) ** 2)
    return min(rate * pixels, 1 / steepest) if steepest > 0 else rate * pixels


@dataclass
class ReconstructionResult:
    """Reconstructions of t pictures from a layer's value.

    Attributes:
        names: of the pictures.
        originals, images: (t, C, H, W) float32 in the network's input space.
        raw: (t, ...) parameters of the images as they were solved.
        errors: (t,) ``|Phi(x) - Phi(x0)| / |Phi(x0)|``, not squared, from a last pass in the parameters' number type.
        psnr, ssim: (t,) of image and picture, clipped to what can be shown; in decibels, and at most 1.
        steps, status: (t,) solver steps; `converged`, `max_steps`, `nan` or `interrupted`.
    """

    names: list[str]
    originals: Tensor
    images: Tensor
    raw: Tensor
    errors: Tensor
    psnr: Tensor
    ssim: Tensor
    steps: Tensor
    status: list[str]
    layer: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every problem was solved to its end."""
        return all(word in ("converged", "max_steps") for word in self.status)

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``, one per picture; numbers that are not finite are None."""
        return [
            {
                "unit": name,
                "relative_error": finite(self.errors[i]),
                "psnr": finite(self.psnr[i]),
                "ssim": finite(self.ssim[i]),
                "steps": int(self.steps[i]),
                "status": self.status[i],
            }
            for i, name in enumerate(self.names)
        ]


class ReconstructionTask(ProblemTask):
    """For each picture x0 an image that minimises ``|Phi(x) - Phi(x0)|^2 / |Phi(x0)|^2`` and the priors' penalties.

    Args:
        network, layer: Phi, the layer's whole value.
        parameterization: of the images; `Levels`, preconditioned or not.
        pictures: (t, C, H, W) in the network's input space.
        names: of the pictures.
        regularisers: see there.
        anneal: total variation begins so many times as strong and falls to its weight within the first three quarters
            of the first stage, so that shapes are found before details: what begins rough stays rough for long.
        jitter: at each step the image is shifted by up to so many pixels either way, its rim repeated; not in L-BFGS.
        starts: (t, ...) parameters to begin from; None: each problem draws its own noise.
        seed: of starts and shifts; those of the i-th picture depend on it and on i alone.
        adam, patience: the first stage; FeatureVis's is ``Momentum()`` for 100 steps, which are so short that nothing
            happens. By default `RATE` per pixel, since gradients shrink with the number of pixels. Adam, whose steps
            are as long in every pixel, adds noise that takes long to remove.
        polish: a second stage, L-BFGS.
        at_once, inner_steps: as in `ProblemTask`; refill: as in `Pool`.

    After ``trainer.fit(task)``, ``task.result`` is the `ReconstructionResult`.
    """

    figures = ("score", "error")

    def __init__(
        self, network: Network, layer: str, parameterization: Parameterization, pictures: Tensor,
        names: Sequence[str], *, regularisers: Regularisers | None = None, anneal: float = 300.0,
        jitter: int = 0, starts: Tensor | None = None, seed: int = 0, adam: Adam | Momentum | None = None,
        patience: Patience | None = None, polish: LBFGS | None = None, at_once: int | None = 16, inner_steps: int = 25,
        refill: bool = False,
    ) -> None:  # fmt: skip
        weights = regularisers or Regularisers()
        self._check(parameterization, pictures, names, weights, jitter, starts)
        if not anneal >= 1:
            raise FvlightError(f"anneal={anneal}: total variation begins 1 or more times as strong")
        super().__init__(
            len(pictures), parameterization.shape, patience=patience or Patience(500, 500), polish=polish,
            adam=adam or Momentum(pixel_rate(RATE, pictures[0, 0].numel(), weights, anneal), MOMENTUM),
            at_once=at_once, inner_steps=inner_steps, refill=refill,
        )  # fmt: skip
        self.network, self.layer, self.parameterization = network, layer, parameterization
        self.pictures, self.names, self.seed = pictures, list(names), seed
        self.regularisers, self.anneal, self.jitter, self.starts = weights, anneal, jitter, starts
        self.readout = Readout(network, layer, window=False)
        with torch.no_grad():
            self.map_shape: tuple[int, ...] = tuple(read_whole(self.readout, pictures[:1]).shape[1:])
        height, width = pictures.shape[-2:]
        self._levels = Levels(network.input_space, (height, width))
        self._lp, self._tv = Lp(weights.power), TotalVariation(2)
        self._lp_weight = weights.lp / (height * width * 128.0**weights.power)
        self._tv_weight = weights.tv / (height * width * (0.01 * 128.0) ** 2)
        self._weights = fingerprint(network.module)
        self._aim: tuple[Tensor, Tensor, Tensor] | None = None  # rows, their Phi(x0), its squared length
        self.result: ReconstructionResult | None = None

    @staticmethod
    def _check(
        parameterization: Parameterization, pictures: Tensor, names: Sequence[str], weights: Regularisers, jitter: int,
        starts: Tensor | None,
    ) -> None:  # fmt: skip
        shape = tuple(parameterization(parameterization.start(0)[None]).shape[1:])
        if pictures.dim() != 4 or tuple(pictures.shape[1:]) != shape or not len(pictures):
            raise FvlightError(f"pictures of shape {tuple(pictures.shape)}: (pictures, {', '.join(map(str, shape))})")
        if len(names) != len(pictures):
            raise FvlightError(f"{len(names)} names for {len(pictures)} pictures: give one for each")
        for name in ("lp", "tv"):
            if not getattr(weights, name) >= 0:
                raise FvlightError(f"{name}={getattr(weights, name)}: the weight of a prior must not be negative")
        if not 0 <= jitter < min(shape[-2:]):
            raise FvlightError(f"jitter={jitter}: 0, or pixels below the image's size of {shape[-2]} x {shape[-1]}")
        wanted = (len(pictures), *parameterization.shape)
        if starts is not None and tuple(starts.shape) != wanted:
            raise FvlightError(f"starts of shape {tuple(starts.shape)}: parameters of shape {wanted} are needed")

    def address(self, problem: int) -> tuple[str]:
        """The picture of a problem."""
        return (self.names[problem],)

    def start(self, rows: Tensor) -> Tensor:
        if self.starts is not None:
            return self.starts[rows]
        return torch.stack(
            [self.parameterization.start(seed_of(self.seed, "reconstruction", row)) for row in rows.tolist()]
        )

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """Score (b,) and figures (b, 2): score, relative error."""
        images = self.parameterization(raw)
        target, energy = self._target(rows, raw)
        first, steps = not bool(self.polishing[rows].any()), self.taken[rows]
        seen = self._jittered(images, rows, steps) if self.jitter and first else images
        error = (self.readout(seen, dtype=dtype) - target).flatten(1).square().sum(1) / energy  # type: ignore[operator]
        levels = self._levels.of(images)
        tv = self._tv_weight * (self._strength(steps).to(raw) if first else 1.0)
        score = self._lp_weight * self._lp(levels) + tv * self._tv(levels) - error
        return Evaluation(score, torch.stack([score, error.sqrt()], 1))

    def _strength(self, steps: Tensor) -> Tensor:
        """(b,) how many times as strong total variation is at these steps of the first stage; falls geometrically."""
        left = 1 - steps.double() / (0.75 * self.patience.max_steps)
        return self.anneal ** left.clamp_min(0)

    def _target(self, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Phi(x0) of the problems and its squared length (b,); kept as long as these are in the batch."""
        if self._aim is not None and torch.equal(self._aim[0], rows) and self._aim[1].device == like.device:
            return self._aim[1:]
        with torch.no_grad():
            values: Any = self.readout(self.pictures[rows].to(like))
        energy: Tensor = values.flatten(1).square().sum(1)
        if (silent := (~(energy > 0)).nonzero()).numel():
            name = self.names[int(rows[int(silent[0])])]
            raise FvlightError(f"{name}: layer {self.layer!r} is silent on this picture, nothing can be rebuilt")
        self._aim = rows.clone(), values, energy
        return values, energy

    def _jittered(self, images: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        """Each image shifted, differently at each step of its problem."""
        j, (height, width) = self.jitter, images.shape[-2:]
        larger = F.pad(images, (j, j, j, j), mode="replicate")
        shifted = []
        for image, row, step in zip(larger, rows.tolist(), steps.tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed_of(self.seed, "jitter", row, step))
            top, left = torch.randint(0, 2 * j + 1, (2,), generator=generator).tolist()
            shifted.append(image[:, top : top + height, left : left + width])
        return torch.stack(shifted)

    def identity(self) -> dict[str, Any]:
        return {
            "task": "reconstruction",
            "network": self.network.name,
            "weights": self._weights,
            "layer": self.layer,
            "parameterization": str(self.parameterization),
            "pictures": fingerprint({"": self.pictures}),
            "starts": "" if self.starts is None else fingerprint({"": self.starts}),
            "regularisers": str(self.regularisers),
            "anneal": self.anneal,
            "jitter": self.jitter,
            "seed": self.seed,
        }

    @torch.no_grad()
    def collect(self) -> ReconstructionResult | None:
        """What there is now: a pass over all problems that have begun."""
        images = torch.zeros_like(self.pictures[self.share.mine])
        errors = torch.full((len(images),), float("nan"), dtype=self.raw.dtype)
        for rows in self.begun():
            found, here = self.parameterization(self.raw.data[self.rows_of(rows)]), self.share.place[rows]
            target, energy = self._target(rows, found)
            difference = (self.readout(found) - target).flatten(1).square().sum(1)  # type: ignore[operator]
            images[here], errors[here] = found.float().cpu(), (difference / energy).sqrt().cpu()
        raw, images, errors = (self.share.stack(rows) for rows in (self.raw.data.cpu(), images, errors))
        states, steps = self.share.merge(self.pool.status), self.share.merge(self.steps)
        if not self.share.first:
            return None
        space = self.network.input_space
        pair = space.to_rgb(images), space.to_rgb(self.pictures)
        decibels, alike = (measure(*pair).where(errors.isfinite(), torch.nan) for measure in (psnr, ssim))
        status = [Status(int(value)).label for value in states]
        return ReconstructionResult(
            self.names, self.pictures, images, raw, errors, decibels, alike, steps, status, self.layer
        )
