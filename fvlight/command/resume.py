"""Going on with runs, ``resume=DIRECTORY`` and ``resume=auto``, and that none is written over."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fvlight.command.networks import add_library_networks
from fvlight.errors import FvlightError

AUTO = "auto"
LOCK = ".lock"
GRACE = 5.0  # seconds that a killed run's other processes may still take to end


def with_resume(arguments: list[str], config_name: str) -> list[str] | None:
    """The arguments for Hydra, in which ``resume=DIR`` has become the settings of that run, what else was typed, and
    its directory; of ``resume=auto`` see `_with_auto`. None: there is nothing left to do.

    Raises:
        FvlightError: no such run; or one would be written over.
    """
    given = [text for text in arguments if text.startswith("resume=")]
    folder = _unquoted(given[-1].partition("=")[2]) if given else ""
    if folder in ("", "null"):
        _refuse_old_run(arguments)
        return arguments
    typed = [text for text in arguments if text not in given]
    if folder == AUTO:
        return _with_auto(typed, config_name)
    run_dir = Path(folder).expanduser().resolve()
    before = recorded(run_dir)
    if before is None:
        record = _record(run_dir)
        state = "empty or damaged: start the run anew" if record.is_file() else "missing"
        raise FvlightError(f"resume={folder}: there is no run to go on with ({record} is {state})")
    return [*_own_settings(before, run_dir), *typed, *_place(run_dir)]


def recorded(run_dir: Path) -> list[str] | None:
    """What was typed for the run in this directory; None without a run, or without a record that can be read."""
    from omegaconf import OmegaConf

    record = _record(run_dir)
    # Hydra writes "[]" where nothing was typed: an empty file is a run that was killed as it began
    if not record.is_file() or not record.read_bytes().strip():
        return None
    try:
        texts: Any = OmegaConf.to_container(OmegaConf.load(record), resolve=False)
    except Exception:  # of OmegaConf's, or of the YAML below it
        return None
    return [text for text in map(str, texts) if not text.startswith("resume=")] if isinstance(texts, list) else None


@contextmanager
def recording(run_dir: Path, overrides: list[str]) -> Iterator[None]:
    """Add what was typed to a resumed run's record in one step; take it back if the run refuses it."""
    from omegaconf import OmegaConf

    from fvlight.results import write_atomically

    record = _record(run_dir)
    before = record.read_bytes()
    write_atomically(record, lambda path: OmegaConf.save(OmegaConf.create(overrides), path))
    try:
        yield
    except Exception:
        write_atomically(record, lambda path: path.write_bytes(before))
        raise


def _record(run_dir: Path) -> Path:
    return run_dir / ".hydra" / "overrides.yaml"


def _place(run_dir: Path) -> list[str]:
    """Hydra would replace the record before the run could refuse what was typed: see `recording`."""
    place = quoted(run_dir)
    return [f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null"]


def _own_settings(before: Sequence[str], run_dir: Path) -> list[str]:
    """A run's recorded settings, which somebody else may have written: whom to trust must be typed again, and what
    Hydra itself shall do is never recorded there."""
    for text in before:
        if re.match(r"-|[+~]*hydra\b", text):
            raise FvlightError(f"{str(_record(run_dir))!r} holds {text!r}, never recorded there by Hydra: remove it")
    return [text for text in before if text.lstrip("+~").partition("=")[0] != "trusted"]


# -- resume=auto -----------------------------------------------------------------------------------------------


def _with_auto(typed: list[str], config_name: str) -> list[str] | None:
    """Go on with the last run for which the same was typed, or begin one: the same command, again and again, ends.

    Where ``hydra.run.dir`` has the time in it, as it has by default, that run is looked for beside the folder that a
    run begun now would have; else that folder's run is gone on with, whatever was typed for it. In a sweep each job
    goes on by itself.
    """
    if {"-m", "--multirun"} & set(typed):
        if not any(text.startswith("hydra.sweep.dir=") and "${now:" not in text for text in typed):
            raise FvlightError("resume=auto in a sweep (-m): name the sweep's folder with hydra.sweep.dir=DIR")
        return typed
    folder, timed, settings = _composed(typed, config_name)
    runs = [path for path in (folder.parent.iterdir() if folder.parent.is_dir() else []) if recorded(path) == settings]
    run_dir = max(runs, key=_age, default=None) if timed else folder
    before = None if run_dir is None else recorded(run_dir)
    if run_dir is None or before is None:
        where = folder.parent if timed else folder
        print(f"resume=auto: no run of these settings in {where}: beginning one", file=sys.stderr)
        return typed
    if before == settings and _complete(run_dir):
        print(f"resume=auto: {run_dir} is complete, nothing is left to do", file=sys.stderr)
        return None
    print(f"resume=auto: going on with {run_dir}", file=sys.stderr)
    return [*typed, *_place(run_dir.resolve())]


def _composed(typed: Sequence[str], config_name: str) -> tuple[Path, bool, list[str]]:
    """Where Hydra would put the run, whether that depends on the time, and what it would record as typed."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    overrides = [text for text in typed if not text.startswith("-")]
    with initialize_config_module("fvlight.conf", version_base="1.3"):
        add_library_networks(overrides)
        hydra = compose(config_name, overrides=overrides, return_hydra_config=True).hydra
        raw: Any = OmegaConf.to_container(hydra, resolve=False)
        return Path(hydra.run.dir), "${now:" in raw["run"]["dir"], raw["overrides"]["task"]


def _age(run_dir: Path) -> tuple[int, str]:
    return _record(run_dir).stat().st_mtime_ns, run_dir.name


def _complete(run_dir: Path) -> bool:
    from fvlight.results import SUMMARY

    try:
        return bool(json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["complete"])
    except (OSError, ValueError, KeyError):
        return False


# -- directories -----------------------------------------------------------------------------------------------


def _refuse_old_run(arguments: list[str]) -> None:
    """A directory that holds a run is not written over, before Hydra replaces that run's settings."""
    given = [_unquoted(text.partition("=")[2]) for text in arguments if text.startswith("hydra.run.dir=")]
    traces = ("checkpoints", "*/checkpoints", "summary.json")  # the second: of an experiment's runs
    if given and any(any(Path(given[-1]).glob(trace)) for trace in traces):
        raise FvlightError(
            f"hydra.run.dir={given[-1]}: there is a run already: go on with resume={given[-1]}, "
            "or choose another directory"
        )


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Keep other commands out of a run's folder. A lock ends with the processes that hold it, however they end.

    Where there are no such locks (on Windows, on some file systems of networks), nothing is kept out.

    Raises:
        FvlightError: another command is at work there.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        end = time.monotonic() + GRACE
        while True:
            try:
                flock(file, LOCK_EX | LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                file.seek(0)
                who = file.read() or "another command"
                raise FvlightError(
                    f"{who} is at work in {str(run_dir)!r}: wait for its end, stop it, or choose another directory"
                ) from error
            except OSError:  # no locks here
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def quoted(path: Path) -> str:
    """A path as Hydra's override grammar takes it: backslashes count as escapes only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(path))
    return f"'{escaped}'"


def _unquoted(text: str) -> str:
    """A value without the quotes of Hydra's grammar, if it has any."""
    if len(text) < 2 or text[0] not in "'\"" or text[0] != text[-1]:
        return text
    return re.sub(rf"(\\+)({text[0]}|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], text[1:-1])
