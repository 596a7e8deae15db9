"""How fast is a sweep? Against the plain loop, and against the bare cost of the network; in one process.

    python scripts/benchmark_diverse.py --weights vgg19_normalised.safetensors [--rounds 7] [--steps 10]

One conv3_1 unit of VGG-19, 12 lambdas x 6 images. Compared are, per solver step of the whole sweep:

  fvlight   one step of `DiverseTask` for the batch, from images to updated parameters, in float32 and bf16
  plain     the same objective as one would write it first: one lambda at a time, torchvision's padded layers up
            to conv3_1 in NCHW float32 on the smallest canvas (26 x 26) that keeps the unit's window off the
            padding, all pairs' distances, FFT preconditioning, torch.optim.Adam
  bare      forward and input gradient of the unpadded network on the same batch in the same number type,
            nothing else

The rounds are interleaved, so that a change of the machine's speed meets all of them; ratios are taken round by
round and their medians printed. That the plain loop and fvlight compute the same scores is checked first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from benchmarking import interleaved, multiply_adds
from torch import Tensor, nn

from fvlight.memory import keep_freed_memory
from fvlight.solvers import Block, Status, solve_block
from fvlight.tasks import DiverseTask
from fvlight.zoo import load_network

UNIT, NORM, CANVAS, OFFSET, WHERE = 13, 2651.66 / 2, 26, 2, 3


class PlainLoop:
    """One lambda, six images: the objective of Cadena et al. 2018 written the plain way."""

    def __init__(self, convolutions: nn.Sequential, raw: Tensor, lam: float) -> None:
        self.layers = torchvision.models.vgg19(weights=None).features[:11]
        for padded, ours in zip(_convs(self.layers), _convs(convolutions), strict=False):
            padded.load_state_dict(ours.state_dict())
        for layer in self.layers:
            layer.requires_grad_(False)
            if isinstance(layer, nn.ReLU):
                layer.inplace = True
        self.raw, self.lam = raw.clone().requires_grad_(), lam
        self.optimizer = torch.optim.Adam([self.raw], lr=0.1)
        t = torch.fft.fftfreq(24, 1 / 24)
        gain = 1 / (t[:, None] ** 2 + t[None, :] ** 2).sqrt().sqrt().clamp(min=1)
        self.gain = gain / gain.mean()

    def score(self) -> Tensor:
        images = NORM * self.raw / self.raw.flatten(1).norm(dim=1)[:, None, None, None]
        if images.requires_grad:
            images.register_hook(lambda g: torch.fft.ifft2(torch.fft.fft2(g) * self.gain).real)
        x = F.pad(images, (OFFSET, CANVAS - 24 - OFFSET) * 2)
        features = self.layers[:9](x)
        activations = self.layers[9:](features)[:, UNIT, WHERE, WHERE]
        window = features[:, :, 4:10, 4:10].flatten(1)
        distances = torch.pdist(window) / window.shape[1] ** 0.5
        return activations.mean() + self.lam * distances.min()

    def step(self) -> None:
        self.optimizer.zero_grad()
        (-self.score()).backward()
        self.optimizer.step()


def _convs(layers: nn.Sequential) -> list[nn.Conv2d]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def fvlight_step(task: DiverseTask, raw: Tensor, dtype: torch.dtype, steps: int) -> Callable[[], None]:
    rows = torch.arange(len(raw))

    def run() -> None:
        block = Block(
            raw.clone(), torch.zeros_like(raw), torch.zeros_like(raw), torch.zeros(len(raw), dtype=torch.int64),
            task.patience.start(len(raw)), torch.full((len(raw),), int(Status.ACTIVE), dtype=torch.int8),
        )  # fmt: skip
        solve_block(lambda r: task.evaluate(r, rows, dtype), block, task.adam, task.patience, steps)

    return run


def bare_step(module: nn.Sequential, images: Tensor, dtype: torch.dtype, steps: int) -> Callable[[], None]:
    layers = module[: list(dict(module.named_children())).index("conv3_1") + 1]
    layers = layers.to(dtype=dtype, memory_format=torch.channels_last).requires_grad_(False)
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(steps):
            x = images.detach().requires_grad_()
            torch.autograd.grad(layers(x)[:, UNIT].sum(), x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random", help="file for VGG-19 normalised (default: random weights)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="solver steps per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # for all of them: the task asks for it, too
    steps = arguments.steps

    def network() -> nn.Sequential:
        return load_network("vgg19_normalised", arguments.weights).module  # type: ignore[return-value]

    task = DiverseTask(load_network("vgg19_normalised", arguments.weights), "conv3_1", [UNIT], norm=NORM)
    rows = torch.arange(len(task.lambdas))
    raw = task.start(rows)
    plain = [PlainLoop(network(), raw[i], task.lambdas[i]) for i in range(len(raw))]
    ours = task.evaluate(raw, rows, None).score
    theirs = torch.stack([loop.score() for loop in plain]).detach()
    print(f"largest relative difference of scores: {((ours - theirs) / theirs).abs().max():.1e}")

    images = task.parameterization(raw).flatten(0, 1)
    with torch.no_grad():
        padded = multiply_adds(lambda: [loop.score() for loop in plain])
        windowed = multiply_adds(lambda: network()[:11](images))
    print(
        f"multiply-adds of a forward pass: plain {padded:.3g}, windowed {windowed:.3g}, ratio {padded / windowed:.2f}"
    )
    runs: dict[str, Callable[[], None]] = {
        "fvlight float32": fvlight_step(task, raw, torch.float32, steps),
        "fvlight bf16": fvlight_step(task, raw, torch.bfloat16, steps),
        "plain": lambda: [[loop.step() for _ in range(steps)] for loop in plain] and None,
        "bare float32": bare_step(network(), images, torch.float32, steps),
        "bare bf16": bare_step(network(), images, torch.bfloat16, steps),
    }
    times = {
        name: [1e3 * seconds / steps for seconds in values]
        for name, values in interleaved(runs, arguments.rounds).items()
    }
    amx = "with" if torch.cpu._is_amx_tile_supported() else "without"
    print(f"{torch.get_num_threads()} threads, CPU {amx} AMX; ms per step of the sweep, median of {arguments.rounds}")
    for name, values in times.items():
        print(f"  {name:16s} {statistics.median(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")
    for over, under in (
        ("plain", "fvlight float32"), ("plain", "fvlight bf16"),
        ("fvlight float32", "bare float32"), ("fvlight bf16", "bare bf16"),
    ):  # fmt: skip
        ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
        print(f"  {over} / {under}: {statistics.median(ratios):.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
