"""One run, from its configuration to its files. Knows plain mappings, not Hydra."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

import fvlight
from fvlight.analysis import cadena2018, gruen2016, gruen2016_reconstruction, reinbold2020
from fvlight.analysis.claims import Claim, MissingRun, Runs
from fvlight.errors import FvlightError, unknown
from fvlight.kinds import kind_named, nan_problems
from fvlight.network import Network
from fvlight.paper_figures import FIGURES
from fvlight.report import write_report
from fvlight.results import write_curves, write_images, write_metrics, write_summary
from fvlight.settings import chosen_layer, number
from fvlight.training.drive import Driven

CLAIMS: dict[str, Callable[..., list[Claim]]] = {
    **cadena2018.CLAIMS, **reinbold2020.CLAIMS, **gruen2016.CLAIMS, **gruen2016_reconstruction.CLAIMS,
}  # fmt: skip
SIBLINGS = ("realizations", "start", "image")  # settings that may name another run of the experiment


@dataclass
class Outcome:
    """What a run or an experiment left behind; ``results``, ``networks`` and ``nan`` by the names of its runs.

    ``nan`` names, in words, the problems that became NaN; runs without any are not in it. ``interrupted`` is the number
    of the signal that ended it, or 0. Of several processes the first writes all there is; in the others only that
    number is set.
    """

    summary: dict[str, Any]
    results: dict[str, Any]
    networks: dict[str, Network]
    report: Path
    interrupted: int
    nan: dict[str, str] = field(default_factory=dict)


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


def build_task(config: Mapping[str, Any], network: Network) -> tuple[Any, str]:
    """The task of a run, of whatever kind, and a few words on where the norm of its images comes from."""
    return kind_named(config).build(config, network)


def run(config: Mapping[str, Any], run_dir: Path, logger: Logger | None, command: str) -> Outcome:
    """Solve a run's problems, going on from its checkpoint where there is one, and write its files.

    Raises:
        FvlightError: see the text; what had been computed is written before the error about NaN.
    """
    layer = chosen_layer(config)  # before weights are downloaded
    kind = kind_named(config)
    network = build_network(config)
    task, origin = kind.build(config, network)
    settings = kind.settings(task, origin, config)
    if (why := settings.get("whole_image")) and config["image_size"] is None:
        size = " x ".join(str(side) for side in settings["image_size"])
        print(f"the units of {layer!r} see the whole image of {size} pixels: {why}", file=sys.stderr)
    driven = kind.drive(config, task, run_dir, logger)
    if driven.first:
        outcome = _written(config, network, task, settings, driven, run_dir, command)
    else:
        outcome = Outcome({}, {}, {}, run_dir, driven.interrupted)
    driven.wait()  # what comes next may read the files
    return outcome


def _written(
    config: Mapping[str, Any], network: Network, task: Any, settings: dict[str, Any], driven: Driven, run_dir: Path,
    command: str,
) -> Outcome:  # fmt: skip
    """Write the files of a run that has ended."""
    kind = kind_named(config)
    result = task.result or task.collect()
    write_images(run_dir, **kind.tensors(result, network))
    write_metrics(run_dir, kind.COLUMNS, kind.rows(task))
    units = result.summary()
    # SLURM leaves half a minute after its signal; a run that is complete will not be looked at again
    hurry = driven.interrupted not in (0, signal.SIGINT) and not result.complete
    if not hurry and (description := kind.describe(config, task, result, driven.device)) is not None:
        write_curves(run_dir, description.tensors())
        units = [{**unit, "description": more} for unit, more in zip(units, description.summary(), strict=True)]
    nan = nan_problems(kind.problems(result))
    results, networks = {network.name: result}, {network.name: network}
    summary = {
        **_summary(config, task, settings, driven.precision, command),
        "complete": result.complete,
        "units": units,
        "warnings": [*result.warnings, *([f"became NaN and kept their last finite images: {nan}"] if nan else [])],
        "claims": conclude(config, results, networks, run_dir),
    }
    write_summary(run_dir, summary)
    report = write_report(run_dir)
    return Outcome(summary, results, networks, report, driven.interrupted, {network.name: nan} if nan else {})


def conclude(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    networks: Mapping[str, Network],
    run_dir: Path,
) -> list[dict[str, Any]]:
    """The claims that a configuration asks for, for ``summary.json``; their figures are added to the run's.

    None, with a line that says so, where they need a run that was left out.
    """
    name = config.get("claims")
    if not name:
        return []
    if name not in CLAIMS:
        raise unknown("set of claims", name, CLAIMS)
    results, networks = Runs(results), Runs(networks)
    try:
        if name in FIGURES:
            FIGURES[name](results, networks, run_dir)
        return [claim.as_dict() for claim in CLAIMS[name](results, networks)]
    except MissingRun as missing:
        print(f"claims={name}: not measured, they need the run {missing}, which was left out", file=sys.stderr)
        return []


def _summary(
    config: Mapping[str, Any], task: Any, settings: dict[str, Any], precision: str, command: str
) -> dict[str, Any]:
    """``summary.json`` but for units, warnings and claims; ``settings`` are those of the kind of task."""
    return {
        "task": config["task"]["name"],
        "network": config["network"]["name"],
        "weights": config["network"]["weights"],
        "layer": chosen_layer(config),
        **settings,
        "seed": task.seed,
        "precision": precision,
        "seconds": round(task.seconds, 3),
        "version": fvlight.__version__,
        "command": command,
    }


def run_experiment(
    config: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], run_dir: Path, command: str
) -> Outcome:
    """Several runs, each in a folder of its own, and the claims about all of them together."""
    results: dict[str, Any] = {}
    networks: dict[str, Network] = {}
    parts: dict[str, Any] = {}
    nan: dict[str, str] = {}
    for name, part in runs.items():
        print(f"{name}", file=sys.stderr)
        siblings = {key: str(run_dir / str(part[key])) for key in SIBLINGS if part.get(key) in runs}
        outcome = run({**part, **siblings}, run_dir / name, None, command)
        if outcome.interrupted:
            return outcome
        if not outcome.summary:  # another process writes
            continue
        (results[name],), (networks[name],) = outcome.results.values(), outcome.networks.values()
        parts[name] = {
            key: outcome.summary[key]
            for key in ("task", "network", "layer", "complete", "seconds", "units", "warnings")
        }
        for text in outcome.nan.values():
            nan[name] = text
    if not parts:  # another process writes
        return Outcome({}, {}, {}, run_dir, interrupted=0)
    claims = conclude(config, results, networks, run_dir)
    summary = {
        "task": "experiment",
        "experiment": config.get("experiment_name"),
        "complete": all(part["complete"] for part in parts.values()),
        "seed": config["seed"],
        "version": fvlight.__version__,
        "command": command,
        "runs": parts,
        **(reinbold2020.measures(results, networks) if claims and config["claims"] in reinbold2020.CLAIMS else {}),
        "claims": claims,
        "warnings": [f"{name}: {text}" for name, part in parts.items() for text in part["warnings"]],
    }
    write_summary(run_dir, summary)
    return Outcome(summary, results, networks, write_report(run_dir), interrupted=0, nan=nan)
