"""How far a run is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProblemProgressBar(ProgressBar):
    """A bar with problems solved and the time left; off a terminal a line now and then. In process 0 alone.

    The task says how far it is by ``progress()``: the share of the work that is done, and a few words. The time left
    goes by what has been done since the first block: what was done before a run was gone on with took none of its time.

    Args:
        seconds: between two lines where the output is not a terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._progress: Progress | None = None
        self._task_id: Any = None
        self._began, self._next = 0.0, 0.0
        self._first: tuple[float, float] | None = None  # when the first block ended, and how far the run was then
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.global_rank:
            self.disable()

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._first = time.monotonic(), None
        self._next = self._began + self.seconds
        if not self._enabled or not sys.stderr.isatty():
            return
        from rich.console import Console

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[words]}"),
            console=Console(stderr=True), transient=False,
        )  # fmt: skip
        self._progress.start()
        self._task_id = self._progress.add_task(type(pl_module).__name__, total=1.0, words="")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, pl_module.progress()[0]
            if self._progress is not None:
                self._progress.reset(self._task_id, completed=self._first[1])  # type: ignore[arg-type]  # a share
        if self._progress is not None:
            share, words = pl_module.progress()
            self._progress.update(self._task_id, completed=share, words=words)
        elif now >= self._next:
            share, words = pl_module.progress()
            self._next = now + self.seconds
            done = share - self._first[1]
            left = f"at most {(now - self._first[0]) * (1 - share) / done:.0f} s left, " if done > 0 else ""
            print(f"{share:6.1%} {now - self._began:6.0f} s, {left}{words}", file=sys.stderr, flush=True)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()
