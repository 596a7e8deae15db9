"""fvlight.zoo.training.base: a training that was interrupted ends as one that was not; what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fvlight import FvlightError
from fvlight.training import fit
from fvlight.zoo.training.base import Recipe, write_weights
from fvlight.zoo.weights import seeded
from tests.helpers import one_thread  # noqa: F401  (for all tests)

CONFIG = {"trainer": {"accelerator": "cpu", "devices": 1}, "checkpoint_seconds": 1000, "checkpoint_steps": 60}


class Line(Recipe):
    """A line through points, by Adam with a falling rate."""

    def __init__(self, steps: int = 250, stop: int | None = None, seed: int = 0) -> None:
        super().__init__(seeded(lambda: nn.Linear(3, 1), seed), steps, seed, {"steps": steps, "seed": seed})
        self.stop = stop

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 3, generator=generator)

    def loss(self, batch: Tensor) -> Tensor:
        return (self.module(batch)[:, 0] - batch.sum(1) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        if self.global_step == self.stop:
            self.trainer.should_stop = True

    def measure(self, folder: Path) -> dict[str, Any]:
        return {}


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = Line()
    fit(CONFIG, whole, tmp_path / "whole", None)
    assert whole.global_step == 250
    assert [step for step, _ in whole.history] == [100, 200, 250]
    assert whole.history[0][1] > 100 * whole.history[-1][1]
    torch.testing.assert_close(whole.module.weight.detach(), torch.ones(1, 3), atol=0.02, rtol=0)
    part = Line(stop=130)
    fit(CONFIG, part, tmp_path / "part", None)
    assert part.global_step == 130
    assert part.progress() == (130 / 250, f"step 130 of 250, loss {part.history[0][1]:.4g}")
    for _ in range(2):  # the second time there is nothing left to do
        again = Line()
        fit(CONFIG, again, tmp_path / "part", None)
        assert again.global_step == 250
        assert torch.equal(again.module.weight, whole.module.weight)
        assert [step for step, _ in again.history] == [100, 200, 250]
        assert [loss for _, loss in again.history] == pytest.approx([loss for _, loss in whole.history], rel=1e-6)


def test_another_training_s_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(CONFIG, Line(steps=2), tmp_path, None)
    with pytest.raises(FvlightError, match=r"the checkpoint was made with steps=2, this run has steps=3"):
        fit(CONFIG, Line(steps=3), tmp_path, None)
    with pytest.raises(FvlightError, match="steps=0: at least 1"):
        Line(steps=0)


def test_the_module_is_what_the_file_holds(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    exact = module[0].weight.detach().clone()
    write_weights(module, tmp_path / "deep" / "out.safetensors", {"recipe": "test"})
    tensors = load_file(tmp_path / "deep" / "out.safetensors")
    assert tensors.keys() == module.state_dict().keys() - {"1.num_batches_tracked"}
    assert tensors["0.weight"].dtype == torch.half
    assert tensors["0.bias"].dtype == torch.float32
    for name, value in tensors.items():
        assert torch.equal(module.state_dict()[name], value.float())
    torch.testing.assert_close(module[0].weight.detach(), exact, rtol=2**-11, atol=1e-7)
    with safe_open(tmp_path / "deep" / "out.safetensors", "pt") as file:
        assert file.metadata() == {"recipe": "test"}
