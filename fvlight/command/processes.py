"""More than one process: the jobs of a sweep, which may end elsewhere, and the ranks of one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fvlight.errors import FvlightError

FOLLOW = "--follow"  # what rank 0 adds to the command with which it starts the other ranks

# -- the jobs of a sweep ---------------------------------------------------------------------------------------


@dataclass
class JobResult:
    """How a job of a sweep ended; it notes itself in `results`.

    Launchers carry what a job returns to the process of the sweep, where Hydra shows it to nobody. So it is made anew,
    and noted there, where it is unpickled.

    Attributes:
        number: None: the only one.
        changes: the settings that are the job's own.
        status: the exit status that it would have.
        line: what went wrong, in one line, or the traceback of a defect.
        error: the exception itself, in the job's own process.
    """

    number: int | None
    changes: str
    run_dir: str
    status: int
    line: str = ""
    error: Exception | None = None

    def __post_init__(self) -> None:
        if self.line or self.number not in results:  # of several ranks, one that failed
            results[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return JobResult, (self.number, self.changes, self.run_dir, self.status, self.line)

    @property
    def name(self) -> str:
        return f"job {self.number} ({self.changes})" if self.changes else f"job {self.number}"

    @property
    def interrupted(self) -> bool:
        return self.status >= 128


results: dict[int | None, JobResult] = {}


def swept(arguments: Sequence[str]) -> list[str]:
    """The settings that have several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides([text for text in arguments if "=" in text])
    return [override.get_key_element() for override in overrides if override.is_sweep_override()]


def conclude_sweep() -> int:
    """A line for each job of the sweep; the exit status.

    Raises:
        FvlightError: jobs failed; names the first of them.
        RuntimeError: by a defect, whose traceback it holds.
    """
    jobs = [results[number] for number in sorted(results, key=lambda number: number or 0)]
    for job in jobs:
        state = "failed" if job.line else "interrupted" if job.interrupted else "finished"
        print(f"{job.name}: {state}, {job.run_dir}")
    failed = [job for job in jobs if job.line]
    if failed:
        more = f"; {len(failed) - 1} more of {len(jobs)} jobs failed" if len(failed) > 1 else ""
        kind = RuntimeError if failed[0].status == 1 else FvlightError
        raise kind(f"{failed[0].name} in {failed[0].run_dir}: {failed[0].line}{more}")
    return max((job.status for job in jobs), default=0)


# -- the ranks of a run ----------------------------------------------------------------------------------------


def leads() -> bool:
    """Whether this is the process that writes and speaks for all: rank 0, or the only one."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def started_from_outside() -> int:
    """How many processes `torchrun`, `srun` or the user has started for one run, each with its own command line."""
    slurm = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # as Lightning sees it
    return int(os.environ.get("WORLD_SIZE") or (slurm and os.environ.get("SLURM_NTASKS")) or 1)


def require_one_folder(arguments: Sequence[str]) -> None:
    """Processes that are started from outside must agree on the run's folder, whose name has the time in it.

    Raises:
        FvlightError: the folder was not named.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    key = "hydra.sweep.dir=" if sweep else "hydra.run.dir="
    named = [text for text in arguments if text.startswith((key, "resume=")) and "${now" not in text]
    if (count := started_from_outside()) > 1 and not set(named) - {"resume=auto", "resume=", "resume=null"}:
        raise FvlightError(
            f"{count} processes were started for this {'sweep' if sweep else 'run'}, and must agree on where it is "
            f"written: name a folder with {key}DIR"
        )
