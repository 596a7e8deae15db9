"""Draw images from PixelCNN++, pixel by pixel: what the prior takes for natural.

    python scripts/sample_prior.py [--weights FILE.safetensors] [--count 16] [--size 32] [--out samples.png]

A pass through the network for each pixel: with the weights that come with fvlight two or three minutes on a CPU core.
Below the picture's path stands how likely the model finds its samples, in bits per dimension.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from fvlight import FvlightError
from fvlight.priors.logistic_mixture import log_likelihood
from fvlight.results import write_atomically
from fvlight.zoo.pixelcnn import STRIDE, sample
from fvlight.zoo.pixelcnn_weights import load_pixelcnn
from fvlight.zoo.training.compression import enlarged


def run(arguments: argparse.Namespace) -> None:
    count, side, out = arguments.count, arguments.size, arguments.out
    if count < 1 or arguments.zoom < 1 or side < STRIDE or side % STRIDE:
        raise FvlightError(
            f"--count {count} --size {side} --zoom {arguments.zoom}: at least 1 image, of a multiple of {STRIDE} "
            "pixels a side, shown at least as large as it is"
        )
    if out.suffix.lower() != ".png":
        raise FvlightError(f"--out {str(out)!r} is not a .png file")
    module = load_pixelcnn(arguments.weights, averaged=not arguments.plain)
    if torch.cuda.is_available():
        module.cuda()
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{count} images of {side} x {side}", total=1.0)
        images = sample(
            module, count, (side, side), torch.Generator().manual_seed(arguments.seed),
            lambda share: progress.update(bar, completed=share),
        )  # fmt: skip
    with torch.no_grad():
        bits = -log_likelihood(module(images), images).mean() / (3 * math.log(2))
    picture = enlarged(images.cpu(), math.ceil(math.sqrt(count)), arguments.zoom)
    write_atomically(out, lambda path: picture.save(path, "PNG"))
    print(out)
    print(f"{float(bits):.2f} bits per dimension")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default", metavar="FILE", help="default: those that come with fvlight")
    parser.add_argument("--plain", action="store_true", help="weights of the last step, not their average")
    parser.add_argument("--count", type=int, default=16, help="images")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zoom", type=int, default=4, help="how many times larger the picture shows them")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE.png")
    try:
        run(parser.parse_args(given))
    except FvlightError as error:
        print(f"sample_prior: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
