"""What does the prior cost? Per image and solver step, as a multiple of VGG-19's cost up to conv3_1.

    python scripts/benchmark_prior.py [--weights FILE] [--images 64] [--rounds 5]

Compared, for images of 24 x 24 pixels, the window of a unit of conv3_1: the network's part of a step of task=diverse
(the units' activations and their gradient, by `Readout`), and the prior's (log-likelihood and gradient); both in
float32 and bf16, in one process, in turns. Of the authors' model (160 filters, 5 blocks) only multiply-adds are
counted, unless --full is given. With alpha = 0 the prior is not computed at all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from benchmarking import interleaved, multiply_adds
from torch import Tensor

from fvlight import FvlightError
from fvlight.memory import keep_freed_memory
from fvlight.priors import PixelCNN, likelihoods
from fvlight.readout import Readout
from fvlight.zoo import load_network
from fvlight.zoo.pixelcnn import PixelCNN as Model
from fvlight.zoo.pixelcnn_weights import load_pixelcnn

LAYER, UNIT = "conv3_1", 13
TYPES = {"float32": None, "bf16": torch.bfloat16}


def step(value: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Value and gradient of all images."""

    def run() -> object:
        x = images.detach().requires_grad_()
        return torch.autograd.grad(value(x).sum(), x)

    return run


def values(models: dict[str, PixelCNN], images: Tensor) -> dict[str, Callable[..., Tensor]]:
    """Of images, those given or others: the units' activations, and each prior's likelihoods, in each number type."""
    readout, units = Readout(load_network("vgg19", "random"), LAYER), torch.full((len(images),), UNIT)
    found: dict[str, Callable[..., Any]] = {}
    for name, dtype in TYPES.items():
        found[f"VGG-19, {name}"] = partial(lambda dtype, x=images: readout(x, units, dtype=dtype), dtype)
        for model, prior in models.items():
            found[f"{model}, {name}"] = partial(lambda p, dtype, x=images: likelihoods(p, x, dtype), prior, dtype)
    return found


def run(arguments: argparse.Namespace) -> None:
    if arguments.images < 1 or arguments.rounds < 1:
        raise FvlightError(f"--images {arguments.images} --rounds {arguments.rounds}: both at least 1")
    keep_freed_memory()
    space = load_network("vgg19", "random").input_space
    small = load_pixelcnn(arguments.weights)
    models = {
        f"PixelCNN++ ({small.filters} filters, {small.resnets} blocks)": PixelCNN(small, space),
        "PixelCNN++ (the authors')": PixelCNN(Model().eval(), space),
    }
    images = 40 * torch.randn(arguments.images, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        few = {name: value for name, value in values(models, images[:1]).items() if name.endswith("float32")}
        counted = {name: multiply_adds(value) for name, value in few.items()}
    network = counted["VGG-19, float32"]
    print("multiply-adds per image, forward; the gradient takes as many")
    for name, count in counted.items():
        print(f"  {name.removesuffix(', float32'):36s} {count:10.3g}   {count / network:7.2f} x VGG-19's to {LAYER}")
    if not arguments.full:
        models.popitem()
    runs = {name: step(value, images) for name, value in values(models, images).items()}
    times = interleaved(runs, arguments.rounds)
    threads = torch.get_num_threads()
    print(f"{threads} threads; ms per image-step of {len(images)} images, median of {arguments.rounds} rounds")
    for name, seconds in times.items():
        base = times[f"VGG-19, {name.rpartition(', ')[2]}"]
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        print(f"  {name:46s} {1e3 * statistics.median(seconds) / len(images):8.3f}   {ratio:7.2f} x VGG-19's")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default", help="of the prior: default, random, or a file")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="time the authors' model, too: minutes on a CPU")
    try:
        run(parser.parse_args(given))
    except FvlightError as error:
        print(f"benchmark_prior: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
