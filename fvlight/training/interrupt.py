"""Ctrl-C ends a run at the next block, or batch of images: what has been computed is saved and written."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import lightning as L


class StopOnInterrupt(L.Callback):
    """The first SIGINT stops the run between two blocks, as if it were done; a second one stops it at once.

    Attributes:
        requested: whether there was one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this block; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.requested:
            trainer.should_stop = True

    on_predict_start = on_fit_start

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.requested:
            raise StopIteration  # ends Lightning's loop as the end of the images does

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the handler back that was there before: to be called after a fit that raised.

        Lightning then calls no `teardown`, and last of all puts the handlers back that it found: ours too.
        """
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
