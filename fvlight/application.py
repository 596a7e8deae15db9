"""One run, from its configuration to its files. Knows plain mappings, not Hydra."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

import fvlight
from fvlight.analysis import cadena2018
from fvlight.analysis.diverse import DiverseResult
from fvlight.errors import FvlightError, unknown
from fvlight.network import Network
from fvlight.paper_figures import draw_averages, draw_phases
from fvlight.priors import TotalVariation
from fvlight.readout import Readout
from fvlight.report import write_report
from fvlight.results import write_images, write_metrics, write_summary
from fvlight.settings import number, numbers, parse_position, parse_units, resolve_norm
from fvlight.solvers import Adam, Patience
from fvlight.tasks import DiverseTask
from fvlight.tasks.base import PRECISIONS
from fvlight.tasks.diverse import UnitReadout
from fvlight.training import AtomicCheckpointIO, ProblemProgressBar, SaveRegularly, StopOnInterrupt
from fvlight.training.checkpoints import FILE_NAME

# The figures that belong to a set of claims.
FIGURES = {"complex_cells": draw_phases, "corner": draw_averages}


@dataclass
class Outcome:
    """What a run or an experiment left behind; ``results`` and ``networks`` by the names of its runs."""

    summary: dict[str, Any]
    results: dict[str, DiverseResult]
    networks: dict[str, Network]
    report: Path
    interrupted: bool


def build_network(config: Mapping[str, Any]) -> Network:
    """The network of a run's configuration."""
    from fvlight.zoo import load_network  # the library itself does not know the zoo

    chosen = config["network"]
    options, shuffle = dict(chosen.get("options") or {}), str(chosen.get("shuffle") or "")
    seed = number(chosen, "seed", int, "network.")
    return load_network(chosen["name"], chosen["weights"], seed, shuffle=shuffle, **options)


def network_to_list(config: Mapping[str, Any]) -> Network:
    """The network of a configuration for a look at its layers.

    Any weights will do for that: default ones, which may have to be downloaded, are left alone. A given file is
    read, since it may end early.
    """
    chosen = config["network"]
    if chosen["weights"] in ("default", "random"):
        try:
            return build_network({"network": {**chosen, "weights": "random", "shuffle": ""}})
        except FvlightError:  # an analytic cell, whose weights are its own
            if chosen["weights"] == "random":
                raise
    return build_network(config)


def chosen_layer(config: Mapping[str, Any]) -> str:
    """The layer of a run's configuration; the networks of libraries have no default one."""
    if config["layer"] is None:
        name = config["network"]["name"]
        raise FvlightError(
            f"layer is not set, and there is no obvious one in network {name!r}: give layer=NAME "
            f"(fvlight network={name} --list-layers prints them)"
        )
    return str(config["layer"])


def build_task(config: Mapping[str, Any], network: Network) -> tuple[DiverseTask, str]:
    """The task, and a few words on where the norm of its images comes from."""
    layer, solver, grid, prior = chosen_layer(config), config["solver"], config["lambda_grid"], config["prior"]
    image_size = None if config["image_size"] is None else numbers(config, "image_size", 2, int)
    preconditioned = config["parameterization"]["preconditioned"]
    if not isinstance(preconditioned, bool):
        raise FvlightError(f"parameterization.preconditioned={preconditioned}: there are true and false")
    try:
        position = parse_position(config.get("position"))
        reader = UnitReadout(network, layer, config["distance_layer"], image_size, position)
    except RuntimeError as error:
        if image_size is None:
            raise
        raise FvlightError(
            f"image_size={list(image_size)}: layer {layer!r} of {network.name!r} can't be computed on such images "
            f"({str(error).splitlines()[0]}): give a larger [height, width]"
        ) from error
    norm, origin = resolve_norm(config, network, layer, reader.image_size)
    betas = numbers(solver, "betas", 2, float, "solver.")
    task = DiverseTask(
        network,
        layer,
        parse_units(config["unit"], reader.units, layer),
        norm=norm,
        lambdas=numbers(grid, "values", None, float, "lambda_grid."),
        distance_layer=config["distance_layer"],
        convention=config["convention"],
        threshold=number(config, "threshold"),
        images_per_problem=number(config, "images_per_problem", int),
        restarts=number(config, "restarts", int),
        seed=number(config, "seed", int),
        continuation=grid["continuation"],
        prior=_prior(prior["name"]),
        alpha=number(prior, "alpha", float, "prior."),
        preconditioned=preconditioned,
        adam=Adam(number(solver, "lr", float, "solver."), betas, number(solver, "eps", float, "solver.")),  # type: ignore[arg-type]
        patience=Patience(
            number(solver, "max_steps", int, "solver."),
            number(solver, "patience", int, "solver."),
            number(solver, "decay", float, "solver."),
        ),
        at_once=number(solver, "at_once", int, "solver."),
        inner_steps=number(solver, "inner_steps", int, "solver."),
        image_size=image_size,
        reader=reader,
    )
    return task, origin


def _prior(name: str) -> torch.nn.Module | None:
    priors: dict[str, type[torch.nn.Module] | None] = {"none": None, "total_variation": TotalVariation}
    if name not in priors:
        raise unknown("prior", name, priors)
    kind = priors[name]
    return None if kind is None else kind()


def run(config: Mapping[str, Any], run_dir: Path, logger: Logger | None, command: str) -> Outcome:
    """Solve a run's problems, going on from its checkpoint where there is one, and write its files.

    Raises:
        FvlightError: see the text; what had been computed is written before the error about NaN.
    """
    chosen_layer(config)  # before weights are downloaded
    network = build_network(config)
    task, origin = build_task(config, network)
    if (window := _window(task.reader.readout)) and config["image_size"] is None:
        size = " x ".join(str(side) for side in task.reader.image_size)
        why = window["whole_image"]
        print(f"the units of {task.reader.layer!r} see the whole image of {size} pixels: {why}", file=sys.stderr)
    checkpoint = run_dir / "checkpoints" / FILE_NAME
    if checkpoint.exists():
        print(f"going on from {checkpoint}", file=sys.stderr)
    interrupt = StopOnInterrupt()
    trainer = _trainer(config, run_dir, logger, interrupt)
    try:
        trainer.fit(task, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt, that is, of the second Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        interrupt.restore()
    result = task.result or task.collect()
    write_images(run_dir, result.images, network.input_space.to_display(result.images))
    write_metrics(run_dir, *metrics(task))
    summary = _summary(config, task, result, origin, str(trainer.precision), command)
    results, networks = {network.name: result}, {network.name: network}
    summary["claims"] = conclude(config, results, networks, run_dir)
    write_summary(run_dir, summary)
    report = write_report(run_dir)
    return Outcome(summary, results, networks, report, interrupt.requested)


def _trainer(config: Mapping[str, Any], run_dir: Path, logger: Logger | None, interrupt: StopOnInterrupt) -> L.Trainer:
    seconds = number(config, "checkpoint_seconds")
    callbacks = [interrupt, SaveRegularly(run_dir / "checkpoints", seconds), ProblemProgressBar()]
    precision = str(config["trainer"].get("precision", "32-true"))
    if precision not in (*PRECISIONS, "32", "64", "bf16"):  # before Lightning takes another one for it
        raise FvlightError(f"trainer.precision={precision}: fvlight computes in {', '.join(PRECISIONS)}")
    try:
        trainer = L.Trainer(
            **config["trainer"],
            max_epochs=-1,  # the task ends the fit; with 1, an interrupted run would count as fitted for good
            logger=logger or False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise FvlightError(f"trainer: {str(error).splitlines()[0]}") from error
    if trainer.world_size > 1:  # before Lightning starts the other processes
        raise FvlightError(
            f"trainer.devices={config['trainer'].get('devices')} gives {trainer.world_size} processes, and "
            "this task runs in one: set trainer.devices=1"
        )
    return trainer


def conclude(
    config: Mapping[str, Any],
    results: Mapping[str, DiverseResult],
    networks: Mapping[str, Network],
    run_dir: Path,
) -> list[dict[str, Any]]:
    """The claims that a configuration asks for, for ``summary.json``; their figures are added to the run's."""
    name = config.get("claims")
    if not name:
        return []
    if name not in cadena2018.CLAIMS:
        raise unknown("set of claims", name, cadena2018.CLAIMS)
    if name in FIGURES:
        FIGURES[name](results, networks, run_dir)
    return [claim.as_dict() for claim in cadena2018.CLAIMS[name](results, networks)]


def _summary(
    config: Mapping[str, Any],
    task: DiverseTask,
    result: DiverseResult,
    origin: str,
    precision: str,
    command: str,
) -> dict[str, Any]:
    warnings = list(result.warnings)
    nan = nan_problems(result)
    if nan:
        warnings.append(f"became NaN and kept their last finite images: {nan}")
    return {
        "task": "diverse",
        "network": config["network"]["name"],
        "weights": config["network"]["weights"],
        "layer": task.reader.layer,
        "distance_layer": task.reader.distance_layer,
        "convention": task.convention.name,
        "threshold": task.threshold,
        "complete": result.complete,
        "seed": task.seed,
        "images_per_problem": task.images_per_problem,
        "restarts": task.restarts,
        "continuation": task.continuation,
        "norm": task.parameterization.norm,
        "norm_origin": origin,
        "image_size": list(task.reader.image_size),
        **_window(task.reader.readout),
        "prior": config["prior"]["name"],
        "alpha": task.alpha,
        "precision": precision,
        "seconds": round(task.seconds, 3),
        "version": fvlight.__version__,
        "command": command,
        "units": result.summary(),
        "warnings": warnings,
    }


def _window(readout: Readout) -> dict[str, Any]:
    """For units that see the whole image: why, and which one of each channel was read."""
    if readout.field is None or not readout.field.whole_image:
        return {}
    position = readout.position
    at = "center of the map, or mean over tokens" if position is None else position
    return {"whole_image": readout.field.reason, "position": list(at) if isinstance(at, tuple) else at}


def nan_problems(result: DiverseResult) -> str:
    """The problems whose best start became NaN, in words; empty if there is none."""
    bad = [
        f"unit {unit} at lambda {value:g}"
        for unit, row in zip(result.units, result.status, strict=True)
        for value, status in zip(result.lambdas, row, strict=True)
        if status == "nan"
    ]
    return ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")


def metrics(task: DiverseTask) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of ``metrics.csv``: how each problem went, block by block."""
    columns = ["problem", "unit", "lambda", "start", "step", "score", "mean_activation", "min_distance"]
    rows = [
        [int(problem), *task.address(int(problem)), int(step), *figures]
        for problem, step, *figures in (row for block in task.history for row in block.tolist())
    ]
    return columns, sorted(rows, key=lambda row: (row[0], row[4]))


def run_experiment(
    config: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], run_dir: Path, command: str
) -> Outcome:
    """Several runs, each in a folder of its own, and the claims about all of them together."""
    results: dict[str, DiverseResult] = {}
    networks: dict[str, Network] = {}
    parts: dict[str, Any] = {}
    for name, part in runs.items():
        print(f"{name}", file=sys.stderr)
        outcome = run(part, run_dir / name, None, command)
        (results[name],), (networks[name],) = outcome.results.values(), outcome.networks.values()
        parts[name] = {
            key: outcome.summary[key] for key in ("network", "layer", "complete", "seconds", "units", "warnings")
        }
        if outcome.interrupted:
            return outcome
    summary = {
        "task": "experiment",
        "experiment": config.get("experiment_name"),
        "complete": all(part["complete"] for part in parts.values()),
        "seed": config["seed"],
        "version": fvlight.__version__,
        "command": command,
        "runs": parts,
        "claims": conclude(config, results, networks, run_dir),
        "warnings": [f"{name}: {text}" for name, part in parts.items() for text in part["warnings"]],
    }
    write_summary(run_dir, summary)
    return Outcome(summary, results, networks, write_report(run_dir), interrupted=False)
