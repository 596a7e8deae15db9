"""Problems in parallel: every process solves a share, and what comes out is the same as from one process."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from fvlight import InputSpace, Network
from fvlight.errors import FvlightError
from fvlight.parameterizations import Levels
from fvlight.parameterizations.robust import Transformations
from fvlight.solvers import LBFGS, Adam, Patience, Pool
from fvlight.tasks import DiverseTask, InverseTask, ProblemTask, RealizationTask, ReconstructionTask, TextureTask
from fvlight.tasks.shares import Share, owners
from fvlight.training import AtomicCheckpointIO, ProblemsStrategy, SaveRegularly
from fvlight.zoo import load_network
from tests.helpers import one_thread  # noqa: F401  (for all tests: forked processes may not use OpenMP's threads)
from tests.realizations import smooth_network, smooth_response

pytestmark = pytest.mark.timeout(180)


def test_shares_are_balanced_and_keep_chains_together() -> None:
    for problems in range(1, 20):
        for processes in range(1, 6):
            found = owners(torch.ones(problems, dtype=torch.bool), torch.arange(problems), processes)
            counts = found.bincount(minlength=processes)
            assert int(counts.max() - counts.min()) <= 1
            assert (found.diff() >= 0).all()  # neighbours
    generator = torch.Generator().manual_seed(0)
    parent = torch.full((12, 5), -1)
    parent[:, 1:] = torch.arange(60).view(12, 5)[:, :-1]
    unfinished = torch.rand(60, generator=generator) < 0.6
    for refill, largest in ((True, 5), (False, 15)):  # a chain; a group of three
        pool = Pool(60, 3, parent.flatten(), refill)
        found = owners(unfinished, pool.together, 4).view(12, 5)
        assert (found == found[:, :1]).all()
        counts = torch.zeros(4).index_add_(0, found.flatten(), unfinished.float())
        assert float(counts.max() - counts.min()) <= largest
    assert (found.view(4, 15) == found.view(4, 15)[:, :1]).all()
    assert len(set(owners(torch.zeros(8, dtype=torch.bool), torch.arange(8), 4).tolist())) == 4


# -- tasks whose problems enter and leave the batch at different times -----------------------------------------


def diverse(continuation: str = "none") -> DiverseTask:
    return DiverseTask(
        load_network("hubel_wiesel_cell"), "complex", [0], norm=1.0, lambdas=[0, 0.1, 0.5, 2],
        distance_layer="rectified", convention="paper", threshold=0.8, images_per_problem=3, restarts=3,
        continuation=continuation, patience=Patience(max_steps=18, patience=3, decay=0.1), at_once=3, inner_steps=4,  # type: ignore[arg-type]
    )  # fmt: skip


def chains() -> DiverseTask:
    return diverse("ascending")


def textures() -> TextureTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 4))
    network = Network(module, "small", InputSpace(channels=1, photographic=False))
    return TextureTask(
        network, "2", [0, 1, 2, 3, 4], norm=5.0, patience=Patience(20, 8), inner_steps=4, at_once=2, crops_per_step=9
    )


def maximised() -> RealizationTask:
    """Activation maximization with transformations, then L-BFGS."""
    return RealizationTask(
        smooth_response(5), torch.eye(5), patience=Patience(20, 20), inner_steps=6, at_once=2,
        robust=Transformations(2), polish=LBFGS(max_evaluations=12),
    )  # fmt: skip


def inverted() -> InverseTask:
    generator = torch.Generator().manual_seed(3)
    raw, targets = torch.randn(85, 3, 10, 10, generator=generator), torch.rand(85, 6, generator=generator)
    return InverseTask(smooth_response(6), raw, [str(i) for i in range(85)], targets=targets, samples=12)


def rebuilt() -> ReconstructionTask:
    network = smooth_network(4)
    pictures = torch.rand(5, 3, 10, 10, generator=torch.Generator().manual_seed(1)) - 0.5
    return ReconstructionTask(
        network, "5", Levels(network.input_space, (10, 10)), pictures, list("abcde"), jitter=2, adam=Adam(5.0),
        patience=Patience(20, 20), inner_steps=6, at_once=2, polish=LBFGS(max_evaluations=12),
    )  # fmt: skip


TASKS: list[Callable[[], ProblemTask]] = [diverse, chains, textures, maximised, inverted, rebuilt]


class StopAfter(L.Callback):
    """Ends the fit after so many blocks, as Ctrl-C does."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            trainer.should_stop = True


def solve(
    task: ProblemTask,
    folder: Path,
    processes: int = 1,
    blocks: int = 0,
    extra: Sequence[L.Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """Fit, from the folder's checkpoint where there is one; returns the checkpoint of the end."""
    path = folder / "last.ckpt"
    strategy = {"strategy": "problems_fork"} if processes > 1 else {}
    trainer = L.Trainer(
        max_epochs=-1, accelerator="cpu", devices=processes, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        callbacks=[SaveRegularly(folder, 0.0), *([StopAfter(blocks)] if blocks else []), *extra],
        **({"logger": False} | strategy | options),
    )  # fmt: skip
    trainer.fit(task, ckpt_path=path if path.exists() else None, weights_only=True)
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def everything(checkpoint: dict[str, Any], task: ProblemTask) -> dict[str, Tensor]:
    """All that a run ends with, apart from the time it took."""
    state = {"raw": checkpoint["state_dict"]["raw"], **checkpoint["optimizer_states"][0]["state"][0]}
    mine = dict(checkpoint["fvlight"])
    for name in ("identity", "seconds", "at_once", "search", "search_rows"):
        mine.pop(name, None)
    state |= {f"stopping {name}": value for name, value in mine.pop("stopping").items()}
    history = mine.pop("history")
    state["history"] = torch.tensor(sorted(history.tolist()))
    state |= {f"result {name}": value for name, value in vars(task.result).items() if isinstance(value, Tensor)}
    return state | mine


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value.nan_to_num(7e7), other[name].nan_to_num(7e7)), name


@pytest.fixture(autouse=True)
def _environment(restored_environment: None) -> None:
    """Lightning leaves MASTER_PORT and others behind."""


@pytest.fixture(scope="module", params=TASKS, ids=lambda make: make.__name__)
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[], ProblemTask], dict[str, Tensor], list[str]]:
    """How to make a task, all that it ends with in one process, and its warnings."""
    task = request.param()
    found = everything(solve(task, tmp_path_factory.mktemp("undisturbed")), task)
    assert len(task.history) > 3 or task.inner_steps == 1
    return request.param, found, [*task.result.status, *task.result.warnings] if request.param != rebuilt else []


SLOW = [pytest.param(processes, marks=pytest.mark.slow) for processes in ((1, 2), (2, 1), (3, 1, 2))]


@pytest.mark.parametrize("processes", [(2,), (2, 3), *SLOW], ids=str)
def test_any_number_of_processes_ends_alike(processes: tuple[int, ...], undisturbed: Any, tmp_path: Path) -> None:
    """Started in so many processes, stopped after two blocks, gone on with in as many others: bit for bit."""
    make, expected, words = undisturbed
    for part in processes[:-1]:
        task = make()
        solve(task, tmp_path, part, blocks=2)
        assert not task.pool.finished
    task = make()
    checkpoint = solve(task, tmp_path, processes[-1])
    assert task.pool.finished
    assert_same(everything(checkpoint, task), expected)


# -- what can go wrong -------------------------------------------------------------------------------------------


class Dies(L.Callback):
    """One process ends, or fails, after so many blocks."""

    def __init__(self, rank: int, how: str, blocks: int = 2) -> None:
        self.rank, self.how, self.left = rank, how, blocks

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left or trainer.global_rank != self.rank:
            return
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "error":
            raise FvlightError("unit 7 is not there")
        if self.how == "defect":
            raise ValueError("a defect")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("killed", FvlightError, "ended .SIGKILL.*resume=|another process of this run has ended"),
        ("error", FvlightError, "^unit 7 is not there$|another process of this run has ended"),
        ("defect", (FvlightError, ProcessRaisedException), "a defect|another process of this run has ended"),
    ],
)
def test_a_process_that_ends_ends_all(rank: int, how: str, kind: Any, words: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=words):
        solve(diverse(), tmp_path, 2, extra=[Dies(rank, how)])
    assert time.monotonic() - began < 20
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
    task = diverse()  # nothing is lost
    solve(task, tmp_path)
    assert task.result.complete


def test_a_process_that_left_early_is_noticed(tmp_path: Path) -> None:
    """One block behind: what it has not done is not to be taken for done."""
    task = diverse()
    solve(task, tmp_path)
    behind = task.trainer.global_step - 1
    task.share = Share(task.share.owner, 0, 2)
    task.share.sum = lambda values: values + behind  # type: ignore[method-assign]
    with pytest.raises(FvlightError, match="some processes ended before others"):
        task.on_train_end()


def test_plain_ddp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=r"2 processes under DDPStrategy.*trainer\.strategy=problems"):
        solve(diverse(), tmp_path, 2, strategy="ddp_fork")


def test_a_module_without_problems_is_refused(tmp_path: Path) -> None:
    class Plain(L.LightningModule):
        def training_step(self, *_: Any) -> None: ...
        def train_dataloader(self) -> Any:
            return [0]

        def configure_optimizers(self) -> None: ...

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, strategy=ProblemsStrategy(start_method="fork"), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(FvlightError, match="Plain: it has no problems to share"):
        trainer.fit(Plain())


def test_a_share_can_not_be_fitted_by_others(tmp_path: Path) -> None:
    task = diverse()
    task._divide(1, 3)
    with pytest.raises(FvlightError, match="share of one of 3 processes, here are 1"):
        solve(task, tmp_path)


@pytest.mark.parametrize("make", [diverse, textures], ids=lambda make: make.__name__)
def test_more_processes_than_problems(make: Callable[[], ProblemTask], tmp_path: Path) -> None:
    alone, task = make(), make()
    for one in (alone, task):
        one.pool.status[2:] = 2  # the others are done
    expected = everything(solve(alone, tmp_path / "one"), alone)
    found = everything(solve(task, tmp_path / "three", 3), task)
    for name in ("raw", "status", "step"):
        assert torch.equal(found[name], expected[name])


def test_what_loggers_and_the_bar_are_told_is_of_all(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    task = diverse()
    solve(task, tmp_path, 2, logger=logger)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["solved"]) == len(task.pool) == 12
    steps = torch.cat(task.history)
    assert len({int(row) for row in steps[:, 0]}) == 12  # of both
