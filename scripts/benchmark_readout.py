"""What does a windowed readout save? Multiply-adds and seconds, against padded maps and a hook; in one process.

    python scripts/benchmark_readout.py [--networks vgg19 resnet50_v1 googlenet_bvlc] [--batch 256] [--json FILE]

One unit per image is read and differentiated with respect to the image, for a batch of images:

  windowed  `Readout(network, layer)` on images of the receptive field's size
  padded    the plain module with its padding on the same images, left after the layer; the unit in the map's middle
  whole     the plain module run to its end on images of its own size, the layer kept by a hook; the unit in the middle

All figures are per unit. The large images come 32 at a time (their arithmetic fills the machine, and of more the memory
would not hold the maps); the small ones in a larger batch, the same for both ways.

The plain modules are in evaluation mode, their weights need no gradients. Multiply-adds are those of the layers'
formulae, forward and backward: what fvlight does beyond them to go faster is not counted in its favour. "Efficiency"
is the ratio of seconds over the ratio of multiply-adds: at 100 % the windowed readout does as many multiply-adds per
second as the other.

The rounds are interleaved, so that a change of the machine's speed meets all of them; ratios are taken round by round
and their medians printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarking import interleaved, multiply_adds
from torch import Tensor, nn

from fvlight import Network, Readout
from fvlight.memory import keep_freed_memory
from fvlight.zoo import load_network

LAYERS = {"vgg19": "conv3_1", "resnet50_v1": "conv2_3", "googlenet_bvlc": "inception4a"}
OPTIONS = {"vgg19": {"padding": True}}  # as it was published
BATCH = {"vgg19": 256, "resnet50_v1": 256, "googlenet_bvlc": 32}  # images of the receptive field's size
WHOLE_BATCH = 32  # images that the whole network takes
LEAST = 0.3  # seconds of one measurement
WHOLE = 224  # pixels of the images that all three networks are made for
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Enough(Exception):
    """The layer has been read."""


def hooked(module: nn.Module, path: str, images: Tensor, units: Tensor, leave: bool) -> Tensor:
    """The sum of one unit per image in the middle of the layer's map, as one reads it without fvlight."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output)
        if leave:
            raise _Enough

    handle = module.get_submodule(path).register_forward_hook(keep)
    try:
        module(images)
    except _Enough:
        pass
    finally:
        handle.remove()
    (value,) = found
    return value[torch.arange(len(images)), units, value.shape[2] // 2, value.shape[3] // 2].sum()


def with_gradient(read: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """Forward and backward on the same images again and again."""

    def run() -> Tensor:
        x = images.detach().requires_grad_()
        read(x).backward()  # (`autograd.grad` does not work under torch's counter of multiply-adds)
        assert x.grad is not None
        return x.grad

    return run


def variants(
    network: Network, layer: str, batch: int, dtype: torch.dtype, whole_batch: int
) -> dict[str, Callable[[], Tensor]]:
    """The three ways to read one unit per image, each with its gradient."""
    readout, path = Readout(network, layer), network.resolve(layer)
    generator = torch.Generator().manual_seed(0)
    small = 50 * torch.randn(batch, 3, *readout.image_size, generator=generator)
    large = 50 * torch.randn(whole_batch, 3, WHOLE, WHOLE, generator=generator).to(dtype)
    with torch.no_grad():
        count = readout(small[:1]).shape[1]  # type: ignore[union-attr]
    units, others = (torch.randint(count, (n,), generator=generator) for n in (batch, whole_batch))
    module = network.module.eval().requires_grad_(False).to(dtype)
    plain = small.to(dtype)
    return {
        "windowed": with_gradient(lambda x: readout(x, units, dtype=dtype).sum(), small),  # type: ignore[union-attr]
        "padded": with_gradient(lambda x: hooked(module, path, x, units, leave=True), plain),
        "whole": with_gradient(lambda x: hooked(module, path, x, others, leave=False), large),
    }


def counted(network: Network, layer: str, batch: int = 1) -> dict[str, float]:
    """Multiply-adds of each way, for so many units.

    Those of the window are the formula's: its gradient costs what its forward pass does.

    (fvlight's own backward kernels compute some products with zeros, because they are faster so. The last layer's row
    that belongs to each image's unit is a product of vectors, less than a thousandth, and not counted.)
    """
    runs = variants(network, layer, batch, torch.float32, batch)
    counts = {name: multiply_adds(runs[name]) for name in ("padded", "whole")}
    readout = Readout(network, layer)
    with torch.no_grad():
        images, units = torch.zeros(batch, 3, *readout.image_size), torch.zeros(batch, dtype=torch.int64)
        counts["windowed"] = 2 * multiply_adds(lambda: readout(images, units))
    return counts


def compare(name: str, batch: int, whole_batch: int, repeats: int, dtype: str, weights: str) -> dict[str, object]:
    """One network in one number type: all that is printed and written; multiply-adds and seconds per unit."""
    layer = LAYERS[name]

    def build() -> Network:
        return load_network(name, weights, **OPTIONS.get(name, {}))

    counts = counted(build(), layer)
    batches = {"windowed": batch, "padded": batch, "whole": whole_batch}
    result: dict[str, object] = {
        "network": name, "layer": layer, "dtype": dtype, "batch": batches,
        "multiply_adds": counts, "seconds": {}, "time_ratio": {}, "efficiency": {}, "failed": {},
    }  # fmt: skip
    runs = variants(build(), layer, batch, DTYPES[dtype], whole_batch)
    failed = {variant: why for variant, run in runs.items() if (why := failure(run))}
    times = interleaved({variant: run for variant, run in runs.items() if variant not in failed}, repeats, LEAST)
    times = {variant: [value / batches[variant] for value in values] for variant, values in times.items()}
    result["failed"] = failed
    result["seconds"] = {variant: statistics.median(values) for variant, values in times.items()}
    for variant in (v for v in ("padded", "whole") if v in times and "windowed" in times):
        ratios = [a / b for a, b in zip(times[variant], times["windowed"], strict=True)]
        result["time_ratio"][variant] = statistics.median(ratios)  # type: ignore[index]
        efficiency = statistics.median(ratios) * counts["windowed"] / counts[variant]
        result["efficiency"][variant] = efficiency  # type: ignore[index]
    return result


def failure(run: Callable[[], object]) -> str:
    """What a way says that does not work in this number type here (some kernels lack bfloat16), else ""."""
    try:
        run()
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return ""


def show(result: dict) -> None:
    """One table."""
    print(f"\n{result['network']} {result['layer']}, {result['dtype']}, per unit")
    headings = {"": -10, "batch": 6, "10^6 mult-adds": 15, "ms": 10, "ratio": 10, "time ratio": 12, "efficiency": 12}
    print("  " + "".join(f"{heading:>{width}s}" if width > 0 else " " * -width for heading, width in headings.items()))
    for variant in ("windowed", "padded", "whole"):
        count = result["multiply_adds"][variant]
        line = f"  {variant:10s}{result['batch'][variant]:6d}{count / 1e6:15.1f}"
        if variant in result["failed"]:
            print(f"{line}  {result['failed'][variant]}")
            continue
        line += f"{1000 * result['seconds'][variant]:10.3f}{count / result['multiply_adds']['windowed']:10.2f}"
        if variant in result["time_ratio"]:
            line += f"{result['time_ratio'][variant]:12.2f}{100 * result['efficiency'][variant]:11.0f} %"
        print(line)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batch", type=int, help=f"small images at a time (default: {BATCH})")
    parser.add_argument("--whole-batch", type=int, default=WHOLE_BATCH, help="large images at a time")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", default="random", choices=["random", "default"], help="see `load_network`")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # for all of them, as tasks do
    print(f"{given.threads} threads, torch {torch.__version__}; medians of {given.repeats} rounds")
    results = []
    for name in given.networks:
        for dtype in given.dtypes:
            batch = given.batch or BATCH[name]
            results.append(compare(name, batch, given.whole_batch, given.repeats, dtype, given.weights))
            show(results[-1])
    if given.json is not None:
        given.json.write_text(json.dumps({"threads": given.threads, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
