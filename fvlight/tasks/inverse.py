"""Inverse feature visualization [Reinbold & Westermann 2020]: which target objective does an image stand for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fvlight.analysis.critical_space import Choice, CriticalSpace, choose_space, critical_spaces
from fvlight.analysis.diverse import finite
from fvlight.analysis.inverse import DEAD, RULES, Averaged, angles, average, contributions, predict, scaling, spectrum
from fvlight.analysis.jacobians import Jacobians, jacobians
from fvlight.errors import FvlightError, unknown
from fvlight.response import Response
from fvlight.solvers import Adam, Patience, Status
from fvlight.tasks.base import ProblemTask
from fvlight.tasks.identity import fingerprint, seed_of

TOP = 8  # features of an objective that are named


class Noise(NamedTuple):
    """Gaussian noise on the parameters over which Jacobians are averaged: standard deviation, how many samples."""

    sigma: float
    samples: int = 40


@dataclass
class InverseResult:
    """The objectives of t images over n features; all float64.

    Attributes:
        names: of the images.
        raw: (t, ...) their parameters; ``images`` (t, C, H, W), float32.
        objectives: (t, n) unit vectors; 0 at dead features, NaN where an image could not be inverted.
        responses: (t, n).
        values: (t, n) singular values of M J, ascending; NaN for those that dead features or the critical space take.
        gap, gradient: (t,), see `Prediction`.
        living: (t, n).
        targets: (t, n) where they are known; None else. No prediction knows them.
        contributions: (t, n) of the targets, see `fvlight.analysis.inverse.contributions`; NaN where unknown.
        choice: of the critical space, where one was looked for; made with the first `known` targets.
    """

    names: list[str]
    raw: Tensor
    images: Tensor
    objectives: Tensor
    responses: Tensor
    values: Tensor
    gap: Tensor
    gradient: Tensor
    living: Tensor
    contributions: Tensor
    status: list[str]
    layer: str = ""
    targets: Tensor | None = None
    choice: Choice | None = None
    spaces: list[CriticalSpace] = field(default_factory=list)
    known: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every image was looked at."""
        return all(word != "interrupted" for word in self.status)

    def angles(self, living: bool = False) -> dict[str, Tensor]:
        """Degrees (t,) of ``predicted`` and ``response`` to the targets; over living features alone if asked."""
        if self.targets is None:
            raise FvlightError("angles need the targets, which are not known")
        features = self.living if living else None
        found = {"predicted": self.objectives, "response": self.responses}
        return {name: angles(vectors, self.targets, features=features) for name, vectors in found.items()}

    def summary(self) -> list[dict[str, Any]]:
        """``units`` of ``summary.json``, one per image; numbers that are not finite are None."""
        rows = []
        known = {} if self.targets is None else self.angles()
        among_living = {} if self.targets is None else self.angles(living=True)
        for i, name in enumerate(self.names):
            top = self.objectives[i].nan_to_num(0).argsort(descending=True)[:TOP].tolist()
            row: dict[str, Any] = {
                "unit": name,
                "features": [{"feature": f, "weight": finite(self.objectives[i, f])} for f in top],
                "confidence": finite(self.gap[i]),
                "relative_gradient": finite(self.gradient[i]),
                "dead_features": int((~self.living[i]).sum()),
            }
            row |= {f"angle_{kind}": finite(found[i]) for kind, found in known.items()}
            if among_living:
                row["angle_living"] = finite(among_living["predicted"][i])
            rows.append({**row, "status": self.status[i]})
        return rows


class InverseTask(ProblemTask):
    """The objectives that images are optima of; the parameters that are looked for are the objectives themselves.

    Nothing is iterated: a block takes a few images, computes their Jacobians and the smallest singular vectors.

    Args:
        response: what is read and from which parameters.
        raw: (t, ...) parameters of the images.
        names: of the images.
        power: of the cosine in the objective that they are taken to be optima of.
        targets: (t, n) where they are known: for angles and contributions alone.
        threshold: of dead features, see `fvlight.analysis.inverse.living`.
        rule: how the objective is told from the spectrum, see `fvlight.analysis.inverse.predict`.
        noise: average over it; None: take the parameters as they are.
        samples: look for a critical space on the first so many images, by their known targets; 0: do not.
        rows_at_once: of Jacobians in one backward pass; bounds the memory. None: by the size of things.
        seed: of the noise.

    After ``trainer.fit(task)``, ``task.result`` is the `InverseResult`.
    """

    figures = ("confidence", "relative_gradient")

    def __init__(
        self, response: Response, raw: Tensor, names: Sequence[str], *, power: float = 2,
        targets: Tensor | None = None, threshold: float = DEAD, rule: str = RULES[0], noise: Noise | None = None,
        samples: int = 0, rows_at_once: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        n = response.features
        self._check(response, raw, targets, power, threshold, samples)
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        self.rule = rule
        super().__init__(
            len(raw), (n,), adam=Adam(), patience=Patience(1, 1), at_once=max(1, 64 // n), inner_steps=1,
            refill=False,
        )  # fmt: skip
        self.response, self.layer, self.seed = response, response.layer, seed
        self.inputs, self.names, self.power, self.targets = raw, list(names), power, targets
        self.threshold, self.noise, self.samples, self.rows_at_once = threshold, noise, samples, rows_at_once
        self._weights = fingerprint(response.network.module)
        problems, empty = len(raw), {"dtype": torch.float64}
        self.found = {
            "objectives": torch.full((problems, n), torch.nan, **empty),  # type: ignore[call-overload]
            "responses": torch.full((problems, n), torch.nan, **empty),  # type: ignore[call-overload]
            "values": torch.full((problems, n), torch.nan, **empty),  # type: ignore[call-overload]
            "contributions": torch.full((problems, n), torch.nan, **empty),  # type: ignore[call-overload]
            "gap": torch.full((problems,), torch.nan, **empty),  # type: ignore[call-overload]
            "gradient": torch.full((problems,), torch.nan, **empty),  # type: ignore[call-overload]
            "living": torch.zeros(problems, n, dtype=torch.bool),
        }
        if samples:  # to be looked at again once the space is known
            self.found["grams"] = torch.zeros(problems, n, n, **empty)  # type: ignore[call-overload]
        if samples and noise is not None:
            self.found["products"] = torch.zeros(problems, n, n, **empty)  # type: ignore[call-overload]
            self.found["norms"] = torch.zeros(problems, n, **empty)  # type: ignore[call-overload]
        self.result: InverseResult | None = None

    @staticmethod
    def _check(
        response: Response, raw: Tensor, targets: Tensor | None, power: float, threshold: float, samples: int
    ) -> None:  # fmt: skip
        shape = (len(raw), *response.parameterization.shape)
        if not len(raw) or tuple(raw.shape) != shape:
            raise FvlightError(f"parameters of shape {tuple(raw.shape)}: at least one of shape {shape[1:]} is needed")
        bad = (~raw.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise FvlightError(f"image {bad[0]} holds NaN or infinite numbers: it can't be inverted")
        d = raw[0].numel()
        if response.features > d:
            raise FvlightError(
                f"{response.features} features of {d} parameters: some objective always has a gradient of zero; "
                f"choose fewer with features=N, up to {d}, or larger images"
            )
        if targets is not None and tuple(targets.shape) != (len(raw), response.features):
            raise FvlightError(
                f"targets of shape {tuple(targets.shape)} for {len(raw)} images and {response.features} features"
            )
        if not power >= 0 or not 0 <= threshold < 1:
            raise FvlightError(f"power={power}, dead={threshold}: power 0 or more, dead from 0 to below 1")
        if samples and targets is None:
            raise FvlightError("a critical space is chosen by known targets: give realizations whose targets are known")

    def address(self, problem: int) -> tuple[int]:
        """The image of a problem."""
        return (problem,)

    def start(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), self.response.features)

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Any:
        raise NotImplementedError("nothing is iterated")

    def _solve(self, rows: Tensor) -> None:
        """Invert a few images."""
        inputs = self.inputs[rows].to(self.device, self.raw.dtype)
        # in the parameters' number type whatever the Trainer's precision: small singular values need all digits
        with torch.autocast(self.device.type, enabled=False):
            jacobian = jacobians(self.response, inputs, at_once=self.rows_at_once)
            averaged = None
            if self.noise is not None:
                # every image has noise of its own, the same in whatever company it is inverted
                parts = [self._average(inputs[i : i + 1], row) for i, row in enumerate(rows.tolist())]
                averaged = Averaged(*(torch.cat(parts) for parts in zip(*parts, strict=True)))
        self._keep(rows, jacobian, averaged)

    def _average(self, raw: Tensor, row: int) -> Averaged:
        assert self.noise is not None
        seed = seed_of(self.seed, "noise", row)
        return average(
            self.response, raw, self.power, sigma=self.noise.sigma, samples=self.noise.samples, seed=seed,
            at_once=self.rows_at_once,
        )  # fmt: skip

    def _keep(self, rows: Tensor, jacobian: Jacobians, averaged: Averaged | None) -> None:
        gram, response = jacobian.gram.cpu(), jacobian.response.cpu()
        averaged = None if averaged is None else Averaged(*(part.cpu() for part in averaged))
        for i, row in enumerate(rows.tolist()):
            one = None if averaged is None else Averaged(*(part[i : i + 1] for part in averaged))
            self.found["responses"][row] = response[i]
            if self.samples:
                self.found["grams"][row] = gram[i]
            if self.samples and averaged is not None:
                self.found["products"][row], self.found["norms"][row] = averaged.product[i], averaged.norms[i]
            try:
                self._predict(row, gram[i : i + 1], response[i : i + 1], one, None)
                status = Status.CONVERGED
            except FvlightError:  # no feature is alive: said in the warnings
                status = Status.NAN
            self.pool.status[row] = int(status)
        self.raw.data[self.rows_of(rows)] = self.found["objectives"][rows].to(self.raw)
        figures = torch.stack([self.found["gap"][rows], self.found["gradient"][rows]], 1)
        self.history.append(torch.cat([rows.double()[:, None], torch.ones(len(rows), 1).double(), figures], 1))

    def _predict(
        self, row: int, gram: Tensor, response: Tensor, averaged: Averaged | None, basis: Tensor | None
    ) -> None:  # fmt: skip
        found = predict(
            gram, response, self.power, threshold=self.threshold, averaged=averaged, basis=basis, rule=self.rule
        )
        self.found["objectives"][row] = found.objective[0]
        self.found["values"][row] = found.spectrum.values[0]
        self.found["gap"][row], self.found["gradient"][row] = found.gap[0], found.gradient[0]
        self.found["living"][row] = found.living[0]
        if self.targets is not None:
            parts = contributions(found.spectrum, self.targets[row : row + 1])[0]
            self.found["contributions"][row] = parts.where(found.spectrum.values[0].isfinite(), torch.nan)

    def identity(self) -> dict[str, Any]:
        return {
            "task": "inverse",
            "network": self.response.network.name,
            "weights": self._weights,
            "layer": self.layer,
            "parameterization": str(self.response.parameterization),
            "aggregation": str(self.response.aggregation),
            "images": fingerprint({"": self.inputs}),
            "power": self.power,
            "threshold": self.threshold,
            "rule": self.rule,
            "noise": list(self.noise or ()),
            "samples": self.samples,
            "seed": self.seed,
        }

    def extra_state(self) -> dict[str, Tensor]:
        return {f"found_{name}": value for name, value in self.found.items()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.found = {name: state[f"found_{name}"] for name in self.found}

    # -- the result ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> InverseResult | None:
        """What there is now, with the critical space where one was asked for."""
        images = torch.zeros(len(self.share.mine), *self.response.image_shape)
        for rows in self.begun():
            inputs = self.inputs[rows].to(self.device, self.raw.dtype)
            images[self.share.place[rows]] = self.response.parameterization(inputs).float().cpu()
        images, states = self.share.stack(images), self.share.merge(self.pool.status)
        found = {name: self.share.merge(value) for name, value in self.found.items()}
        if not self.share.first:
            return None
        self.found = found
        choice, spaces, known = self._choose(states) if self.samples else (None, [], 0)
        status = [Status(int(value)).label for value in states]
        lost = [self.names[i] for i, word in enumerate(status) if word == "nan"]
        warnings = [f"no feature answers to {', '.join(lost)}: there is nothing to infer"] if lost else []
        found = {name: value for name, value in self.found.items() if name not in ("grams", "products", "norms")}
        return InverseResult(
            names=self.names, raw=self.inputs, images=images, status=status, layer=self.layer, targets=self.targets,
            choice=choice, spaces=spaces, known=known, warnings=warnings, **found,
        )  # fmt: skip

    def _choose(self, states: Tensor) -> tuple[Choice | None, list[CriticalSpace], int]:
        """Find the spaces on the first images, choose one by their targets, and predict all with it."""
        good = (states == int(Status.CONVERGED)).nonzero()[:, 0]
        first = good[good < self.samples]
        if not len(first):
            return None, [], 0
        assert self.targets is not None
        grams, responses, targets = self.found["grams"], self.found["responses"], self.targets
        spaces = critical_spaces(spectrum(grams[first], responses[first], 0))

        def averaged(rows: Tensor) -> Averaged | None:
            return Averaged(self.found["products"][rows], self.found["norms"][rows]) if self.noise else None

        def predicted(basis: Tensor | None) -> Tensor:
            found = predict(
                grams[first], responses[first], self.power, threshold=self.threshold, basis=basis, rule=self.rule,
                averaged=averaged(first),
            )  # fmt: skip
            return found.objective

        choice = choose_space(spaces, predicted, targets[first], scaling(responses[first], self.power))
        if choice.space is not None:
            for row in good.split(1):
                self._predict(int(row), grams[row], responses[row], averaged(row), choice.space.basis)
        return choice, spaces, len(first)
