"""Runs of realizations: images that stand for target objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fvlight.analysis.targets import canonical_targets, random_targets
from fvlight.errors import FvlightError, unknown
from fvlight.kinds.base import metric_rows, solver_settings
from fvlight.kinds.responses import build_response, read_run, response_settings
from fvlight.network import Network
from fvlight.parameterizations.robust import Transformations
from fvlight.response import Response
from fvlight.settings import even_sample, number, parse_units
from fvlight.solvers import LBFGS
from fvlight.tasks import RealizationResult, RealizationTask
from fvlight.training import fit

COLUMNS = ["problem", "target", "step", "score", "cosine"]
drive, rows = fit, metric_rows
TOWARD = {"targets": "targets", "predicted": "predicted", "response": "responses", "random": None}


def build(config: Mapping[str, Any], network: Network) -> tuple[RealizationTask, str]:
    """See `Kind`. The images have no norm: where its origin would be named stands where the targets come from."""
    response = build_response(config, network)
    starts, targets, origin = _problems(config, response)
    steps = number(config["solver"], "lbfgs_steps", int, "solver.")
    memory = number(config["solver"], "lbfgs_history", int, "solver.")
    polish = None
    if steps > 0:  # to their end: how flat is flat enough depends on the scale of the features
        polish = LBFGS(memory, gtol=0, ftol=0, max_iterations=steps, max_evaluations=steps)
    task = RealizationTask(
        response,
        targets,
        power=number(config, "power"),
        floor=number(config, "floor"),
        starts=starts,
        robust=_robust(config),
        seed=number(config, "seed", int),
        polish=polish,
        **solver_settings(config),
    )
    return task, origin


def _robust(config: Mapping[str, Any]) -> Transformations | None:
    given = config["robust"]
    chosen = Transformations(*(number(given, name, float, "robust.") for name in ("shift", "scale", "rotation")))
    return chosen or None


def _problems(config: Mapping[str, Any], response: Response) -> tuple[Tensor | None, Tensor, str]:
    """Starts, targets, and in words where these come from."""
    seed = number(config, "seed", int)
    if config["start"] is None and config["unit"] is not None:
        units = parse_units(config["unit"], response.features, response.layer)
        return None, canonical_targets(units, response.features), f"units {', '.join(map(str, units))}"
    if config["start"] is None:
        count, share = number(config, "targets", int), number(config, "canonical")
        if count < 1 or not 0 <= share <= 1:
            raise FvlightError(f"targets={count}, canonical={share}: at least one target, a share from 0 to 1")
        single = min(round(count * share), response.features)
        drawn = random_targets(count - single, response.features, seed)
        picked = canonical_targets(even_sample(range(response.features), single), response.features)
        return None, torch.cat([drawn, picked]), f"{count - single} random, {single} single features"
    found, toward = read_run("start", config["start"]), config["toward"]
    if toward not in TOWARD:
        raise unknown("toward", toward, TOWARD)
    name = TOWARD[toward]
    if "raw" not in found or (name is not None and name not in found):
        raise FvlightError(
            f"start={config['start']}, toward={toward}: that run has no {'raw' if 'raw' not in found else name}; "
            "give one of task=realization, or of task=inverse for its predictions"
        )
    # of random directions another seed than that of the targets: they shall not be the same
    targets = random_targets(len(found["raw"]), response.features, seed + 1) if name is None else found[name]
    return found["raw"], targets, f"{toward} of {config['start']}"


def settings(task: RealizationTask, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """See `Kind`."""
    return {
        **response_settings(config, task.response),
        "power": task.power,
        "floor": task.floor,
        "targets": origin,
        **({"robust": str(task.robust)} if task.robust else {}),
    }


def tensors(result: RealizationResult, network: Network) -> dict[str, Tensor]:
    """`images` and `display` (t, 1, 1, C, H, W); `raw`, `targets`, `responses` as in `RealizationResult`."""
    images = result.images[:, None, None]
    return {
        "images": images,
        "display": network.input_space.to_display(images),
        "raw": result.raw,
        "targets": result.targets,
        "responses": result.responses,
    }


def describe(config: Mapping[str, Any], task: RealizationTask, result: RealizationResult, device: torch.device) -> None:
    """See `Kind`: there is nothing more to say of a realization."""


def problems(result: RealizationResult) -> list[tuple[str, str]]:
    """See `Kind`."""
    return [(f"target {i}", status) for i, status in enumerate(result.status)]
