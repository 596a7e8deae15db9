"""How many problems are solved at once: measured, and halved where memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from fvlight.batch_size import best_batch, is_out_of_memory
from fvlight.errors import FvlightError
from fvlight.solvers import LBFGS, Patience, Status
from fvlight.tasks import RealizationTask
from tests.helpers import one_thread  # noqa: F401
from tests.realizations import smooth_response

CPU, REPOSITORY = torch.device("cpu"), Path(__file__).resolve().parents[1]


class Clock:
    """A batch takes as long as this says; memory runs out above ``fits``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Any, fits: int = 10**9) -> None:
        self.now, self.seconds, self.fits, self.sizes = 0.0, seconds, fits, []  # type: ignore[var-annotated]
        monkeypatch.setattr("fvlight.batch_size.time.perf_counter", lambda: self.now)

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        if size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(size)


@pytest.mark.parametrize(
    ("seconds", "fits", "most", "expected"),
    [
        (lambda n: 1.0, 10**9, 100, 100),  # however many, as fast: the most that is of use
        (lambda n: 1.0, 20, 100, 16),  # the largest power of two that fits
        (lambda n: float(n), 10**9, 1000, 1),  # no gain at all
        (lambda n: 8.0 + n, 10**9, 4096, 128),  # 128 / 136 is within 5 % of 512 / 520, after which it does not look on
        (lambda n: max(n, 64.0) * (1 + n / 1e4), 10**9, 4096, 64),  # full at 64, then slower
    ],
)
def test_the_smallest_batch_that_is_nearly_as_fast(
    seconds: Any, fits: int, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, seconds, fits)
    monkeypatch.setattr("fvlight.batch_size.PeakMemory.read", lambda self: 0.0)
    assert best_batch(clock, most, CPU) == expected
    assert max(clock.sizes) <= most


def test_it_stops_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU nobody says so: the process is killed. 10 bytes each, 100 are free."""
    clock = Clock(monkeypatch, lambda n: 1.0)
    monkeypatch.setattr("fvlight.batch_size.PeakMemory.read", lambda self: 10.0 * clock.sizes[-1])
    monkeypatch.setattr("fvlight.batch_size.free_memory", lambda device: 100.0)
    assert best_batch(clock, 64, CPU) == 8
    assert max(clock.sizes) == 8


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError):
        best_batch(Clock(monkeypatch, lambda n: 1.0, fits=0), 4, CPU)


PEAKS = """
import torch
from fvlight.batch_size import PeakMemory, free_memory
cpu = torch.device("cpu")
peak, found = PeakMemory(cpu), []
for count in (1 << 26, 1 << 24, 1 << 27):
    torch.ones(count)
    found.append(peak.read())
    peak.reset()
print(*found, free_memory(cpu))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_peaks_are_measured() -> None:
    """In a process of its own: elsewhere freed memory may have been kept, and is taken again."""
    command = [sys.executable, "-c", PEAKS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=REPOSITORY).stdout
    first, second, third, free = (float(text) for text in printed.split())
    megabyte = 1 << 20
    assert 240 * megabyte < first < 300 * megabyte
    assert 60 * megabyte < second < 120 * megabyte
    assert 500 * megabyte < third < 560 * megabyte
    assert 1 << 28 < free < 1 << 50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_one_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


# -- tasks -----------------------------------------------------------------------------------------------------


class Cramped(RealizationTask):
    """There is memory for so many problems alone."""

    room = 2

    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Any:
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().evaluate(raw, rows, dtype)


def task(made: type[RealizationTask] = RealizationTask, **changes: Any) -> RealizationTask:
    settings: dict[str, Any] = {"patience": Patience(12, 12), "inner_steps": 5, "polish": LBFGS(max_evaluations=9)}
    return made(smooth_response(4), torch.eye(4), **(settings | changes))


def fit(task: RealizationTask, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="64-true", **options,
    )  # fmt: skip
    trainer.fit(task)
    return trainer


@pytest.mark.parametrize("refill", [True, False])
def test_where_memory_runs_out_half_as_many_go_on(refill: bool, capsys: pytest.CaptureFixture[str]) -> None:
    plain, cramped = task(), task(Cramped, at_once=4, refill=refill)
    fit(plain)
    fit(cramped)
    assert cramped.pool.capacity == 2
    assert "out of memory with 4 problems at once: going on with 2" in capsys.readouterr().err
    torch.testing.assert_close(cramped.result.raw, plain.result.raw, rtol=1e-9, atol=1e-9)
    assert cramped.result.status == plain.result.status
    assert torch.equal(cramped.result.steps, plain.result.steps)


def test_memory_that_runs_out_in_the_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cramped = task(), task(Cramped, at_once=4)
    monkeypatch.setattr(Cramped, "room", property(lambda self: 2 if bool(self.polishing.any()) else 4))
    fit(plain)
    fit(cramped)
    assert cramped.pool.capacity == 2
    torch.testing.assert_close(cramped.result.raw, plain.result.raw, rtol=1e-9, atol=1e-9)


def test_memory_that_runs_out_as_problems_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cramped, begin = task(), task(at_once=4), RealizationTask.start

    def start(self: RealizationTask, rows: Tensor) -> Tensor:
        if self is cramped and len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self, rows)

    monkeypatch.setattr(RealizationTask, "start", start)
    fit(plain)
    fit(cramped)
    assert cramped.pool.capacity == 1
    torch.testing.assert_close(cramped.result.raw, plain.result.raw, rtol=1e-9, atol=1e-9)


def test_not_even_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(FvlightError, match="out of memory with a single problem") as caught:
        fit(task(Cramped))
    assert "\n" not in str(caught.value)


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(RealizationTask, "evaluate", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit(task())


def test_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the task's own evaluations; nothing of them is left behind."""
    seen: list[int] = []

    def asked(run: Any, most: int, device: torch.device) -> int:
        for count in (1, 2, 4):
            run(count)
            seen.append(count)
        assert most == 4
        return 3

    monkeypatch.setattr("fvlight.tasks.base.best_batch", asked)
    state = torch.get_rng_state()
    measured, plain = task(at_once=None), task()
    fit(measured)
    fit(plain)
    assert seen == [1, 2, 4]
    assert measured.pool.capacity == 3
    assert "3 problems at once" in capsys.readouterr().err
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(measured.result.raw, plain.result.raw, rtol=1e-9, atol=1e-9)
    assert set(measured.pool.status.tolist()) <= {int(Status.CONVERGED), int(Status.MAX_STEPS)}


def test_measured_for_real() -> None:
    found = task(at_once=None)
    fit(found)
    assert 1 <= found.pool.capacity <= 4
    assert found.result.complete
