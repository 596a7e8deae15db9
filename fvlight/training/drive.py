"""From a configuration to a Trainer that runs: problems are fitted, images are gone through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry

from fvlight.errors import FvlightError, unknown
from fvlight.settings import number
from fvlight.tasks.base import ProblemTask, require_precision
from fvlight.training.checkpoints import FILE_NAME, AtomicCheckpointIO, SaveRegularly
from fvlight.training.interrupt import StopOnInterrupt
from fvlight.training.problems import ProblemsStrategy
from fvlight.training.progress import ProblemProgressBar


class Driven(NamedTuple):
    """How a run went.

    Attributes:
        interrupted: the number of the signal that ended it, or 0.
        first: whether this is the process that holds the result and writes it.
        wait: for all processes, until they have called it.
    """

    precision: str
    device: torch.device
    interrupted: int
    first: bool
    wait: Callable[[], None]


def fit(
    config: Mapping[str, Any], task: L.LightningModule, run_dir: Path, logger: Logger | None,
    saving: L.Callback | None = None, max_epochs: int = -1,
) -> Driven:  # fmt: skip
    """Fit the task, from its checkpoint where there is one.

    Args:
        saving: what saves checkpoints; None: as often as ``checkpoint_seconds`` says.
        max_epochs: -1: the task ends the fit; with 1, an interrupted one would count as fitted for good.
    """
    checkpoint = run_dir / "checkpoints" / FILE_NAME
    if checkpoint.exists():
        print(f"going on from {checkpoint}", file=sys.stderr)

    def go(trainer: L.Trainer) -> None:
        trainer.fit(task, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)

    callbacks = [saving or saving_regularly(config, run_dir)]
    return _drive(config, run_dir, logger, go, callbacks, max_epochs, isinstance(task, ProblemTask))


def predict(
    config: Mapping[str, Any], task: L.LightningModule, run_dir: Path, logger: Logger | None,
    callbacks: Sequence[L.Callback] = (),
) -> Driven:  # fmt: skip
    """Let the task go through its own images (`predict_dataloader`), from its checkpoint where there is one.

    What it has written it leaves out by itself.
    """
    checkpoint = run_dir / "checkpoints" / FILE_NAME

    def go(trainer: L.Trainer) -> None:
        path = checkpoint if checkpoint.exists() else None
        trainer.predict(task, return_predictions=False, ckpt_path=path, weights_only=True)

    return _drive(config, run_dir, logger, go, callbacks)


def saving_regularly(config: Mapping[str, Any], run_dir: Path) -> SaveRegularly:
    """By ``checkpoint_seconds=`` and ``checkpoint_steps=``."""
    steps = None if config.get("checkpoint_steps") is None else number(config, "checkpoint_steps", int)
    return SaveRegularly(run_dir / "checkpoints", number(config, "checkpoint_seconds"), steps)


def _drive(
    config: Mapping[str, Any], run_dir: Path, logger: Logger | None, go: Callable[[L.Trainer], Any],
    callbacks: Sequence[L.Callback], max_epochs: int = -1, shared: bool = False,
) -> Driven:  # fmt: skip
    """Let a Trainer ``go``, with a progress bar, until it is done or a signal stops it."""
    interrupt = StopOnInterrupt()
    # Interruption comes last: it ends a loop over images at once, and what others do with the batch must be done.
    trainer = make_trainer(config, run_dir, logger, [*callbacks, ProblemProgressBar(), interrupt], max_epochs, shared)
    try:
        interrupt.install(trainer)
        go(trainer)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's, of the second Ctrl-C
            raise KeyboardInterrupt from error
        raise  # others', such as submitit's when it puts a job back into the queue
    finally:
        interrupt.restore()
    strategy = trainer.strategy
    return Driven(
        str(trainer.precision), strategy.root_device, interrupt.requested, strategy.is_global_zero, strategy.barrier
    )


def make_trainer(
    config: Mapping[str, Any], run_dir: Path, logger: Logger | None, callbacks: list[L.Callback], max_epochs: int,
    shared: bool,
) -> L.Trainer:  # fmt: skip
    """From ``trainer=``.

    Args:
        shared: whether several processes may share the work; the strategy is then `ProblemsStrategy`.

    Raises:
        FvlightError: Lightning takes no such arguments, or would start several processes that can't share the work.
    """
    precision = str(config["trainer"].get("precision", "32-true"))
    if precision not in ("32", "64", "bf16"):  # before Lightning takes another one for it
        require_precision(precision)
    strategy, registered = config["trainer"].get("strategy", "auto"), StrategyRegistry.available_strategies()
    if isinstance(strategy, str) and strategy not in ("auto", *registered):
        raise unknown("strategy", strategy, ["auto", *sorted(registered, key=lambda name: "problems" not in name)])

    def make(**changed: Any) -> L.Trainer:
        return L.Trainer(
            **{**config["trainer"], **changed},
            max_epochs=max_epochs,
            logger=logger or False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            default_root_dir=run_dir,
        )

    try:
        trainer = make()
        if shared and trainer.world_size > 1 and strategy == "auto":
            trainer = make(strategy="problems")
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise FvlightError(f"trainer: {str(error).splitlines()[0]}") from error
    if trainer.world_size > 1 and not (shared and isinstance(trainer.strategy, ProblemsStrategy)):
        which = f"trainer.devices={config['trainer'].get('devices')} gives {trainer.world_size} processes"
        remedy = "trainer.strategy=problems or " if shared else ""
        raise FvlightError(  # before Lightning starts the other processes
            f"{which}, and this task does not run in several{' that way' if shared else ''}: "
            f"set {remedy}trainer.devices=1"
        )
    return trainer
