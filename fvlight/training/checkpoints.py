"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fvlight.errors import FvlightError
from fvlight.results import write_atomically

FILE_NAME = "last.ckpt"
OVERHEAD = 20  # the time between two saves is at least so many times that of one: at most 5 % goes into saving


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place in one step, on the same file system.

    A process killed at any moment leaves the last whole checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda part: torch.save(checkpoint, part))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; whatever is wrong with the file is one `FvlightError`."""
        try:
            checkpoint = super().load_checkpoint(path, *args, **kwargs)
            if not isinstance(checkpoint, dict):
                raise ValueError(f"it holds a {type(checkpoint).__name__}")
        except Exception as error:  # torch raises half a dozen kinds, and refuses what only pickle could read
            raise FvlightError(
                f"the checkpoint {str(path)!r} is damaged or not one of fvlight's "
                f"({(str(error) or type(error).__name__).splitlines()[0]}): delete it to begin anew"
            ) from error
        return checkpoint


class SaveRegularly(L.Callback):
    """Saves ``directory/last.ckpt`` between blocks, and when the run ends.

    Args:
        seconds: between two saves; more where saving itself takes long, see `OVERHEAD`.
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        self.path, self.seconds = directory / FILE_NAME, seconds
        self._next = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._next = time.monotonic() + self.seconds

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        began = time.monotonic()
        if began >= self._next:
            trainer.save_checkpoint(self.path)
            ended = time.monotonic()
            self._next = ended + max(self.seconds, OVERHEAD * (ended - began) if self.seconds else 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
