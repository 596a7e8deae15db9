"""From a configuration to a Trainer that runs: problems are fitted, images are gone through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from fvlight.errors import FvlightError
from fvlight.settings import number
from fvlight.tasks.base import PRECISIONS
from fvlight.training.checkpoints import FILE_NAME, AtomicCheckpointIO, SaveRegularly
from fvlight.training.interrupt import StopOnInterrupt
from fvlight.training.progress import ProblemProgressBar

Driven = tuple[str, torch.device, bool]  # precision, device, and whether Ctrl-C ended it


def fit(config: Mapping[str, Any], task: L.LightningModule, run_dir: Path, logger: Logger | None) -> Driven:
    """Fit the task, from its checkpoint where there is one."""
    checkpoint = run_dir / "checkpoints" / FILE_NAME
    if checkpoint.exists():
        print(f"going on from {checkpoint}", file=sys.stderr)
    saving = SaveRegularly(run_dir / "checkpoints", number(config, "checkpoint_seconds"))

    def go(trainer: L.Trainer) -> None:
        trainer.fit(task, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)

    return drive(config, run_dir, logger, go, [saving])


def predict(config: Mapping[str, Any], task: L.LightningModule, run_dir: Path, logger: Logger | None) -> Driven:
    """Let the task go through its own images (`predict_dataloader`); what it has written it leaves out by itself."""
    return drive(config, run_dir, logger, lambda trainer: trainer.predict(task, return_predictions=False), [])


def drive(
    config: Mapping[str, Any], run_dir: Path, logger: Logger | None, go: Callable[[L.Trainer], Any],
    callbacks: Sequence[L.Callback], max_epochs: int = -1,
) -> Driven:  # fmt: skip
    """Let a Trainer ``go``, with a progress bar, until it is done or Ctrl-C is pressed.

    Args:
        max_epochs: -1: the task ends the fit; with 1, an interrupted one would count as fitted for good.
    """
    interrupt = StopOnInterrupt()
    # Interruption comes last: it ends a loop over images at once, and what others do with the batch must be done.
    trainer = make_trainer(config, run_dir, logger, [*callbacks, ProblemProgressBar(), interrupt], max_epochs)
    try:
        go(trainer)
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt, that is, of the second Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        interrupt.restore()
    return str(trainer.precision), trainer.strategy.root_device, interrupt.requested


def make_trainer(
    config: Mapping[str, Any], run_dir: Path, logger: Logger | None, callbacks: list[L.Callback], max_epochs: int
) -> L.Trainer:
    """From ``trainer=``.

    Raises:
        FvlightError: Lightning takes no such arguments, or would start several processes.
    """
    precision = str(config["trainer"].get("precision", "32-true"))
    if precision not in (*PRECISIONS, "32", "64", "bf16"):  # before Lightning takes another one for it
        raise FvlightError(f"trainer.precision={precision}: fvlight computes in {', '.join(PRECISIONS)}")
    try:
        trainer = L.Trainer(
            **config["trainer"],
            max_epochs=max_epochs,
            logger=logger or False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise FvlightError(f"trainer: {str(error).splitlines()[0]}") from error
    if trainer.world_size > 1:  # before Lightning starts the other processes
        raise FvlightError(
            f"trainer.devices={config['trainer'].get('devices')} gives {trainer.world_size} processes, and "
            "this task runs in one: set trainer.devices=1"
        )
    return trainer
