"""Checkpoints are there whole or not at all; saving takes a small share of the time."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.training import AtomicCheckpointIO, SaveRegularly, checkpoints


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    saved = {"a": torch.arange(5), "b": {"c": 1.5, "d": ["x"]}}
    AtomicCheckpointIO().save_checkpoint(saved, path)
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded["a"], saved["a"])
    assert loaded["b"] == saved["b"]
    assert [child.name for child in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64\nmore"),
    ],
)
def test_a_failing_write_leaves_the_old_file(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()

    def fail(checkpoint: Any, file: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(FvlightError) as caught:
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert str(path) in str(caught.value)
    assert "hydra.run.dir" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    replace, seen = os.replace, []

    def watch(source: Path, target: Path) -> None:
        seen.append((torch.load(source, weights_only=True)["a"], torch.load(target, weights_only=True)["a"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert seen == [(2, 1)]
    assert torch.load(path, weights_only=True)["a"] == 2


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FvlightError, match=r"hydra\.run\.dir"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "below" / "last.ckpt")


class Clock:
    """Time that passes when told to; stands in for the module `time` and for a Trainer slow to save."""

    def __init__(self, saving: float) -> None:
        self.now, self.saving, self.saves = 1000.0, saving, []

    def monotonic(self) -> float:
        return self.now

    def save_checkpoint(self, path: Path) -> None:
        self.saves.append((self.now, path))
        self.now += self.saving


def simulate(monkeypatch: pytest.MonkeyPatch, seconds: float, saving: float, block: float, blocks: int) -> Clock:
    clock = Clock(saving)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=clock.monotonic))
    callback = SaveRegularly(Path("run"), seconds)
    callback.on_train_start(clock, None)  # type: ignore[arg-type]
    for _ in range(blocks):
        clock.now += block
        callback.on_train_batch_end(clock)  # type: ignore[arg-type]
    callback.on_train_end(clock, None)  # type: ignore[arg-type]
    return clock


@pytest.mark.parametrize("saving", [0.01, 1.0, 7.0])
@pytest.mark.parametrize("block", [0.3, 2.0, 50.0])
def test_saving_costs_at_most_a_twentieth(saving: float, block: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = simulate(monkeypatch, 10.0, saving, block, 2000)
    times = [moment for moment, _ in clock.saves[:-1]]  # the last one is that at the end of the run
    assert len(times) >= 3
    pauses = [later - earlier - saving for earlier, later in pairwise(times)]
    assert min(pauses) >= max(10.0, 20 * saving) - 1e-6
    # nor is it put off for longer than the block that is being solved
    assert max(pauses) <= max(10.0, 20 * saving) + block + 1e-6
    assert saving * (len(times) - 1) <= 0.05 * (times[-1] - times[0])


def test_zero_seconds_saves_after_every_block_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = simulate(monkeypatch, 0.0, 5.0, 1.0, 7)
    assert len(clock.saves) == 8
    assert {path for _, path in clock.saves} == {Path("run/last.ckpt")}


def test_a_short_run_is_saved_once_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(simulate(monkeypatch, 100.0, 1.0, 1.0, 9).saves) == 1
