"""The command ``fvlight``: Hydra composes, `fvlight.application` runs, errors become one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvlight.command.networks import (
    LIST_LAYERS,
    LIST_NETWORKS,
    add_library_networks,
    conf_folder,
    networks_like,
    print_layer_table,
    print_networks,
)
from fvlight.command.processes import FOLLOW, JobResult, conclude_sweep, leads, require_one_folder, results, swept
from fvlight.command.resume import alone_in, quoted, recording, with_resume
from fvlight.errors import FvlightError, did_you_mean
from fvlight.trusted import trusted_class

if TYPE_CHECKING:
    from fvlight.application import Outcome

CONFIG = "config"
FULL_ERROR = "HYDRA_FULL_ERROR"
USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for an error the user can mend, and after a signal 128
    and its number: 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = os.environ.get(FULL_ERROR) not in (None, "", "0")
    try:
        with hydra_raises(), nullcontext() if leads() else _mute():
            return _run(given)
    except KeyboardInterrupt:
        print("fvlight: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
            return USAGE_ERROR
        line = explain(error)
        if line is None:  # not the user's doing: show everything
            traceback.print_exc()
            return 1
        print(f"fvlight: {line}", file=sys.stderr)
        return USAGE_ERROR


def _run(given: list[str]) -> int:
    """List what was asked for, or let Hydra run."""
    settings = [text for text in given if text not in (LIST_LAYERS, LIST_NETWORKS)]
    wanted = set() if {"-h", "--help"} & set(given) else set(given) - set(settings)
    if LIST_NETWORKS in wanted:
        return print_networks(settings)
    if FOLLOW in settings:  # rank 0 has already made of them what they are
        arguments = [text for text in settings if text != FOLLOW]
    else:
        if not wanted and not {"-h", "--help"} & set(given):
            require_one_folder(settings)
        resumed = with_resume(settings, CONFIG)
        if resumed is None:
            return 0
        arguments = resumed
    if not leads():
        arguments = [*arguments, "hydra.output_subdir=null"]  # the record is rank 0's to write
    add_library_networks(arguments)
    return print_layer_table(arguments, CONFIG) if LIST_LAYERS in wanted else _run_hydra(arguments)


def _run_hydra(arguments: list[str]) -> int:
    import hydra

    @hydra.main(version_base="1.3", config_path="pkg://fvlight.conf", config_name=CONFIG)
    def application(config: Any) -> JobResult:
        return _job(config, arguments)

    results.clear()
    argv = sys.argv
    sys.argv = ["fvlight", *arguments]
    try:
        application()
    finally:
        sys.argv = argv
    if None not in results:
        return conclude_sweep()
    if error := results[None].error:
        raise error
    return results[None].status


def _job(config: Any, arguments: list[str]) -> JobResult:
    """One Hydra job, maybe in a process of its own: errors are kept from Hydra, which would print lines of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its cache of fonts
    import lightning  # noqa: F401  (sets its loggers' levels, which are changed below)

    hydra_config = HydraConfig.get()
    number = hydra_config.job.num if hydra_config.mode == RunMode.MULTIRUN else None
    keys = swept(arguments)
    changes = " ".join(text for text in hydra_config.overrides.task if text.partition("=")[0] in keys)
    name = (number, changes, hydra_config.runtime.output_dir)
    before = next((job.status for job in results.values() if job.interrupted), 0)
    if before:  # an interruption is for the whole sweep
        return JobResult(*name, before)
    try:
        with quiet():
            return JobResult(*name, _application(config, arguments))
    except Exception as error:
        line = explain(error)
        status, text = (1, traceback.format_exc()) if line is None else (USAGE_ERROR, line)
        return JobResult(*name, status, text, error)


def _application(config: Any, arguments: list[str]) -> int:
    """One Hydra job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from fvlight.training import launching

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = [text for text in hydra_config.overrides.task if not text.startswith("resume=")]
    command = shlex.join(["fvlight", *overrides])
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    settings["experiment_name"] = hydra_config.runtime.choices.get("experiment")
    if hydra_config.mode == RunMode.MULTIRUN:
        launching.refuse_in_sweep(settings["trainer"])
    again = [sys.executable, "-m", "fvlight", FOLLOW, *arguments, f"hydra.run.dir={quoted(run_dir)}"]
    with (
        alone_in(run_dir) if leads() else nullcontext(),
        launching.others_by(again),
        recording(run_dir, overrides) if settings["resume"] and leads() else nullcontext(),
    ):
        outcome = _outcome(settings, overrides, run_dir, command)
    return _finish(outcome, run_dir, overrides) if leads() else 0


def _outcome(settings: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> Outcome:
    """Run an experiment or a single run."""
    from fvlight import application
    from fvlight.report import print_summary_table

    if settings["runs"]:
        parts = _parts(settings["runs"], _of_runs(overrides))
        parts = {name: {**part, "trusted": settings["trusted"]} for name, part in parts.items()}  # not theirs to say
        return application.run_experiment(settings, parts, run_dir, command)
    logger = _logger(settings.pop("logger", None), settings["trusted"])
    outcome = application.run(settings, run_dir, logger, command)
    if leads():
        print_summary_table(outcome.summary, outcome.report)
    return outcome


def _logger(config: dict[str, Any] | None, trusted: list[str]) -> Any:
    """The logger of a configuration: plain values for a class of Lightning's loggers, or one of a trusted package."""
    from lightning.pytorch.loggers import Logger

    if not config:
        return None
    target = str(config.pop("_target_", ""))
    made = trusted_class(target, Logger, trusted)  # type: ignore[type-abstract]
    try:
        return made(**config)
    except Exception as error:  # whatever others' loggers raise
        raise FvlightError(f"logger: {target} can't be made ({error})") from error


def _of_runs(typed: Sequence[str]) -> list[str]:
    """What was typed, but for what is about the experiment itself: its name, and which of its runs there are."""
    return [text for text in typed if not text.startswith(("experiment=", "runs.", "+runs.", "~runs."))]


def _parts(runs: dict[str, list[str]], typed: list[str]) -> dict[str, dict[str, Any]]:
    """The configurations of an experiment's runs. What only one kind of task knows reaches only runs of that kind."""
    from hydra import compose
    from omegaconf import OmegaConf

    def configuration(overrides: list[str], resolve: bool = True) -> Any:
        return OmegaConf.to_container(compose(CONFIG, overrides=overrides), resolve=resolve)

    changed = {name: [str(text) for text in changes] for name, changes in runs.items()}
    kinds = {name: [t for t in in_order(c, typed) if t.startswith("task=")][-1:] for name, c in changed.items()}
    known = {tuple(kind): set(_names(configuration(kind, resolve=False))) for kind in kinds.values()}
    every = set().union(*known.values())
    parts = {}
    for name, changes in changed.items():
        add_library_networks(changes)
        foreign = every - known[tuple(kinds[name])]
        mine = [text for text in typed if text.lstrip("+~").partition("=")[0] not in foreign]
        parts[name] = configuration(in_order(changes, mine))
    return parts


def configurations(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The resolved configurations of the runs that a command line starts, by name; that of a single run is named ""."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("fvlight.conf", version_base="1.3"):
        add_library_networks(arguments)
        settings: Any = OmegaConf.to_container(compose(CONFIG, overrides=list(arguments)), resolve=True)
        return _parts(settings["runs"], _of_runs(arguments)) if settings["runs"] else {"": settings}


def in_order(changes: list[str], typed: list[str]) -> list[str]:
    """A run's own changes, then what the user typed, then those changes that make the run what it is (``!``)."""
    first = [text for text in changes if not text.startswith("!")]
    return [*first, *typed, *(text[1:] for text in changes if text.startswith("!"))]


def _finish(outcome: Outcome, run_dir: Path, overrides: list[str]) -> int:
    """The last lines on the terminal, and the exit status."""
    for claim in outcome.summary["claims"]:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "undecided"}[claim["holds"]]
        print(f"{verdict}: {claim['claim']} ({claim['measured']}; expected {claim['expected']})")
    if outcome.interrupted:
        again = ["fvlight", f"resume={run_dir}", *(text for text in overrides if text.startswith("trusted="))]
        name = signal.Signals(outcome.interrupted).name
        print(f"interrupted by {name}; go on with: {shlex.join(again)}", file=sys.stderr)
        return 128 + outcome.interrupted
    if outcome.summary["task"] == "experiment":
        print(outcome.report)
    if outcome.nan:
        nan = "; ".join(f"{name}: {text}" for name, text in outcome.nan.items())
        raise FvlightError(
            f"became NaN and kept their last finite images: {nan}; try a smaller solver.lr or "
            f"trainer.precision=32-true. Everything else is in {run_dir}"
        )
    return 0


# -- what users see --------------------------------------------------------------------------------------------


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing several lines and exiting with status 1."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before


@contextmanager
def _mute() -> Iterator[None]:
    """Of several processes one speaks; errors are printed by each that has any."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's banners, its dependencies' deprecation notes and each try of a download are not for users."""
    names = ("lightning.pytorch", "lightning.fabric", "huggingface_hub", "torch.multiprocessing.spawn")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend: the value, the alternatives, the remedy. None for others."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for part in chain:
        if isinstance(part, FvlightError):
            return _one_line(str(part))
    for part in chain:
        if isinstance(part, HydraException | OmegaConfBaseException):
            return _explain_hydra(part)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        groups = ", ".join(_options(""))
        return f"{_one_line(str(error))}: groups ({groups}) take names, as in network=energy_cell"
    if type(error).__module__.partition(".")[0] in ("submitit", "joblib"):
        return (
            f"a job of the sweep was lost ({_one_line(str(error).splitlines()[0])}); the same command with resume=auto "
            "and hydra.sweep.dir=DIR goes on with what it has saved"
        )
    if isinstance(error, OSError):
        place = f" {error.filename!r}" if error.filename else ""
        return (
            f"the output folder{place} can't be written ({error.strerror or error}): "
            "choose another with hydra.run.dir=DIR"
        )
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _explain_hydra(error: BaseException) -> str:
    text = str(error)
    missing = re.search(r"Could not find '([\w/]+?)/([^']+)'", text)
    if missing:
        group, name = missing.groups()
        if group == "network":
            return f"no network {name!r}: {networks_like(name, _options(group))} (fvlight {LIST_NETWORKS} prints all)"
        if group in _options(""):
            return f"no {group} {name!r}: {did_you_mean(name, _options(group))} (write {group}=NAME)"
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return _explain_key(key[1])
    override = getattr(error, "override", None)
    if override:
        return f"can't read {override!r}: {_one_line(text.splitlines()[0])}; quote lists for the shell: 'unit=[13,22]'"
    return _one_line(text.split("\nfull_key")[0])


def _options(group: str) -> list[str]:
    """The names that a group of the configuration takes; the groups themselves for an empty name."""
    folder = conf_folder() / group
    if not group:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _explain_key(key: str) -> str:
    """A key that the configuration does not have; another task's may."""
    keys = {task: _keys(task) for task in _options("task")}
    tasks = [task for task, known in keys.items() if key in known]
    if tasks and len(tasks) < len(keys):
        return f"no setting {key!r} in this task: it belongs to task={' and task='.join(tasks)}"
    every = dict.fromkeys(name for known in keys.values() for name in known if name != key)
    return f"no setting {key!r}: {did_you_mean(key, every)}"


def _keys(task: str) -> list[str]:
    """The full names of all settings of a task's default configuration."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        return list(_names(OmegaConf.to_container(compose(CONFIG, overrides=[f"task={task}"]))))


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    """The full names of all settings of a configuration."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
