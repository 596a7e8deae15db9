"""What all tasks share: many independent problems, solved in blocks of inner steps under a Lightning Trainer."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

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
    polish_block,
    solve_block,
)
from fvlight.solvers.lbfgs import State

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
CHECKPOINT_KEY = "fvlight"
MOST_SHOWN = 60  # characters of a setting in an error


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

    Args:
        problems: how many.
        shape: of one problem's parameters.
        adam, patience: the solver; momentum in place of Adam.
        at_once: problems in the batch at most.
        inner_steps: solver steps per block.
        parent: (problems,) see `Pool`.
        polish: a second stage, L-BFGS, for problems that Adam is done with; in the parameters' own number type.
    """

    figures: tuple[str, ...] = ("score",)  # the names of the figures that `evaluate` gives

    def __init__(
        self, problems: int, shape: tuple[int, ...], *, adam: Adam | Momentum, patience: Patience, at_once: int,
        inner_steps: int, parent: Tensor | None = None, polish: LBFGS | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if at_once < 1 or inner_steps < 1:
            raise FvlightError(f"at_once={at_once}, inner_steps={inner_steps}: both must be at least 1")
        self.automatic_optimization = False
        self.adam, self.patience, self.inner_steps = adam, patience, inner_steps
        self.raw = nn.Parameter(torch.zeros(problems, *shape))
        self.pool = Pool(problems, at_once, parent)
        self.stopping = patience.start(problems)
        self.polish = polish
        self.polishing = torch.zeros(problems, dtype=torch.bool)
        self.evaluations = torch.zeros(problems, dtype=torch.int64)  # of the second stage
        self.search: State = {}  # its state, of the problems `search_rows`
        self.search_rows = torch.zeros(0, dtype=torch.int64)
        self.history: list[Tensor] = []  # a tensor (rows, 2 + k) per block: problem, steps, the k figures
        self.seconds = 0.0

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

    # -- Lightning -----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> ProblemAdam:
        return ProblemAdam([self.raw], self.adam)

    def train_dataloader(self) -> Blocks:
        return Blocks()

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.trainer.precision not in PRECISIONS:
            raise FvlightError(
                f"trainer.precision={self.trainer.precision}: fvlight computes in {', '.join(PRECISIONS)}"
            )
        if self.trainer.world_size > 1:
            raise FvlightError(
                f"trainer.devices gives {self.trainer.world_size} processes, and this task runs in one: "
                "set trainer.devices=1"
            )

    def training_step(self, batch: int, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.step(closure=self.run_block)  # type: ignore[union-attr, call-arg]
        if self.trainer.loggers:
            self._log()
        if self.pool.finished:
            self.trainer.should_stop = True

    def _log(self) -> None:
        """For the Trainer's loggers, once a block: how many problems are solved, and the batch's mean figures."""
        values = {"solved": self.pool.done.sum().float()}
        if self.history:
            means = self.history[-1][:, 2:].mean(0).float()
            values |= {f"mean_{name}": mean for name, mean in zip(self.figures, means, strict=True)}
        self.log_dict(values, batch_size=1)

    def run_block(self) -> None:
        """Admit problems, take a block of steps with those in the batch, write their state back."""
        began = time.monotonic()
        fresh = self.pool.admit()
        if len(fresh):
            self.raw.data[fresh.to(self.device)] = self.start(fresh).to(self.raw)
        rows = self.pool.active()
        late = self.polishing[rows]
        if len(rows) and not late.all():
            self._solve(rows[~late])
        if late.any():
            self._polish(rows[late])
        self.seconds += time.monotonic() - began

    def _solve(self, rows: Tensor) -> None:
        device, dtype = self.device, self._network_dtype()
        moments = self.optimizers(use_pl_optimizer=False).state[self.raw]  # type: ignore[union-attr]
        where = rows.to(device)
        block = Block(
            raw=self.raw.data[where],
            first=moments["exp_avg"][where],
            second=moments["exp_avg_sq"][where],
            steps=moments["step"][where],
            stopping={key: value[rows].to(device) for key, value in self.stopping.items()},
            status=self.pool.status[rows].to(device),
        )
        with torch.autocast(device.type, enabled=False):
            solve_block(lambda raw: self.evaluate(raw, rows, dtype), block, self.adam, self.patience, self.inner_steps)
        # Rows that became NaN keep what they had when the block began.
        good = block.status != int(Status.NAN)
        kept = where[good]
        self.raw.data[kept] = block.raw[good]
        moments["exp_avg"][kept], moments["exp_avg_sq"][kept] = block.first[good], block.second[good]
        moments["step"][kept] = block.steps[good]
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

    def _polish(self, rows: Tensor) -> None:
        """A block of the second stage."""
        assert self.polish is not None
        self.search = {name: value.to(self.device) for name, value in self.search.items()}  # after a resume
        new = rows[~torch.isin(rows, self.search_rows)]
        if len(new):
            fresh = self.polish.start(self.raw.data[new.to(self.device)])
            self.search = (
                {name: torch.cat([self.search[name], fresh[name]]) for name in fresh} if self.search else fresh
            )
            self.search_rows = torch.cat([self.search_rows, new])
        rows = self.search_rows  # all of them are in the batch, and none that is not
        with torch.autocast(self.device.type, enabled=False):
            status, last = polish_block(
                lambda raw: self.evaluate(raw, rows, None), self.search, self.polish, self.inner_steps
            )
        self.raw.data[rows.to(self.device)] = self.search["raw"]
        self.evaluations[rows] = self.search["evaluations"].cpu()
        self.pool.status[rows] = status
        self._note(rows, last)
        staying = status == int(Status.ACTIVE)
        if not staying.all():
            self.search_rows = rows[staying]
            self.search = {name: value[staying.to(value.device)] for name, value in self.search.items()}

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
        optimizer = self.optimizers(use_pl_optimizer=False)
        return optimizer.state[self.raw]["step"].cpu() + self.evaluations  # type: ignore[union-attr, no-any-return]

    @property
    def most_steps(self) -> int:
        """At most so many solver steps per problem."""
        return self.patience.max_steps + (0 if self.polish is None else self.polish.max_evaluations)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "identity": self.identity(),
            "status": self.pool.status,
            "stopping": self.stopping,
            "history": torch.cat(self.history) if self.history else None,
            "seconds": self.seconds,
            **self._polish_state(),
            **self.extra_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = state_of(checkpoint, self.identity())
        if self.trainer.precision == "64-true":  # Lightning converts the module only after it has loaded its state
            self.raw.data = self.raw.data.double()
        self.pool.status, self.stopping = state["status"], state["stopping"]
        self.history = [] if state["history"] is None else [state["history"]]
        self.seconds = state["seconds"]
        for name in self._polish_state():
            setattr(self, name, state.get(name, getattr(self, name)))
        if self.polish is None:  # left out from now on: what it has reached stands
            self.pool.status[self.polishing & ~self.pool.done] = int(Status.MAX_STEPS)
        elif self.search and self.search["history"].shape[2] != self.polish.memory:  # begun anew from where it is
            self.search, self.search_rows = {}, self.search_rows[:0]
        self.load_extra_state(state)

    def _polish_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("polishing", "evaluations", "search", "search_rows")}

    def extra_state(self) -> dict[str, Any]:
        """Further plain values and tensors of the task for the checkpoint."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""


def state_of(checkpoint: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a task has put into a checkpoint, under `CHECKPOINT_KEY`.

    Raises:
        FvlightError: it is no checkpoint of ours, or of another run.
    """
    if CHECKPOINT_KEY not in checkpoint:
        raise FvlightError("this checkpoint is not one of fvlight's: resume with a run directory of fvlight")
    state: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    require_same(state["identity"], identity)
    return state


def require_same(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """An error where what a run left behind was made with other settings, nested ones included, than this one's."""
    for key, value in mine.items():
        there = saved.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            require_same({f"{key}.{k}": v for k, v in there.items()}, {f"{key}.{k}": v for k, v in value.items()})
        elif there != value:
            long = max(len(str(value)), len(str(there))) > MOST_SHOWN
            made = f"other {key}" if long else f"{key}={there}, this run has {key}={value}"
            raise FvlightError(
                f"the checkpoint was made with {made}: resume with the settings of the run, or begin a new one"
            )


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


def seed_of(*parts: object) -> int:
    """A seed that is a function of the given values and of nothing else."""
    name = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def fingerprint(weights: nn.Module | dict[str, Tensor]) -> str:
    """A short name for a module's weights, or other named tensors: equal if and only if they are."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
