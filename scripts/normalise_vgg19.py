"""Gatys' normalisation of VGG-19: scale every filter to a mean activation of 1 on photographs.

    python scripts/normalise_vgg19.py --weights FILE|default [--bgr] --images FOLDER --out FILE.safetensors

The means are those of the network as published, with padding, over all positions of all photographs (see
`fvlight.zoo.normalisation`). Some filters answer to the padded border most: without padding, the factors of conv3_1
correlate with those of the published normalised weights by 0.89 instead of 0.98 (logarithms, 706 photographs).

A weights file that ends early gives a normalised file that ends where it does. To have the result loaded as
network=vgg19_normalised with weights=default, write it to vgg19_normalised.safetensors in $FVLIGHT_WEIGHTS or
~/.cache/fvlight/weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn

from fvlight import FvlightError, Network
from fvlight.images import list_images, read_image
from fvlight.results import write_atomically
from fvlight.zoo import load_network
from fvlight.zoo.normalisation import normalise

SMALLEST = 16  # pixels: the four poolings leave one position


def loaded_part(network: Network) -> nn.Sequential:
    """The layers before the first one for which the weights file had nothing."""
    assert isinstance(network.module, nn.Sequential)
    missing = {name.rpartition(".")[0] for name in network.unloaded}
    names = [name for name, _ in network.module.named_children()]
    end = next((place for place, name in enumerate(names) if name in missing), len(names))
    return network.module[:end]


def photographs(network: Network, paths: Iterable[Path]) -> Iterator[Tensor]:
    """The photographs in the network's input space, one at a time, (1, 3, H, W)."""
    for path in paths:
        image = read_image(path)
        if min(image.shape[1:]) < SMALLEST:
            raise FvlightError(f"{str(path)!r} is smaller than {SMALLEST} pixels: take it out of the folder")
        yield network.input_space.from_rgb(image[None])


def write(module: nn.Sequential, network: Network, out: Path) -> None:
    """The weights with ``preproc.*``, which tells the colour order and the mean."""
    preproc = {"weight": 255 * torch.eye(3)[:, :, None, None], "bias": -torch.tensor(network.input_space.mean)}
    tensors = module.state_dict() | {f"preproc.{name}": value for name, value in preproc.items()}
    try:
        write_atomically(out, lambda path: path.write_bytes(save(tensors)))
    except FvlightError as error:
        raise FvlightError(f"{str(out)!r} can't be written ({error.__cause__}): choose another --out") from error


def run(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix != ".safetensors":
        raise FvlightError(f"--out {str(arguments.out)!r} is not a .safetensors file")
    if not arguments.out.absolute().parent.is_dir():  # better told now than after the photographs
        raise FvlightError(f"--out {str(arguments.out)!r}: there is no such folder")
    paths = list_images(arguments.images)
    network = load_network("vgg19", arguments.weights, padding=True, bgr=arguments.bgr)
    with Progress(console=Console(stderr=True)) as progress:
        images = photographs(network, progress.track(paths, description="mean activations"))
        module = normalise(loaded_part(network), images, keep_silent=arguments.keep_silent)
    write(module, network, arguments.out)
    last = [name for name, part in module.named_children() if isinstance(part, nn.Conv2d)][-1]
    print(f"{arguments.out}: conv1_1 to {last}, from {len(paths)} photographs")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="plain VGG-19: a file, or default (torchvision's)")
    parser.add_argument("--bgr", action="store_true", help="the file's first convolution takes blue, green, red")
    parser.add_argument("--images", required=True, type=Path, help="folder of photographs")
    parser.add_argument("--out", required=True, type=Path, help="file to write, .safetensors")
    parser.add_argument(
        "--keep-silent", action="store_true", help="leave filters that no photograph drives as they are"
    )
    try:
        run(parser.parse_args(given))
    except FvlightError as error:
        print(f"normalise_vgg19: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
