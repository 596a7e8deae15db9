"""Small smooth networks whose realizations can be solved to the end, and fits of tasks without the command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fvlight import InputSpace, Network
from fvlight.aggregation import Aggregation
from fvlight.parameterizations import SigmoidPixels
from fvlight.response import Response
from fvlight.tasks import ProblemTask

SIZE = 10  # pixels


def smooth_network(features: int, dead: int | None = None, seed: int = 0) -> Network:
    """Softplus and average pooling; weights so large that optima are not black and white, where gradients vanish.

    Args:
        dead: a feature that is 0 for every image; the ReLU that sees to it changes no other, all of them positive.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        last = nn.Conv2d(features, features, 1)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.Softplus(), nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, features, 3, padding=1), nn.Softplus(),
            last, nn.ReLU(),
        )  # fmt: skip
        for layer in (module[0], module[3], module[5]):
            nn.init.normal_(layer.weight, 0, 4 * math.sqrt(2 / layer.weight[0].numel()))
            layer.weight.data -= layer.weight.data.mean((1, 2, 3), keepdim=True)
            nn.init.normal_(layer.bias)
    last.weight.data = torch.eye(features)[:, :, None, None]
    last.bias.data.zero_()
    if dead is not None:
        last.weight.data[dead], last.bias.data[dead] = 0, -1
    return Network(module.eval(), "smooth", InputSpace())


def smooth_response(features: int, dead: int | None = None) -> Response:
    """The mean of the last maps of `smooth_network`, of sigmoid pixels."""
    network = smooth_network(features, dead)
    return Response(network, "8", SigmoidPixels(network.input_space, (SIZE, SIZE)), Aggregation("mean"))


def trainer(precision: str = "64-true", **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision=precision, **options,
    )  # fmt: skip


def fit(task: ProblemTask, checkpoint: Path | None = None, precision: str = "64-true") -> Any:
    """The task's result."""
    trainer(precision).fit(task, ckpt_path=checkpoint, weights_only=True)
    assert task.result is not None
    return task.result


def kill(task: ProblemTask, blocks: int, path: Path) -> Path:
    """Fit for so many blocks and leave a checkpoint."""
    part = trainer(max_steps=blocks)
    part.fit(task)
    part.save_checkpoint(path)
    return path


def unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors.double(), dim=-1)
