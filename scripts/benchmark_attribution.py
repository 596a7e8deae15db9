"""How fast is occlusion? Against the bare masked forward passes, and against captum; in one process.

    python scripts/benchmark_attribution.py --weights googlenet_bvlc.safetensors [--image FILE] [--boxes 32 8]

BVLC GoogLeNet, the largest logit, one image, a grey box. Two tables, in seconds for the whole map:

  1. in each number type, with the same number of images in a pass:
     bare       the masked images, prepared beforehand, through fvlight's network: nothing but these passes
     whole      `occlusion`, but every masked image runs as a whole
     occlusion  `occlusion`: the first layers run on crops around the box, see fvlight/attribution/masked.py
     "Ratio" is a way's time over bare's; `whole` is what masks, indices and heat cost, `occlusion` what the crops save.
  2. whole calls, with whatever each does first:
     captum     `captum.attr.Occlusion` as it is called by default: float32, one masked image in a pass
     fvlight    `occlusion`, in each number type
     "Ratio" is captum's time over a way's; how far the maps are from captum's is printed (both give a pixel the mean
     over the boxes that cover it).

Ratios are medians over the interleaved rounds. captum comes with ``pip install .[bench]``; without it a plain loop that
does the same work stands in, and the table says so. --cpu-time counts the process's own time, where others keep the
machine busy (with one thread). All run with `keep_freed_memory`, as tasks do.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from benchmarking import timed
from torch import Tensor

from fvlight.attribution.masked import MaskedRuns
from fvlight.attribution.occlusion import MANY_PIXELS, PIXELS, occlusion
from fvlight.images import read_image
from fvlight.memory import keep_freed_memory
from fvlight.network import Network
from fvlight.pictures import fitted
from fvlight.zoo import load_network

NETWORK = "googlenet_bvlc"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Box = tuple[int, int]  # size and stride


def grey(network: Network, image: Tensor) -> Tensor:
    """(1, C, 1, 1): what `occlusion` with fill="grey" shows."""
    return network.input_space.from_rgb(image.new_full((1, 3, 1, 1), 0.5))


def masked(network: Network, image: Tensor, box: Box) -> Tensor:
    """(boxes, C, H, W): image (1, C, H, W) with one box covered in each."""
    size, stride = box
    height, width = image.shape[2:]
    tops, lefts = ([*range(0, total - size, stride), total - size] for total in (height, width))
    images = image.repeat(len(tops) * len(lefts), 1, 1, 1)
    for number, one in enumerate(images):
        top, left = tops[number // len(lefts)], lefts[number % len(lefts)]
        one[:, top : top + size, left : left + size] = grey(network, image)[0]
    return images


def by_captum(network: Network, image: Tensor, box: Box, unit: int) -> Callable[[], Tensor]:
    """captum's default call, to the map (H, W); raises ImportError."""
    from captum.attr import Occlusion

    size, stride = box
    window = (image.shape[1], size, size)
    baseline = grey(network, image).expand_as(image)

    def run() -> Tensor:
        explainer = Occlusion(network.module)
        return explainer.attribute(image, window, (1, stride, stride), baseline, target=unit)[0, 0]

    return run


def by_a_plain_loop(network: Network, image: Tensor, box: Box, unit: int) -> Callable[[], Tensor]:
    """The same work: a full-size mask for each box, one masked image in a pass, float32."""
    size, stride = box
    baseline = grey(network, image)

    def run() -> Tensor:
        before, heat, count = network.module(image)[0, unit], *torch.zeros(2, *image.shape[2:], device=image.device)
        for top in range(0, image.shape[2] - size + stride, stride):
            for left in range(0, image.shape[3] - size + stride, stride):
                mask = torch.zeros_like(image)
                mask[:, :, top : top + size, left : left + size] = 1
                drop = before - network.module(image * (1 - mask) + baseline * mask)[0, unit]
                heat, count = heat + drop * mask[0, 0], count + mask[0, 0]
        return heat / count

    return run


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, cpu_time: bool) -> dict[str, list[float]]:
    """Seconds of each in each round; a change of the machine's speed meets them all."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(timed(run, cpu_time=cpu_time))
    return found


def ratio(of: list[float], over: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, over, strict=True))


def against_bare(network: Network, image: Tensor, dtype: str, given: argparse.Namespace) -> dict[str, object]:
    """Table 1 in one number type."""
    pixels = PIXELS.get(image.device.type, MANY_PIXELS)
    at_once = given.at_once or max(1, pixels // (image.shape[2] * image.shape[3]))
    kind, box = DTYPES[dtype], tuple(given.boxes)
    runs = MaskedRuns(network, None, image, kind)
    images = masked(network, image, box).to(kind).contiguous(memory_format=torch.channels_last).split(at_once)

    def bare() -> list[Tensor]:
        return [runs(batch) for batch in images]

    def ours() -> Tensor:
        return occlusion(network, image, sizes=box, fill="grey", dtype=kind, at_once=at_once)

    def whole() -> Tensor:
        with patch.object(MaskedRuns, "cut", lambda self, box: None):
            return ours()

    ways: dict[str, Callable[[], object]] = {"bare": bare, "whole": whole, "occlusion": ours}
    runs(images[0])
    seconds = interleaved(ways, given.rounds, given.cpu_time)
    return {
        "dtype": dtype, "boxes": sum(map(len, images)), "at_once": at_once,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "ratio": {name: ratio(each, seconds["bare"]) for name, each in seconds.items()},
    }  # fmt: skip


def against_captum(network: Network, image: Tensor, given: argparse.Namespace) -> dict[str, object]:
    """Table 2."""
    box, unit = tuple(given.boxes), int(network.module(image).argmax())
    try:
        name, theirs = "captum", by_captum(network, image, box, unit)
    except ImportError:
        name, theirs = "plain loop", by_a_plain_loop(network, image, box, unit)
    maps: dict[str, Tensor] = {}

    def kept(name: str, run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: maps.update({name: run()})

    ways = {name: kept(name, theirs)}
    for kind in given.dtypes:
        for fill in ("grey", "random"):
            options = {"sizes": box, "fill": fill, "dtype": DTYPES[kind]}
            ways[f"{kind}, {fill}"] = kept(f"{kind}, {fill}", lambda o=options: occlusion(network, image, **o)[0])  # type: ignore[misc]
    seconds = interleaved(ways, given.rounds, given.cpu_time)
    reference = maps[name].float()
    return {
        "reference": name, "unit": unit,
        "seconds": {way: statistics.median(each) for way, each in seconds.items()},
        "ratio": {way: ratio(seconds[name], each) for way, each in seconds.items()},
        "difference": {
            way: float((its - reference).norm() / reference.norm()) for way, its in maps.items() if "random" not in way
        },
    }  # fmt: skip


def show(bare: list[dict], captum: dict, given: argparse.Namespace) -> None:
    """Both tables."""
    size, stride = given.boxes
    print(f"\n1. bare masked forward passes; boxes of {size} every {stride}, {given.size} pixels")
    print(f"  {'':22s}{'in a pass':>10s}{'seconds':>10s}{'ratio':>8s}")
    for result in bare:
        for name, seconds in result["seconds"].items():
            way = f"{result['dtype']}, {name}"
            print(f"  {way:22s}{result['at_once']:10d}{seconds:10.2f}{result['ratio'][name]:8.2f}")
    print(f"\n2. {captum['reference']}'s default call; unit {captum['unit']}")
    if captum["reference"] != "captum":
        print("  (captum is not installed: a plain loop with the same work stands in)")
    print(f"  {'':22s}{'seconds':>10s}{'ratio':>8s}{'difference':>12s}")
    for name, seconds in captum["seconds"].items():
        far = f"{captum['difference'][name]:12.1e}" if name in captum["difference"] else ""
        print(f"  {name:22s}{seconds:10.2f}{captum['ratio'][name]:8.2f}{far}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="default", help="BVLC GoogLeNet's, or `random`")
    parser.add_argument("--image", type=Path, help="a photograph (default: noise)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--boxes", type=int, nargs=2, default=[32, 8], metavar=("SIZE", "STRIDE"))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--at-once", type=int, help="masked images in a pass of fvlight (default: its own choice)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of the process, in place of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    network = load_network(NETWORK, given.weights)
    network.module.to(given.device).eval()
    shape = (given.size, given.size)
    rgb = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    if given.image is not None:
        rgb = fitted(given.image.name, read_image(given.image), shape)
    image = network.input_space.from_rgb(rgb)[None].to(given.device)
    print(f"{given.threads} threads, torch {torch.__version__}; medians of {given.rounds} rounds")
    with torch.no_grad():
        bare = [against_bare(network, image, dtype, given) for dtype in given.dtypes]
        captum = against_captum(network, image, given)
    show(bare, captum, given)
    if given.json is not None:
        figures = {"threads": given.threads, "size": given.size, "boxes": given.boxes, "bare": bare, "captum": captum}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
