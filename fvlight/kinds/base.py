"""What every kind of task tells about itself, and what several of them share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fvlight.analysis.description import Description
from fvlight.errors import FvlightError, unknown
from fvlight.network import Network
from fvlight.priors import PixelCNN, TotalVariation
from fvlight.settings import number, numbers, setting, truth
from fvlight.solvers import Adam, Momentum, Patience
from fvlight.tasks import ProblemTask
from fvlight.tasks.identity import fingerprint
from fvlight.training.drive import Driven


class Kind(Protocol):
    """A module of this package. Tasks and results are those of the kind: `DiverseTask`, `DiverseResult`, …"""

    COLUMNS: list[str]  # of ``metrics.csv``: problem, what `address` gives, step, the task's figures

    @property
    def drive(self) -> Callable[..., Driven]:
        """``drive(config, task, run_dir, logger)`` runs the task, from where an earlier run was; `fit`, mostly."""

    @property
    def rows(self) -> Callable[[Any], list[list[Any]]]:
        """Of the task, for ``metrics.csv``; `metric_rows`, mostly."""

    def build(self, config: Mapping[str, Any], network: Network) -> tuple[Any, str]:
        """The task, and a few words on where the norm of its images, or what else it is given, comes from."""

    def settings(self, task: Any, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The kind's own settings for ``summary.json``: known before the fit."""

    def tensors(self, result: Any, network: Network) -> dict[str, Tensor]:
        """What ``images.safetensors`` holds: `images`, `display` (U, …, C, H, W) and the kind's own."""

    def describe(self, config: Mapping[str, Any], task: Any, result: Any, device: torch.device) -> Description | None:
        """What more there is to say of each unit once its problems are solved; computed on the fit's device."""

    def problems(self, result: Any) -> list[tuple[str, str]]:
        """Each reported problem in words, with its status."""


def common_settings(config: Mapping[str, Any], network: Network) -> dict[str, Any]:
    """The arguments that tasks of single units take: starts, prior, solver."""
    prior = config["prior"]
    return {
        "restarts": number(config, "restarts", int),
        "seed": number(config, "seed", int),
        "prior": _prior(prior, network),
        "alpha": number(prior, "alpha", float, "prior."),
        "measure_prior": _measured(prior),
        "preconditioned": truth(config["parameterization"], "preconditioned", "parameterization."),
        **solver_settings(config),
    }


def solver_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that all tasks with Adam, or momentum in its place, take."""
    solver = config["solver"]
    return {
        "adam": _first_order(solver),
        "patience": Patience(
            number(solver, "max_steps", int, "solver."),
            number(solver, "patience", int, "solver."),
            number(solver, "decay", float, "solver."),
        ),
        "at_once": _at_once(solver),
        "inner_steps": number(solver, "inner_steps", int, "solver."),
        "refill": truth(solver, "refill", "solver."),
    }


def _at_once(solver: Mapping[str, Any]) -> int | None:
    """Problems in the batch; None: to be measured."""
    given = setting(solver, "at_once", "solver.")
    if given == "auto":
        return None
    if isinstance(given, str):
        raise FvlightError(f"solver.at_once={given}: a whole number is needed, or auto")
    return number(solver, "at_once", int, "solver.")  # type: ignore[no-any-return]


def _first_order(solver: Mapping[str, Any]) -> Adam | Momentum:
    """How steps are taken."""
    name, rate = setting(solver, "name", "solver."), number(solver, "lr", float, "solver.")
    if name == "momentum":
        return Momentum(rate, number(solver, "momentum", float, "solver."))
    if name != "adam":
        raise unknown("solver.name", name, ["adam", "momentum"])
    betas = numbers(solver, "betas", 2, float, "solver.")
    return Adam(rate, betas, number(solver, "eps", float, "solver."))  # type: ignore[arg-type]


def _prior(prior: Mapping[str, Any], network: Network) -> nn.Module | None:
    """The prior; None where it has no weight, unless it shall tell of the final images all the same."""
    name = prior["name"]
    priors = ["none", "total_variation", "pixelcnn"]
    if name not in priors:
        raise unknown("prior", name, priors)
    if name == "none" or not (_measured(prior) or number(prior, "alpha", float, "prior.")):
        return None
    return TotalVariation() if name == "total_variation" else _pixelcnn(prior, network)


def _measured(prior: Mapping[str, Any]) -> bool:
    """Whether the prior tells of the final images at any alpha."""
    return "measure" in prior and truth(prior, "measure", "prior.")


def _pixelcnn(prior: Mapping[str, Any], network: Network) -> PixelCNN:
    """From ``prior=pixelcnn``."""
    from fvlight.zoo.pixelcnn_weights import load_pixelcnn  # the library itself does not know the zoo

    dropout = number(prior, "dropout", float, "prior.")
    module = load_pixelcnn(str(prior["weights"]), averaged=truth(prior, "averaged", "prior."), dropout=dropout)
    return PixelCNN(
        module, network.input_space, scaling=str(setting(prior, "scaling", "prior.")), dropout=dropout > 0,
        clip=truth(prior, "clip", "prior."), at_once=number(prior, "at_once", int, "prior."),
        identity=fingerprint(module),
    )  # fmt: skip


@contextmanager
def progress(words: str, shown: bool = True, seconds: float = 30.0) -> Iterator[Callable[[float], None]]:
    """To be told the share that is done: a bar on a terminal, elsewhere a line every so many seconds."""
    began = last = time.monotonic()
    terminal = sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not (shown and terminal)) as bar:
        row = bar.add_task(words, total=1.0)

        def show(share: float) -> None:
            nonlocal last
            bar.update(row, completed=share)
            now = time.monotonic()
            if shown and not terminal and now - last >= seconds:
                last, left = now, (now - began) * (1 - share) / share
                print(f"{words}: {share:.0%}, about {left:.0f} s left", file=sys.stderr, flush=True)

        yield show


def nan_problems(problems: list[tuple[str, str]]) -> str:
    """The problems whose best start became NaN, in words; empty if there is none."""
    bad = [name for name, status in problems if status == "nan"]
    return ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")


def metric_rows(task: ProblemTask) -> list[list[Any]]:
    """The rows of ``metrics.csv``: how each problem went, block by block; in order of problems and steps."""
    history = sorted((row for block in task.history for row in block.tolist()), key=lambda row: row[:2])
    return [
        [int(problem), *task.address(int(problem)), int(step), *figures]  # type: ignore[operator]
        for problem, step, *figures in history
    ]
