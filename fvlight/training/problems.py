"""A Lightning strategy under which every process solves its own share of a run's problems."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.strategies.launchers.multiprocessing import _WorkerOutput
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from fvlight.errors import FvlightError
from fvlight.tasks.base import ProblemTask
from fvlight.tasks.shares import GO_ON, lost_process
from fvlight.training.launching import CommandLauncher


class ProblemsStrategy(DDPStrategy):
    """Problems in parallel: nothing is wrapped and nothing synchronised; see `ProblemTask` for who owns what.

    ``trainer.strategy=problems``, or ``Trainer(strategy="problems")`` once `fvlight.training` is imported. Processes
    talk once per block, through gloo on their CPUs whatever they compute on: a few numbers that say how far each one
    is, and the rows of a checkpoint, which process 0 writes whole, in the order of the problems.

    Args:
        timeout: how long a process waits for another one that lives, but does not answer: it has to be longer than a
            block, and than what process 0 does after the fit. One that dies is noticed at once.
        kwargs: of `DDPStrategy`; ``start_method="fork"`` (``trainer.strategy=problems_fork``) starts the processes from
            the one that there is, as in a notebook, where it can't be started a second time.
    """

    shares_problems = True

    def __init__(self, timeout: timedelta = timedelta(days=1), **kwargs: Any) -> None:
        super().__init__(process_group_backend="gloo", timeout=timeout, **kwargs)

    def setup_distributed(self) -> None:
        """As `DDPStrategy.setup_distributed`, which would bind the group to the GPU."""
        reset_seed()
        self.set_world_ranks()
        assert self.cluster_environment is not None
        _init_dist_connection(self.cluster_environment, "gloo", timeout=self._timeout)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _MultiProcessingLauncher):
            self._launcher = _ForkLauncher(self, start_method=self._start_method)  # type: ignore[arg-type]
        else:
            assert self.cluster_environment is not None
            self._launcher = CommandLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        super().setup_environment()
        self.barrier()
        if isinstance(self._launcher, CommandLauncher):
            self._launcher.all_there.set()

    @property
    def task(self) -> ProblemTask:
        """What is fitted.

        Raises:
            FvlightError: a module without problems of its own.
        """
        if not isinstance(self.lightning_module, ProblemTask):
            raise FvlightError(
                f"trainer.strategy=problems with {type(self.lightning_module).__name__}: it has no problems to share; "
                "set trainer.strategy=ddp, or trainer.devices=1"
            )
        return self.lightning_module

    def setup(self, trainer: L.Trainer) -> None:
        """As `DDPStrategy.setup`, without making all processes' parameters the same."""
        assert self.task.share.processes == self.world_size
        super(DDPStrategy, self).setup(trainer)

    def _setup_model(self, model: Any) -> Any:
        """Nothing is wrapped."""
        return model

    # -- checkpoints: whole, whatever the number of processes --------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = super().lightning_module_state_dict()
        return {**state, "raw": self.task.share.stack(state["raw"])}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state, stack = optimizer.state_dict(), self.task.share.stack
        return {**state, "state": {0: {name: stack(value) for name, value in state["state"][0].items()}}}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = checkpoint["state_dict"]
        self.task.load_state_dict({**state, "raw": state["raw"][self.task.share.mine]}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (state,), mine = checkpoint["optimizer_states"], self.task.share.mine
        rows = {name: value[mine] for name, value in state["state"][0].items()}
        self.optimizers[0].load_state_dict({**state, "state": {0: rows}})

    # -- what processes say to each other ----------------------------------------------------------------------

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        with lost_process():
            super().barrier(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        with lost_process():
            return super().broadcast(obj, src)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        if self.world_size == 1:
            return decision
        votes = torch.tensor(int(decision))  # on the CPU, where gloo talks
        with lost_process():
            dist.all_reduce(votes)
        return int(votes) == self.world_size if all else bool(votes)


class _ForkLauncher(_MultiProcessingLauncher):
    """Brings what the processes have found back to the one that started them, as a checkpoint of all problems."""

    def launch(self, function: Any, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except ProcessExitedException as error:
            reason = error.signal_name or f"exit status {error.exit_code}"
            raise FvlightError(f"process {error.error_index} has ended ({reason}); {GO_ON}") from error
        except ProcessRaisedException as error:
            name, _, text = str(error).strip().splitlines()[-1].partition(": ")
            if name.endswith(FvlightError.__name__):
                raise FvlightError(text) from error
            raise

    def _collect_rank_zero_results(self, trainer: L.Trainer, results: Any) -> Any:
        found = trainer._checkpoint_connector.dump_checkpoint()
        if trainer.global_rank:
            return None
        path = Path(tempfile.mkdtemp()) / "found.ckpt"
        torch.save(found, path)
        extra = self.get_extra_results(trainer)
        extra["requested"] = [getattr(callback, "requested", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        return _WorkerOutput(None, path, trainer.state, results, extra)

    def _recover_results_in_main_process(self, output: Any, trainer: L.Trainer) -> None:
        found = torch.load(output.weights_path, weights_only=True)
        shutil.rmtree(output.weights_path.parent)
        assert isinstance(self._strategy, ProblemsStrategy)
        self._strategy.task.take_back(found)
        for callback, requested in zip(trainer.callbacks, output.extra["requested"], strict=True):  # type: ignore[attr-defined]
            if requested is not None:
                callback.requested = requested
        trainer.state = output.trainer_state
        self.update_main_process_results(trainer, output.extra)


StrategyRegistry.register("problems", ProblemsStrategy, description="each process solves its share of the problems")
StrategyRegistry.register(
    "problems_fork", ProblemsStrategy, description="the same, with forked processes", start_method="fork"
)
