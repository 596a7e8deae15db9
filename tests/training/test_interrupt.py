"""Ctrl-C, SIGTERM and SIGUSR1: the first stops after the block, a second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy

from fvlight.training import StopOnInterrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


class Loop(SimpleNamespace):
    """Of a Trainer what the callback looks at; alone, or as one of several processes of which others may stop."""

    def __init__(self, others: int = 0) -> None:
        super().__init__(should_stop=False, is_global_zero=True, strategy=self, launcher=None, others=others, asked=[])

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        self.asked.append(decision)
        # the second question, and those after it, are for each signal in turn
        theirs = bool(self.others) if len(self.asked) == 1 else SIGNALS[len(self.asked) - 2] == self.others
        return decision or theirs

    def kill(self, number: int) -> None:
        self.passed_on = number


@pytest.fixture(autouse=True)
def handlers_come_back() -> Iterator[None]:
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever has started pytest may ignore it
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, [found, *before[1:]], strict=True):
        signal.signal(number, handler)
    assert after == before


def begin(loop: Any) -> StopOnInterrupt:
    callback = StopOnInterrupt()
    callback.setup(loop, None, "fit")  # type: ignore[arg-type]
    callback.on_train_start(loop, None)  # type: ignore[arg-type]
    return callback


def test_nothing_happens_without_a_signal() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    loop = Loop()
    callback = begin(loop)
    assert [signal.getsignal(number) for number in SIGNALS] == [callback._handle] * 3
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert not loop.should_stop
    assert not callback.requested
    assert loop.asked == [False]
    callback.teardown(loop, None, "fit")  # type: ignore[arg-type]
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_stops_after_the_block(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop()
    callback = begin(loop)
    signal.raise_signal(number)
    assert callback.requested == number
    assert not loop.should_stop  # the block goes on to its end
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert loop.should_stop
    assert callback.requested == number
    said = capsys.readouterr().err
    assert "after this block" in said
    assert ("Ctrl-C again" if number == signal.SIGINT else signal.Signals(number).name) in said
    callback.teardown(loop, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_stops_at_once(first: int) -> None:
    callback = begin(Loop())
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert callback.requested == first
    callback.restore()
    with pytest.raises(KeyboardInterrupt):  # Python's own handler again
        signal.raise_signal(signal.SIGINT)


def test_schedulers_send_several(capsys: pytest.CaptureFixture[str]) -> None:
    callback = begin(Loop())
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        signal.raise_signal(number)
    assert callback.requested == signal.SIGUSR1
    assert capsys.readouterr().err.count("after this block") == 1
    callback.restore()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_handler_that_was_there_comes_back(number: int) -> None:
    """And stays, where somebody else takes care of the queue's signals."""
    seen: list[int] = []
    own = signal.signal(number, lambda number, _: seen.append(number))
    try:
        loop = Loop()
        callback = begin(loop)
        signal.raise_signal(number)
        theirs = number != signal.SIGINT
        assert (callback.requested, seen) == ((0, [number]) if theirs else (number, []))
        callback.teardown(loop, None, "fit")  # type: ignore[arg-type]
        callback.teardown(loop, None, "fit")  # type: ignore[arg-type]  # a second time changes nothing
        signal.raise_signal(number)
        assert seen == [number] * (1 + theirs)
    finally:
        signal.signal(number, own)


def test_a_run_in_another_thread_sets_no_handler() -> None:
    before, failures = [signal.getsignal(number) for number in SIGNALS], []

    def work() -> None:
        try:
            begin(Loop()).teardown(Loop(), None, "fit")  # type: ignore[arg-type]
            failures.extend([] if before == [signal.getsignal(number) for number in SIGNALS] else ["changed"])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


@pytest.mark.parametrize("number", SIGNALS)
def test_another_process_has_got_it(number: int) -> None:
    loop = Loop(others=number)
    callback = begin(loop)
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert loop.should_stop
    assert callback.requested == number
    callback.restore()


class Late(Loop):
    """A signal comes while the processes are talking: too late for the first vote, which the others have seen fail."""

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        voted = super().reduce_boolean_decision(decision, all)
        if len(self.asked) == 1 and self.number:
            signal.raise_signal(self.number)
        return voted


@pytest.mark.parametrize("number", SIGNALS)
def test_what_comes_after_the_vote_waits_for_the_next_one(number: int) -> None:
    """A process that stopped by itself would wait for the others, and they for it."""
    loop = Late()
    loop.number = number
    callback = begin(loop)
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert (loop.asked, loop.should_stop, callback.requested) == ([False], False, number)
    loop.asked.clear()
    loop.number = 0  # no further one
    callback.on_train_batch_end(loop)  # type: ignore[arg-type]
    assert loop.should_stop
    callback.restore()


@pytest.mark.parametrize("number", SIGNALS)
def test_who_starts_others_passes_it_on(number: int) -> None:
    """But not Ctrl-C: the terminal sends that to all of them."""
    loop = Loop()
    loop.launcher, loop.passed_on = loop, None
    callback = begin(loop)
    signal.raise_signal(number)
    assert loop.passed_on == (None if number == signal.SIGINT else number)
    callback.restore()


# -- with Lightning ----------------------------------------------------------------------------------------


class At(L.Callback):
    """Does something in a certain block, and counts the blocks."""

    def __init__(self, block: int, do: Callable[[], object]) -> None:
        self.block, self.do, self.blocks = block, do, 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.blocks += 1
        if self.blocks == self.block:
            self.do()

    def on_predict_batch_start(self, *arguments: Any) -> None:
        self.on_train_batch_start(*arguments[:4])


def trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, limit_train_batches=20, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[*callbacks], **{"devices": 1, **options},
    )  # fmt: skip


@pytest.mark.parametrize("slurm", [False, True], ids=["plain", "slurm"])
@pytest.mark.parametrize("stage", ["fit", "predict"])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of Lightning, about its own demo
def test_a_trainer_stops(number: int, stage: str, slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the block, without Lightning's exception for SIGTERM, or its checkpoint and requeueing for SLURM."""
    if slurm:
        variables = {"NTASKS": 1, "JOB_NAME": "job", "JOB_ID": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))  # no scontrol
    at, interrupt = At(3, lambda: signal.raise_signal(number)), StopOnInterrupt()
    loop = trainer(tmp_path, at, interrupt)
    assert isinstance(loop._accelerator_connector.cluster_environment, SLURMEnvironment) == slurm
    interrupt.install(loop)
    getattr(loop, stage)(BoringModel())
    assert at.blocks == 3
    assert interrupt.requested == number
    assert not list(tmp_path.rglob("*.ckpt"))


def _rank(rank: int, folder: Path, stopped: int, number: int) -> None:
    """One of two processes, of which one gets the signal."""
    os.environ.update(
        MASTER_ADDR="localhost", MASTER_PORT=(folder / "port").read_text(), WORLD_SIZE="2", RANK=str(rank),
        LOCAL_RANK=str(rank), NODE_RANK="0", GROUP_RANK="0", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    at = At(3, lambda: os.kill(os.getpid(), number) if rank == stopped else None)
    interrupt = StopOnInterrupt()
    trainer(folder, at, interrupt, devices=2, strategy=DDPStrategy(process_group_backend="gloo")).fit(BoringModel())
    (folder / str(rank)).write_text(f"{at.blocks} {interrupt.requested}")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_of_two_processes_gets_it(stopped: int, number: int, tmp_path: Path) -> None:
    """With Lightning's plain strategy: both end after the same block, and know why."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    both = mp.start_processes(_rank, (tmp_path, stopped, number), nprocs=2, join=False, start_method="fork")
    assert both is not None
    try:
        end = time.monotonic() + 60
        while not both.join(1):
            assert time.monotonic() < end
    finally:
        for process in both.processes:
            process.kill()
            process.join()
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {f"3 {int(number)}"}
