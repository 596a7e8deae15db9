"""Runs of several processes, killed at random moments and gone on with by other numbers of them."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import one_thread  # noqa: F401  (for all tests)
from tests.test_resume import LONG, Killable, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def children(process: int) -> list[int]:
    """Its child processes."""
    try:
        return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


class Several(Killable):
    """The command with so many processes, anew for each part of a run."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        super().__init__(folder, settings)
        self.processes = 1

    def start(self) -> Any:
        how = [f"trainer.devices={self.processes}", "trainer.strategy=problems_fork"] if self.processes > 1 else []
        how = how or ["trainer.devices=1", "trainer.strategy=auto"]
        place = [f"resume={self.folder}"] if self.began() else [*self.settings, f"hydra.run.dir={self.folder}"]
        return self.call([*place, *how])


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, dict[str, Any], bytes]:
    """The undisturbed run, in one process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the process from which the others fork
    Killable(tmp_path / "plain", LONG).finish()
    return outcome(tmp_path / "plain")


def test_killed_and_gone_on_with_by_others(plain: tuple[bytes, dict[str, Any], bytes], tmp_path: Path) -> None:
    """Sometimes the process that was started, sometimes one of those that it has started; by several signals."""
    victim, moments = Several(tmp_path / "run", LONG), random.Random(0)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    kills = 0
    while kills < 10:
        victim.processes = moments.randint(1, 3)
        seen = {checkpoint.stat().st_mtime_ns} if checkpoint.exists() else set()
        wanted, process, end = len(seen) + moments.randint(1, 5), victim.start(), time.monotonic() + 120
        while process.is_alive() and len(seen) < wanted:
            assert time.monotonic() < end
            if checkpoint.exists():
                seen.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        assert process.is_alive(), f"it ended by itself with {process.exitcode}"
        family = [process.pid, *children(process.pid)]
        assert len(family) == (1 if victim.processes == 1 else victim.processes + 1)
        number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        began = time.monotonic()
        os.kill(moments.choice(family), number)
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 2, 128 + signal.SIGTERM)  # never 0, and soon
        assert time.monotonic() - began < 30
        while any(
            Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family[1:]
        ):
            assert time.monotonic() - began < 30, "a process is left"
            time.sleep(0.05)
        kills += 1
    victim.processes = 2
    victim.finish()
    assert outcome(tmp_path / "run") == plain
