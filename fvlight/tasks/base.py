"""What all tasks share: many independent problems, solved in blocks of inner steps under a Lightning Trainer."""

from __future__ import annotations

import math
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fvlight.batch_size import best_batch, is_out_of_memory
from fvlight.errors import FvlightError
from fvlight.memory import keep_freed_memory
from fvlight.readout import Readout
from fvlight.solvers import (
    LBFGS,
    Adam,
    Block,
    Evaluation,
    Momentum,
    Patience,
    Pool,
    ProblemAdam,
    Status,
    solve_block,
)
from fvlight.tasks.identity import CHECKPOINT_KEY, state_of
from fvlight.tasks.second_stage import SecondStage
from fvlight.tasks.shares import GO_ON, Share, owners

PRECISIONS = ("32-true", "bf16-mixed", "64-true")


class Blocks:
    """The task's own data: the numbers 0, 1, 2, … without end. It knows where it was, so that runs can resume."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.next += 1
            yield self.next - 1

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class ProblemTask(L.LightningModule):
    """A batch of problems, each with its own parameters, score, stopping rule and seed.

    One ``training_step`` is a block of inner steps for the problems in the batch; problems that are done leave it
    and waiting ones enter, between blocks. ``trainer.fit(task)`` ends by itself when all are done.

    With the strategy `fvlight.training.ProblemsStrategy` each process solves its share of the problems. What is small
    and per problem has room for all of them in every process, which only looks after its own; the parameters, and what
    the solver keeps of them, are only there for its own problems (`rows_of`). In checkpoints all are together in their
    order, so that a run goes on with any number of processes.

    Args:
        problems: how many.
        shape: of one problem's parameters.
        adam, patience: the solver; momentum in place of Adam.
        at_once: problems in the batch at most; None: as many as are of use and fit, which is measured. Where memory
            runs out the batch is halved.
        inner_steps: solver steps per block.
        parent, refill: see `Pool`.
        polish: a second stage, L-BFGS, for problems that Adam is done with; in the parameters' own number type.
    """

    figures: tuple[str, ...] = ("score",)  # the names of the figures that `evaluate` gives

    def __init__(
        self, problems: int, shape: tuple[int, ...], *, adam: Adam | Momentum, patience: Patience, at_once: int | None,
        inner_steps: int, parent: Tensor | None = None, refill: bool = True, polish: LBFGS | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if inner_steps < 1 or (at_once is not None and at_once < 1):
            raise FvlightError(f"at_once={at_once}, inner_steps={inner_steps}: both must be at least 1")
        self.automatic_optimization = False
        self.adam, self.patience, self.inner_steps = adam, patience, inner_steps
        self.raw = nn.Parameter(torch.zeros(problems, *shape))
        self.measured = at_once is None
        self.pool = Pool(problems, at_once or 1, parent, refill)
        self.stopping = patience.start(problems)
        self.polish, self.second = polish, None if polish is None else SecondStage(polish)
        self.polishing = torch.zeros(problems, dtype=torch.bool)
        self.evaluations = torch.zeros(problems, dtype=torch.int64)  # of the second stage
        self.history: list[Tensor] = []  # a tensor (rows, 2 + k) per block: problem, steps, the k figures
        self.seconds = 0.0
        self.share = Share(torch.zeros(problems, dtype=torch.int64))
        self.stepped = torch.zeros(problems, dtype=torch.int64)  # steps of the first stage
        self.taken = self.stepped.clone()  # the same within a block
        self._totals = torch.zeros(0)  # over all processes: unfinished, done, work, rows looked at, sums of figures
        self.result: Any = None  # in process 0

    # -- what a task fills in ------------------------------------------------------------------------------

    @abstractmethod
    def start(self, rows: Tensor) -> Tensor:
        """Starting parameters (len(rows), *shape) of problems that enter the batch."""

    @abstractmethod
    def evaluate(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """Score of the problems ``rows`` at their parameters, differentiable; network computed in ``dtype``."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes this the same set of problems: plain values, compared when a run is resumed."""

    @abstractmethod
    def collect(self) -> Any:
        """The result that there is now: in process 0; None in others, which take part in it all the same."""

    # -- Lightning -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        if trainer.world_size > 1 and not getattr(trainer.strategy, "shares_problems", False):
            raise FvlightError(
                f"{trainer.world_size} processes under {type(trainer.strategy).__name__}: all would solve the same "
                "problems; set trainer.strategy=problems, or trainer.devices=1"
            )
        if (self.share.rank, self.share.processes) != (trainer.global_rank, trainer.world_size):
            if not self.share.whole:
                raise FvlightError(
                    f"this task holds the share of one of {self.share.processes} processes, here are "
                    f"{trainer.world_size}: make a new task and go on from a checkpoint with fit(task, ckpt_path=...)"
                )
            self._divide(trainer.global_rank, trainer.world_size)
        if self.measured and self.pool.capacity == 1:
            self._measure()

    def _measure(self) -> None:
        """Find out how many problems to solve at once; the least of what processes find."""
        generator = torch.Generator().manual_seed(0)

        def look(count: int) -> None:
            raw = torch.randn(count, *self.raw.shape[1:], generator=generator).to(self.device).requires_grad_()
            rows = torch.arange(count)
            score = self.evaluate(raw, rows, torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None).score
            torch.autograd.grad(score.sum(), raw)

        with torch.enable_grad():
            found = torch.zeros(self.share.processes, dtype=torch.int64)
            found[self.share.rank] = best_batch(look, math.ceil(len(self.pool) / self.share.processes), self.device)
        self.pool.capacity = int(self.share.sum(found).min())
        if self.trainer.is_global_zero:
            print(f"{self.pool.capacity} problems at once", file=sys.stderr)
        self._divide(self.share.rank, self.share.processes)  # fixed groups go by their number

    def _divide(self, rank: int, processes: int) -> None:
        """Take this process's share of the problems that are left."""
        before = self.share
        self.share = Share(owners(~self.pool.done, self.pool.together, processes), rank, processes)
        mine = self.share.mine
        self.pool.owned = self.share.place >= 0
        if before.whole and not self.share.whole:
            self.raw.data = self.raw.data[mine]
        elif len(mine) != len(self.raw):  # a checkpoint fills them
            self.raw.data = self.raw.data.new_zeros(len(mine), *self.raw.shape[1:])

    def configure_optimizers(self) -> ProblemAdam:
        return ProblemAdam([self.raw], self.adam)

    def train_dataloader(self) -> Blocks:
        return Blocks()

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        require_precision(str(self.trainer.precision))

    def training_step(self, batch: int, batch_idx: int) -> None:
        optimizer = self.optimizers()
        before = len(self.history)
        optimizer.step(closure=self.run_block)  # type: ignore[union-attr, call-arg]
        self._count(self.history[before:])
        if self.trainer.loggers:
            self._log()
        if self._totals[0] == 0:  # the same in all processes
            self.trainer.should_stop = True

    def _count(self, looked: list[Tensor]) -> None:
        """How far all processes are, after a block that noted ``looked``."""
        mine, figures = self.pool.owned, torch.cat([torch.zeros(0, 2 + len(self.figures)), *looked])[:, 2:]
        done, active = self.pool.done & mine, mine & (self.pool.status == int(Status.ACTIVE))
        work = done.sum() + (self.steps[active].double() / self.most_steps).sum()
        counts = [(mine & ~done).sum(), done.sum(), work, torch.tensor(len(figures))]
        self._totals = self.share.sum(torch.cat([torch.stack([c.double() for c in counts]), figures.double().sum(0)]))

    def progress(self) -> tuple[float, str]:
        """The share of the work that is done, and a few words.

        A problem that is being solved counts by its steps out of the most it may take: an estimate of the time left is
        an upper bound until problems converge.
        """
        if not len(self._totals):
            self._count([])
        done, work = int(self._totals[1]), float(self._totals[2])
        return work / max(len(self.pool), 1), f"{done} of {len(self.pool)} problems solved"

    def _log(self) -> None:
        """For the Trainer's loggers, once a block: how many problems are solved, and the batch's mean figures."""
        values = {"solved": float(self._totals[1])}
        if rows := float(self._totals[3]):
            means = (self._totals[4:] / rows).tolist()
            values |= {f"mean_{name}": mean for name, mean in zip(self.figures, means, strict=True)}
        for logger in self.trainer.loggers:  # `log_dict` takes a hundred times as long
            logger.log_metrics(values, self.trainer.global_step)

    def on_train_end(self) -> None:
        blocks = self.share.sum(torch.tensor([self.trainer.global_step]))
        if int(blocks) != self.trainer.global_step * self.share.processes:
            raise FvlightError(f"some processes ended before others; {GO_ON}")
        if not self.share.whole:
            history = self._joined_history()
            self.history = [history] if self.share.first else []  # whole there, and not twice
        self.result = self.collect()

    def _joined_history(self) -> Tensor:
        """(rows, 2 + k) of all processes."""
        return self.share.join(torch.cat([torch.zeros(0, 2 + len(self.figures)).double(), *self.history]))

    def rows_of(self, problems: Tensor) -> Tensor:
        """Where the parameters of problems of this process stand in `raw`, on its device."""
        return self.share.place[problems].to(self.device)

    def begun(self) -> list[Tensor]:
        """This process's problems that have begun, in batches."""
        return self.pool.batches((self.pool.owned & (self.pool.status != int(Status.WAITING))).nonzero()[:, 0])

    def run_block(self) -> None:
        """Admit problems, take a block of steps with those in the batch, write their state back."""
        began = time.monotonic()
        while not self._fits():
            pass
        self.seconds += time.monotonic() - began

    def _fits(self) -> bool:
        """Take a block of steps; False if there was too little memory, where half as many problems are next."""
        fresh = self.pool.admit()
        rows = self.pool.active()
        try:
            if len(fresh):
                self.raw.data[self.rows_of(fresh)] = self.start(fresh).to(self.raw)
                fresh = fresh[:0]
            self.taken = self.stepped.clone()
            late = self.polishing[rows]
            if len(rows) and not late.all():
                self._solve(rows[~late])
            if late.any():
                self._polish(rows[late])
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise FvlightError(
                    f"out of memory with a single problem ({str(error).splitlines()[0]}): take smaller images, fewer "
                    "images per problem, or another device"
                ) from error
        self.pool.status[fresh] = int(Status.WAITING)  # nothing has been written of them
        self.pool.capacity = len(rows) // 2
        print(f"out of memory with {len(rows)} problems at once: going on with {len(rows) // 2}", file=sys.stderr)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _solve(self, rows: Tensor) -> None:
        device, dtype = self.device, self._network_dtype()
        moments = self.optimizers(use_pl_optimizer=False).state[self.raw]  # type: ignore[union-attr]
        where = self.rows_of(rows)
        block = Block(
            raw=self.raw.data[where],
            first=moments["exp_avg"][where],
            second=moments["exp_avg_sq"][where],
            steps=moments["step"][where],
            stopping={key: value[rows].to(device) for key, value in self.stopping.items()},
            status=self.pool.status[rows].to(device),
        )
        with torch.autocast(device.type, enabled=False):
            solve_block(lambda raw: self._look(raw, rows, dtype), block, self.adam, self.patience, self.inner_steps)
        # Rows that became NaN keep what they had when the block began.
        good = block.status != int(Status.NAN)
        kept = where[good]
        self.raw.data[kept] = block.raw[good]
        moments["exp_avg"][kept], moments["exp_avg_sq"][kept] = block.first[good], block.second[good]
        moments["step"][kept] = block.steps[good]
        self.stepped[rows] = moments["step"][where].cpu()
        for key, value in block.stopping.items():
            self.stopping[key][rows] = value.cpu()
        status = block.status.cpu()
        if self.polish is not None:
            done = (status == int(Status.CONVERGED)) | (status == int(Status.MAX_STEPS))
            self.polishing[rows[done]] = True
            status[done] = int(Status.ACTIVE)
        self.pool.status[rows] = status
        assert block.last is not None
        self._note(rows, block.last)

    def _look(self, raw: Tensor, rows: Tensor, dtype: torch.dtype | None) -> Evaluation:
        """At the problems of the first stage, which may depend on how many steps each one has taken."""
        evaluation = self.evaluate(raw, rows, dtype)
        self.taken[rows] += 1
        return evaluation

    def _polish(self, rows: Tensor) -> None:
        """A block of the second stage."""
        assert self.second is not None
        with torch.autocast(self.device.type, enabled=False):
            found = self.second.block(
                rows, lambda rows: self.raw.data[self.rows_of(rows)],
                lambda raw, rows: self.evaluate(raw, rows, None), self.inner_steps,
            )  # fmt: skip
        self.raw.data[self.rows_of(found.rows)] = found.raw
        self.evaluations[found.rows] = found.evaluations
        self.pool.status[found.rows] = found.status
        self._note(found.rows, found.last)

    def _note(self, rows: Tensor, last: Evaluation) -> None:
        columns = [rows.double()[:, None], self.steps[rows].double()[:, None], last.figures.cpu().double()]
        self.history.append(torch.cat(columns, 1))

    def _network_dtype(self) -> torch.dtype | None:
        """The number type that the Trainer's precision asks for inside the network."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    @property
    def steps(self) -> Tensor:
        """(problems,) solver steps taken so far."""
        return self.stepped + self.evaluations

    @property
    def most_steps(self) -> int:
        """At most so many solver steps per problem."""
        return self.patience.max_steps + (0 if self.polish is None else self.polish.max_evaluations)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        merge = self.share.merge
        checkpoint[CHECKPOINT_KEY] = {
            "identity": self.identity(),
            "status": merge(self.pool.status),
            "stopping": {name: merge(value) for name, value in self.stopping.items()},
            "history": self._joined_history(),
            "seconds": self.seconds,
            "at_once": self.pool.capacity,
            "polishing": merge(self.polishing),
            "evaluations": merge(self.evaluations),
            **({} if self.second is None else self.second.state(self.raw.data[:0], self.share.join)),
            **{name: merge(value) for name, value in self.extra_state().items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = state_of(checkpoint, self.identity())
        if self._trainer is not None and self._trainer.precision == "64-true":  # Lightning converts it only later
            self.raw.data = self.raw.data.double()
        self.stepped = checkpoint["optimizer_states"][0]["state"][0]["step"].cpu()
        self.pool.status, self.stopping = state["status"], state["stopping"]
        # whole in process 0, which alone will write it
        self.history = [state["history"]] if state["history"] is not None and self.share.first else []
        self.seconds, self._totals = state["seconds"], torch.zeros(0)
        if self.measured:
            self.pool.capacity = state.get("at_once", self.pool.capacity)
        self.polishing = state.get("polishing", self.polishing)
        self.evaluations = state.get("evaluations", self.evaluations)
        if self.polish is None:  # left out from now on: what it has reached stands
            self.pool.status[self.polishing & ~self.pool.done] = int(Status.MAX_STEPS)
        self._divide(self.share.rank, self.share.processes)
        if self.second is not None:
            self.second.take(state, self.pool.owned)
        self.load_extra_state(state)

    def take_back(self, checkpoint: dict[str, Any]) -> None:
        """Hold all problems again, which processes started from this one have solved."""
        self.on_load_checkpoint(checkpoint)
        self.raw.data = checkpoint["state_dict"]["raw"]
        self.result = self.collect()

    def extra_state(self) -> dict[str, Tensor]:
        """Further tensors (problems, ...) of the task for the checkpoint."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""


def require_precision(precision: str) -> None:
    """An error where the Trainer's precision is none that fvlight computes in."""
    if precision not in PRECISIONS:
        raise FvlightError(f"trainer.precision={precision}: fvlight computes in {', '.join(PRECISIONS)}")


def require_units(units: Sequence[int], readout: Readout, layer: str) -> list[int]:
    """The units as plain numbers, each of which the layer has."""
    if not units:
        raise FvlightError("unit=[]: name at least one unit, or unit=all")
    available = count_units(readout)
    for unit in units:
        if not 0 <= unit < available:
            raise FvlightError(f"unit={unit}: layer {layer!r} has units 0 to {available - 1}")
    return [int(unit) for unit in units]


def count_units(readout: Readout) -> int:
    """How many units the first layer of a windowed readout has, found by running it once."""
    with torch.no_grad():
        values = readout(torch.zeros(1, readout.network.input_space.channels, *readout.image_size))
    return int((values if isinstance(values, Tensor) else values[0]).shape[1])
