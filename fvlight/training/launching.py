"""The other processes of a run, where Lightning itself starts them ("popen"): by which command, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from fvlight.errors import FvlightError

# What Lightning sets for the others and leaves behind: with it, the next run would wait for processes that are gone.
VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
LAST = 60.0  # seconds: rank 0 has the most to do after the fit

_command: list[str] | None = None
_started: list[subprocess.Popen[bytes]] = []


class CommandLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks by the command that `others_by` names; without one, Lightning's way: the same script.

    Lightning would take ``sys.argv[0]`` for a script, which a console entry is not, and quotes Hydra's run directory
    so that not every name can be read again. And it kills the first process as soon as another one has ended with an
    error, whatever it is writing. Here processes notice by themselves that one is gone, as soon as they talk to each
    other; until then, when ``all_there`` is set, they are watched.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.all_there = threading.Event()

    def launch(self, function: Any, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _watch(self) -> None:
        while not self.all_there.wait(0.2):
            for rank, process in enumerate(self.procs, 1):
                if process.poll() is not None:
                    print(
                        f"fvlight: process {rank} has ended as it began (status {process.returncode})", file=sys.stderr
                    )
                    self.kill(signal.SIGKILL)
                    os._exit(2)  # the main thread waits for that process, and hears nothing

    def _call_children_scripts(self) -> None:
        if _command is None:
            super()._call_children_scripts()
            return
        self._check_can_spawn_children()
        environment = self.cluster_environment
        os.environ.update(
            MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port),
            NODE_RANK=str(environment.node_rank()), LOCAL_RANK=str(environment.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes),
        )  # fmt: skip
        self.procs = _started
        for rank in range(1, self.num_processes):
            self.procs.append(subprocess.Popen(_command, env={**os.environ, "LOCAL_RANK": str(rank)}))


@contextmanager
def others_by(command: Sequence[str]) -> Iterator[None]:
    """Inside, `CommandLauncher` starts other ranks by this command. None of them is left at the end.

    Raises:
        FvlightError: one of them failed, or has not ended in time.
    """
    global _command
    before = {name: os.environ.get(name) for name in VARIABLES}
    _command = list(command)
    try:
        yield
        for rank, process in enumerate(_started, start=1):
            try:
                status = process.wait(LAST)
            except subprocess.TimeoutExpired:
                raise FvlightError(f"process {rank} of the run did not end with it and was stopped") from None
            if status:
                raise FvlightError(f"process {rank} of the run ended with status {status}: see above")
    finally:
        _command = None
        _stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _stop() -> None:
    """Kill what is left: after an error they would wait for rank 0 in a collective."""
    left = _started[:]
    _started.clear()
    for process in left:
        process.kill()
        process.wait()


def refuse_in_sweep(arguments: Mapping[str, Any]) -> None:
    """A job of a sweep has no command line of its own by which Lightning could start its other processes.

    Args:
        arguments: of the Trainer.

    Raises:
        FvlightError: Lightning would start some.
    """
    bare = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        trainer = L.Trainer(**{**bare, **arguments})
    except (MisconfigurationException, ValueError, TypeError, RuntimeError):  # the run itself says what is wrong
        return
    launcher = trainer.strategy.launcher
    if trainer.world_size == 1 or not isinstance(launcher, _SubprocessScriptLauncher):
        return
    if not launcher.cluster_environment.creates_processes_externally:
        raise FvlightError(
            f"trainer.strategy={arguments.get('strategy')} starts a job's {trainer.world_size} processes by the "
            "command line, which in a sweep (-m) is that of all jobs: take trainer.strategy=problems_fork, or "
            "trainer.devices=1 and jobs side by side (hydra/launcher=joblib)"
        )
