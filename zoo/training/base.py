"""What all recipes share: so many steps on batches that the step's number decides, and what is written in the end."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fvlight.errors import FvlightError
from fvlight.memory import keep_freed_memory
from fvlight.results import write_atomically
from fvlight.tasks.base import Blocks
from fvlight.tasks.identity import CHECKPOINT_KEY, seed_of, state_of

NOTED = 100  # steps of which the mean loss is noted


class Recipe(L.LightningModule):
    """Trains ``module`` for a number of steps.

    The batch of a step is drawn with a generator of that step's own seed: a training that was interrupted goes on with
    the batches that it would have had, on any device.

    Args:
        module: what is trained.
        steps: of the optimizer.
        seed: of all draws.
        settings: plain values that make this the same training; a checkpoint of other ones is refused.

    Attributes:
        data: what it is trained and tested on, in words, for the card.
        history: (step, mean loss of the `NOTED` steps up to it).
    """

    data = "its data"

    def __init__(self, module: nn.Module, steps: int, seed: int, settings: dict[str, Any]) -> None:
        super().__init__()
        if steps < 1:
            raise FvlightError(f"steps={steps}: at least 1")
        self.module, self.steps, self.seed, self.settings = module, steps, seed, settings
        self.history: list[tuple[int, float]] = []
        self._losses: list[Tensor] = []

    # -- what a recipe fills in ----------------------------------------------------------------------------

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Any:
        """A step's batch, on ``self.device``; the generator is the CPU's."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """What a step descends; under the Trainer's autocast."""

    @abstractmethod
    def measure(self, folder: Path) -> dict[str, Any]:
        """The trained module's figures on data that it has not seen; pictures are put into the folder."""

    def trained(self) -> nn.Module:
        """The module with the weights that ship."""
        return self.module

    def metadata(self) -> dict[str, str]:
        """What the file of weights says, for whoever trains them again."""
        return {"steps": str(self.steps), "seed": str(self.seed), "first_losses": json.dumps(self.history[:5])}

    # -- Lightning -----------------------------------------------------------------------------------------

    def train_dataloader(self) -> Blocks:
        return Blocks()

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()

    def on_train_batch_start(self, batch: int, batch_idx: int) -> int | None:
        if self.global_step < self.steps:
            return None
        self.trainer.should_stop = True  # a checkpoint of the end
        return -1

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        loss = self.loss(self.draw(torch.Generator().manual_seed(seed_of(self.seed, "step", self.global_step))))
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step % NOTED == 0 or self.global_step >= self.steps:
            self.history.append((self.global_step, float(torch.stack(self._losses).mean())))
            self._losses = []
            if self.trainer.loggers:
                self.log("loss", self.history[-1][1])
        if self.global_step >= self.steps:
            self.trainer.should_stop = True

    def progress(self) -> tuple[float, str]:
        """The share of the steps that are taken, and a few words."""
        said = f", loss {self.history[-1][1]:.4g}" if self.history else ""
        return self.global_step / self.steps, f"step {self.global_step} of {self.steps}{said}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "identity": self.settings,
            "history": self.history,
            "losses": [float(loss) for loss in self._losses],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = state_of(checkpoint, self.settings)
        self.history = [(int(step), float(loss)) for step, loss in state["history"]]
        self._losses = [torch.tensor(loss, device=self.device) for loss in state["losses"]]


def write_weights(module: nn.Module, out: Path, metadata: dict[str, str]) -> None:
    """The module's weights, matrices and kernels with 16 bits; the module itself is rounded to what the file holds.

    So the figures that are measured next are the file's.
    """
    state = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    tensors = {name: (value.half() if value.dim() > 1 else value).cpu().contiguous() for name, value in state.items()}
    for name, value in state.items():
        value.copy_(tensors[name])
    write_atomically(out, lambda path: save_file(tensors, path, metadata))
