"""Ctrl-C, SIGTERM and SIGUSR1 end a run at the next block, or batch of images: what has been computed is saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

import lightning as L

# SIGTERM: what schedulers and `kill` send. SIGUSR1: what SLURM is asked to send some time before the limit.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnInterrupt(L.Callback):
    """The first signal stops the run between two blocks, as if it were done; a second Ctrl-C stops it at once.

    A signal to one process of several stops all of them after the same block. While the run lasts, these handlers take
    the place of Lightning's: its SIGTERM breaks the run off by an exception, and its requeueing by SLURM saves amid a
    block, in a file of its own that later runs would prefer to ours. Putting the job into the queue again is left to
    the job's script, which sees the exit status. What others have set for SIGTERM or SIGUSR1 (submitit does) stays.

    Attributes:
        requested: the number of the signal that stops the run, 0 without one.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}
        self._launcher: Any = None
        self._speaks, self._process = True, os.getpid()

    def install(self, trainer: L.Trainer) -> None:
        """Set the handlers; before the run in a process that only starts others and passes signals on to them."""
        if threading.current_thread() is not threading.main_thread():  # there Python allows no handler
            return
        self._launcher = trainer.strategy.launcher
        self._speaks = trainer.is_global_zero and os.getpid() == self._process  # no fork: its parent speaks
        for number in SIGNALS:
            before = self._previous.setdefault(number, signal.getsignal(number))
            ours = number == signal.SIGINT or before in (signal.SIG_DFL, None)
            signal.signal(number, self._handle if ours else before)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = not self.requested, self.requested or number
        if number != signal.SIGINT and self._launcher is not None:  # a terminal sends Ctrl-C to all of them
            self._launcher.kill(number)
        if first and self._speaks:
            ctrl_c = "stopping after this block; press Ctrl-C again to stop at once"
            text = ctrl_c if number == signal.SIGINT else f"{signal.Signals(number).name}: stopping after this block"
            with suppress(RuntimeError):  # it came while something was being printed
                print(f"\n{text}", file=sys.stderr, flush=True)

    def _agree(self, trainer: L.Trainer) -> int:
        """The signal, if any process had got one when all were asked; one that comes later waits for the next time."""
        if not trainer.strategy.reduce_boolean_decision(bool(self.requested), all=False):
            return 0
        # the same for all: one of several signals, if processes have got different ones
        for number in SIGNALS:
            if trainer.strategy.reduce_boolean_decision(self.requested == number, all=False):
                self.requested = int(number)
                break
        return self.requested

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.install(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.install(trainer)  # Lightning has set its own meanwhile

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._agree(trainer):
            trainer.should_stop = True

    on_predict_start = on_train_start

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._agree(trainer):
            raise StopIteration  # ends Lightning's loop as the end of the images does

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the handlers back that were there before: to be called after a fit that raised.

        Lightning then calls no `teardown`, and last of all puts the handlers back that it found: ours too.
        """
        for number in list(self._previous):
            signal.signal(number, self._previous.pop(number) or signal.SIG_DFL)
