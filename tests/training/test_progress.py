"""How far a run is, in words and on a bar."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvlight.solvers import Adam, Patience, Status
from fvlight.tasks.base import ProblemTask
from fvlight.training import ProblemProgressBar, progress

FORM = re.compile(r"^ *([\d.]+)% +(\d+) s, (?:at most (\d+) s left, )?(\d+) of (\d+) problems solved$")


def task(status: list[Status], steps: list[int], max_steps: int = 100) -> Any:
    found = ProblemTask(  # type: ignore[abstract]  # Lightning's modules are no abstract classes to Python
        len(status), (1,), adam=Adam(), patience=Patience(max_steps), at_once=3, inner_steps=1
    )
    found.pool.status = torch.tensor([int(word) for word in status], dtype=torch.int8)
    found.stepped = torch.tensor(steps)
    return found


def test_done_problems_count_whole_and_active_ones_by_their_steps() -> None:
    state = task(
        [Status.CONVERGED, Status.MAX_STEPS, Status.NAN, Status.ACTIVE, Status.ACTIVE, Status.WAITING],
        [7, 100, 3, 50, 25, 0],
    )
    share, words = state.progress()
    assert share == pytest.approx((1 + 1 + 1 + 0.5 + 0.25 + 0) / 6, abs=1e-12)
    assert words == "3 of 6 problems solved"


def test_from_nothing_to_all() -> None:
    assert task([Status.WAITING] * 2, [0, 0]).progress() == (0.0, "0 of 2 problems solved")
    assert task([Status.CONVERGED] * 2, [4, 9]).progress() == (1.0, "2 of 2 problems solved")


def clocked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize("before", [0, 40])
def test_off_a_terminal_a_line_now_and_then(
    before: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two problems one is solved, at a step per second; what had been done before the run took no time of it."""
    clock, bar = clocked(monkeypatch), ProblemProgressBar(seconds=30)
    bar.on_train_start(None, None)  # type: ignore[arg-type]
    for second in range(1, 96):
        clock.now += 1
        state = task([Status.ACTIVE, Status.CONVERGED], [before + second, 3], max_steps=200)
        bar.on_train_batch_end(None, state)  # type: ignore[arg-type]
    bar.on_train_end(None, None)  # type: ignore[arg-type]
    output, errors = capsys.readouterr()
    assert output == ""
    found = [FORM.match(line) for line in errors.splitlines()]
    assert all(found)
    assert [[float(number) for number in match.groups()] for match in found if match] == [
        [50 + (before + elapsed) / 4, elapsed, 200 - before - elapsed, 1, 2] for elapsed in (30, 60, 90)
    ]


def test_no_estimate_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, bar = clocked(monkeypatch), ProblemProgressBar(seconds=1)
    bar.on_train_start(None, None)  # type: ignore[arg-type]
    clock.now += 5
    bar.on_train_batch_end(None, task([Status.ACTIVE], [50]))  # type: ignore[arg-type]
    assert capsys.readouterr().err == " 50.0%      5 s, 0 of 1 problems solved\n"
    clock.now += 5
    bar.on_train_batch_end(None, task([Status.ACTIVE], [60]))  # type: ignore[arg-type]
    assert capsys.readouterr().err == " 60.0%     10 s, at most 20 s left, 0 of 1 problems solved\n"


def test_a_disabled_bar_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, bar = clocked(monkeypatch), ProblemProgressBar(seconds=1)
    state = task([Status.ACTIVE], [0])
    bar.disable()
    bar.on_train_start(None, state)  # type: ignore[arg-type]
    clock.now += 5
    bar.on_train_batch_end(None, state)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    bar.enable()
    bar.on_train_batch_end(None, state)  # type: ignore[arg-type]
    assert capsys.readouterr().err != ""


@pytest.mark.parametrize("end", ["on_train_end", "teardown", "on_exception"])
def test_on_a_terminal_a_bar_that_ends_with_the_run(
    end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    bar = ProblemProgressBar()
    bar.on_train_start(None, task([Status.ACTIVE, Status.WAITING], [0, 0]))  # type: ignore[arg-type]
    live = bar._progress
    assert live is not None
    bar.on_train_batch_end(None, task([Status.CONVERGED, Status.ACTIVE], [3, 49]))  # type: ignore[arg-type]
    assert live.tasks[0].speed is None  # what was done before the first block is no speed of this run's
    bar.on_train_batch_end(None, task([Status.CONVERGED, Status.ACTIVE], [3, 50]))  # type: ignore[arg-type]
    assert live.tasks[0].percentage == pytest.approx(75.0)
    assert live.tasks[0].fields["words"] == "1 of 2 problems solved"
    arguments = {"on_train_end": (None, None), "teardown": (None, None, "fit")}
    getattr(bar, end)(*arguments.get(end, (None, None, ValueError())))
    assert live.live.is_started is False
    assert bar._progress is None
