"""Checkpoints are there whole or not at all, and damage is seen; saving takes a small share of the time."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvlight.errors import FvlightError
from fvlight.training import AtomicCheckpointIO, SaveRegularly, checkpoints
from tests.helpers import small_disk  # noqa: F401  (a fixture)


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
        file.write(b"half of it")
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


# -- damage ------------------------------------------------------------------------------------------------


def state(step: int) -> dict[str, Any]:
    """Like that of a task: tensors of several kinds, nested plain values."""
    generator = torch.Generator().manual_seed(step)
    raw = torch.randn(3, 2, 1, 8, 8, generator=generator)
    own = {"status": raw[:, 0, 0, 0, 0] > 0, "words": ["a", None]}
    return {"state_dict": {"raw": raw}, "step": step, "fvlight": own}


def step_of(checkpoint: dict[str, Any]) -> int:
    """Which `state` it is, bit for bit."""
    step = int(checkpoint["step"])
    mine = state(step)
    assert torch.equal(checkpoint["state_dict"].pop("raw"), mine["state_dict"].pop("raw"))
    assert torch.equal(checkpoint["fvlight"].pop("status"), mine["fvlight"].pop("status"))
    assert checkpoint == mine
    return step


def flipped(whole: bytes, place: int, bit: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]


def damaged(whole: bytes, chance: random.Random, number: int) -> bytes:
    """A flipped bit, a cut, zeros, or a piece twice; every second is a bit."""
    place = chance.randrange(len(whole))
    kind = number % 2 * (1 + number // 2 % 3)
    return [
        flipped(whole, place, chance.randrange(8)),
        whole[:place],
        whole[:place] + bytes(len(whole[place : place + 64])) + whole[place + 64 :],
        whole[:place] + whole[max(place - 9, 0) :],
    ][kind]


@pytest.mark.parametrize("before", [True, False], ids=["one before", "none before"])
def test_damage_anywhere_is_noticed(before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(step), path)
    whole = path.read_bytes()
    if not before:
        checkpoints.previous(path).unlink()
    seen = []
    for number in range(100):
        path.write_bytes(damaged(whole, chance, number))
        error = str(path)
        try:
            seen.append(step_of(AtomicCheckpointIO().load_checkpoint(path)))
        except FvlightError as caught:
            error = str(caught)
            seen.append(0)
        assert str(path) in error
        assert "\n" not in error
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (seen[-1] == 1)
        assert all(str(path) in line and str(checkpoints.previous(path)) in line for line in lines)
    # an undamaged state is still in a file that has lost a part of its sum, or got zeros where there were some
    assert set(seen) == ({1, 2} if before else {0, 2})
    assert seen.count(2) < 10


@pytest.mark.slow
def test_no_single_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Also of those that say nothing of tensors: torch takes an entry for a folder and returns memory as it was."""
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place, chance.randrange(8)))
        try:
            assert step_of(AtomicCheckpointIO().load_checkpoint(path)) == 1
            assert place >= len(whole) - checkpoints.TAIL  # then it is taken for one of those that had no sum
        except FvlightError:
            pass


def test_torch_alone_would_not_notice(tmp_path: Path) -> None:
    """Why there is a sum."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    whole = path.read_bytes()
    place = whole.index(state(1)["state_dict"]["raw"].numpy().tobytes())
    path.write_bytes(flipped(whole, place + 3, 6))
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["raw"], state(1)["state_dict"]["raw"])
    with pytest.raises(FvlightError, match="not those that were written"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_two_damaged_ones_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(step), path)
    for file in (path, checkpoints.previous(path)):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FvlightError, match=r"last\.ckpt'.*delete it"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_checkpoint_of_an_earlier_version_has_no_sum(tmp_path: Path) -> None:
    torch.save(state(3), tmp_path / "last.ckpt")
    assert step_of(AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")) == 3


def test_the_last_two_stay(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in range(1, 5):
        (tmp_path / ".last.ckpt.123.part").write_bytes(b"of a process that was killed")
        AtomicCheckpointIO().save_checkpoint(state(step), path)
        steps = {file.name: step_of(AtomicCheckpointIO().load_checkpoint(file)) for file in tmp_path.iterdir()}
        assert steps == {"last.ckpt": step, **({"last.previous.ckpt": step - 1} if step > 1 else {})}


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(step), tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert step_of(AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")) == 2


# -- no room -----------------------------------------------------------------------------------------------


def check_with_little_room(folder: Path, reason: str) -> None:
    """Save more and more, until that fails: the error is one line, and what was saved before is there."""
    path = folder / "last.ckpt"

    def more(step: int) -> dict[str, Any]:
        return {"step": step, "raw": torch.full((step, 25_000), float(step))}

    error, step = "", 0
    while not error:
        step += 1
        try:
            AtomicCheckpointIO().save_checkpoint(more(step), path)
        except FvlightError as caught:
            error = str(caught)
    assert "\n" not in error
    for words in (str(path), reason, "make room", "hydra.run.dir"):
        assert words in error
    assert step > 3
    assert sorted(file.name for file in folder.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    for before, file in enumerate((path, checkpoints.previous(path)), start=1):
        loaded = AtomicCheckpointIO().load_checkpoint(file)
        assert loaded["step"] == step - before
        assert torch.equal(loaded["raw"], more(step - before)["raw"])


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As under a quota: the system refuses what is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # Python ignores its signal
    try:
        check_with_little_room(tmp_path, os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(small_disk: Path) -> None:  # noqa: F811
    check_with_little_room(small_disk, os.strerror(errno.ENOSPC))


# -- when --------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when told to; stands in for the module `time` and for a Trainer slow to save.

    Also for its strategy: of other processes, which may find it time to save when this one does not.
    """

    def __init__(self, saving: float) -> None:
        self.now, self.saving, self.saves = 1000.0, saving, []
        self.strategy, self.others = self, False

    def monotonic(self) -> float:
        return self.now

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        return decision or self.others

    def save_checkpoint(self, path: Path) -> None:
        self.saves.append((self.now, path))
        self.now += self.saving


def simulate(
    monkeypatch: pytest.MonkeyPatch, seconds: float, saving: float, block: float, blocks: int, steps: int | None = None,
    others: Callable[[int], bool] = lambda _: False,
) -> Clock:  # fmt: skip
    """Blocks of four solver steps."""
    clock = Clock(saving)
    task: Any = SimpleNamespace(inner_steps=4)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=clock.monotonic))
    callback = SaveRegularly(Path("run"), seconds, steps)
    callback.on_train_start(clock, None)  # type: ignore[arg-type]
    for number in range(blocks):
        clock.now += block
        clock.others = others(number)
        callback.on_train_batch_end(clock, task)  # type: ignore[arg-type]
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


def test_saving_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ten steps is after three blocks of four; the seconds count as well."""
    for steps, between in {10: 3, 12: 3, 13: 4, 4: 1, 1: 1}.items():
        clock = simulate(monkeypatch, 1e9, 0.0, 1.0, 24, steps)
        assert [moment - 1000 for moment, _ in clock.saves] == [*range(between, 25, between), 24]
    clock = simulate(monkeypatch, 4.5, 0.0, 1.0, 20, 28)  # after 5 s, before the 7 blocks are over
    assert [moment - 1000 for moment, _ in clock.saves] == [5, 10, 15, 20, 20]
    clock = simulate(monkeypatch, 4.5, 0.0, 1.0, 20, 16)
    assert [moment - 1000 for moment, _ in clock.saves] == [4, 8, 12, 16, 20, 20]


def test_saving_when_another_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then this one's time begins anew."""
    clock = simulate(monkeypatch, 5.0, 0.0, 1.0, 12, others=lambda block: block in (1, 2))
    assert [moment - 1000 for moment, _ in clock.saves] == [2, 3, 8, 12]


@pytest.mark.parametrize("steps", [0, -5])
def test_no_steps_between_saves(steps: int) -> None:
    with pytest.raises(FvlightError, match=f"checkpoint_steps={steps}"):
        SaveRegularly(Path("run"), 1.0, steps)
