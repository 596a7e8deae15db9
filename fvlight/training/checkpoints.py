"""Checkpoints that are there whole or not at all, and whose damage is noticed."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only

from fvlight.errors import FvlightError
from fvlight.results import write_atomically

FILE_NAME = "last.ckpt"
MARK = b"fvlight, sha256:"  # at a checkpoint's end, before the sum of all that precedes it
TAIL = len(MARK) + hashlib.sha256().digest_size
OVERHEAD = 20  # the time between two saves is at least so many times that of one: at most 5 % goes into saving


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place in one step, on the same file system.

    A process killed at any moment leaves the last whole checkpoint. The one before it stays, too, as
    ``last.previous.ckpt``, and is loaded where the last one is damaged. torch itself does not notice a changed byte in
    a tensor; so a sum stands at the end, where `torch.load` takes no notice of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                summed: Any = _Summed(file)
                torch.save(checkpoint, summed)
                file.write(MARK + summed.sum.digest())
            with suppress(OSError):  # there is none yet, or the file system knows no links: then none is kept
                previous(path).unlink(missing_ok=True)
                os.link(path, previous(path))

        for part in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed
            part.unlink(missing_ok=True)
        write_atomically(path, write)

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint into the CPU's memory, tensors and plain values alone; if it is damaged, the one before it.

        Raises:
            FvlightError: whatever is wrong with both files.
        """
        faults = []
        for file in (Path(path), previous(Path(path))):
            try:
                checkpoint = _read(file)
            except Exception as error:  # torch raises half a dozen kinds, and refuses what only pickle could read
                reason = (str(error) or type(error).__name__).splitlines()[0]
                faults.append(f"the checkpoint {str(file)!r} is damaged or not one of fvlight's ({reason})")
                cause = error
            else:
                for fault in faults:
                    rank_zero_only(print)(f"{fault}: going on from the one before it, {str(file)!r}", file=sys.stderr)
                return checkpoint
        raise FvlightError(f"{faults[0]}: delete it to begin anew") from cause


class _Summed:
    """A file that sums up what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.sum.update(part)
        return self.file.write(part)  # type: ignore[no-any-return]

    def flush(self) -> None:
        self.file.flush()


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is."""
    return path.with_suffix(f".previous{path.suffix}")


def _read(path: Path) -> dict[str, Any]:
    """A whole checkpoint; one without a sum is of a version of fvlight that made none."""
    left = path.stat().st_size - TAIL
    with path.open("rb") as file:
        file.seek(max(left, 0))
        tail = file.read()
        file.seek(0)
        found = hashlib.sha256()
        while tail.startswith(MARK) and left > 0 and (part := file.read(min(left, 2**20))):
            found.update(part)
            left -= len(part)
    if tail.startswith(MARK) and tail != MARK + found.digest():
        raise ValueError("its bytes are not those that were written")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it holds a {type(checkpoint).__name__}")
    return checkpoint


class SaveRegularly(L.Callback):
    """Saves ``directory/last.ckpt`` between blocks, or batches of images that are gone through, and when the run ends.

    All processes of a run save together, when one of them finds that it is time.

    Args:
        seconds: between two saves; more where saving itself takes long, see `OVERHEAD`.
        steps: solver steps between two saves, rounded up to whole blocks (batches count where there are no such steps);
            None: only time counts. With both, whatever comes first.
    """

    def __init__(self, directory: Path, seconds: float, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise FvlightError(f"checkpoint_steps={steps}: must be at least 1, or null")
        self.path, self.seconds, self.steps = directory / FILE_NAME, seconds, steps
        self._next, self._taken = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._next, self._taken = time.monotonic() + self.seconds, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        began = time.monotonic()
        self._taken += getattr(pl_module, "inner_steps", 1)
        due = began >= self._next or (self.steps is not None and self._taken >= self.steps)
        if trainer.strategy.reduce_boolean_decision(due, all=False):  # clocks differ, and saving takes all of them
            trainer.save_checkpoint(self.path)
            ended = time.monotonic()
            self._next = ended + max(self.seconds, OVERHEAD * (ended - began) if self.seconds else 0)
            self._taken = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_end(trainer, pl_module)
