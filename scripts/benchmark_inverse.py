"""How fast are Jacobians? Against one backward call per feature, and against the bare backward passes; in one process.

    python scripts/benchmark_inverse.py --weights googlenet_bvlc.safetensors [--sizes 224 112] [--features 512]

BVLC GoogLeNet, inception4c, max pooling 3/2 and mean, pixels through a sigmoid. Compared, in milliseconds per feature:

  fvlight   `jacobians` as the task calls it: forward and backward passes, and J J^T in float64
  gram      J J^T alone
  single    the plain module with a hook at the layer, one graph, one backward call per feature
  chunked   the plain module again, so many features per backward pass, of the best chunk size that fits
  passes    fvlight's readout, so many features per backward pass, of the best chunk size: nothing but these passes

`single`, `chunked` and `passes` leave their forward pass out, are timed on some features only and stand for all of them
(a pass costs the same for any feature). The chunk sizes are those given, as far as they fit the memory; the best one is
found first. "Ratio" is a way's time over fvlight's, "of J" over fvlight's less J J^T, which the others don't compute;
both are medians over the interleaved rounds.

--dtypes bfloat16 computes fvlight's network in bf16 (parameters and J stay float32); how far its J and its predictions
are from float32's is printed. The plain module stays in float32: torch's local response normalisation knows no bf16.
--cpu-time counts the process's own time, where others keep the machine busy (with one thread). All run with
`keep_freed_memory`, as tasks do; --default-allocator leaves glibc as it is, as for a script without fvlight.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from benchmarking import timed
from torch import Tensor, nn

from fvlight.aggregation import Aggregation
from fvlight.analysis.inverse import angles, predict
from fvlight.analysis.jacobians import Jacobians, gram_of, jacobians
from fvlight.memory import keep_freed_memory
from fvlight.parameterizations import SigmoidPixels
from fvlight.response import Response
from fvlight.zoo import load_network

NETWORK, LAYER = "googlenet_bvlc", "inception4c"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLE = 16  # features that stand for all, one backward call each
Respond = Callable[[Tensor], Tensor]


class _Enough(Exception):
    """The layer has been read."""


def plain(response: Response) -> Respond:
    """The same response by the module itself, as one reads a layer without fvlight."""
    module = response.network.module.eval().requires_grad_(False)

    def respond(u: Tensor) -> Tensor:
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found.append(output)
            raise _Enough

        handle = module.get_submodule(response.network.resolve(response.layer)).register_forward_hook(keep)
        try:
            module(response.parameterization(u))
        except _Enough:
            pass
        finally:
            handle.remove()
        return response.aggregation(found[0])

    return respond


def passes(respond: Respond, u: Tensor, chunk: int, features: list[int]) -> Callable[[], Tensor]:
    """Backward passes for these features on one graph, ``chunk`` of them in each; gives their rows of J."""
    x = u.detach().repeat_interleave(chunk, 0).requires_grad_()
    y = respond(x)
    groups = [features[first : first + chunk] for first in range(0, len(features), chunk)]
    cotangents = []
    for group in groups:
        cotangents.append(torch.zeros_like(y))
        cotangents[-1][torch.arange(len(group)), group] = 1

    def run() -> Tensor:
        rows = [torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in cotangents]
        return torch.cat([part[: len(group)].flatten(1) for part, group in zip(rows, groups, strict=True)])

    return run


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, cpu_time: bool) -> dict[str, list[float]]:
    """Seconds of each in each round; a change of the machine's speed meets them all.

    What is short is run once more before: not with the caches, nor with the heap, that the one before it has left.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if name != "fvlight":
                run()
            found[name].append(timed(run, cpu_time=cpu_time))
    return found


def best_chunk(
    respond: Respond, u: Tensor, features: int, chunks: list[int], cpu_time: bool
) -> tuple[int, dict[int, float]]:
    """The fastest chunk size, and milliseconds per feature of each that fits (best of three)."""
    found: dict[int, float] = {}
    for chunk in sorted(chunk for chunk in chunks if chunk <= features):
        try:
            run = passes(respond, u, chunk, list(range(chunk)))
            run()
            found[chunk] = 1000 * min(timed(run, cpu_time=cpu_time) for _ in range(3)) / chunk
        except RuntimeError as error:  # (also what CUDA says when its memory is full)
            if "memory" not in str(error):
                raise
            break
    return min(found, key=lambda chunk: found[chunk]), found


def compare(response: Response, dtype: str, given: argparse.Namespace) -> dict[str, object]:
    """One image size in one number type: all that is printed and written; milliseconds per feature."""
    n = response.features
    u = torch.randn(1, *response.parameterization.shape, generator=torch.Generator().manual_seed(0)).to(given.device)
    ours: Respond = functools.partial(response, dtype=DTYPES[dtype])
    theirs = plain(response)
    sample = torch.linspace(0, n - 1, min(SAMPLE, n)).long().tolist()
    result: dict[str, object] = {"size": u.shape[-1], "features": n, "dtype": dtype}
    chunks, per_chunk = {}, {}
    runs: dict[str, Callable[[], object]] = {}
    for name, respond in (("chunked", theirs), ("passes", ours)):
        chunks[name], per_chunk[name] = best_chunk(respond, u, n, given.chunks, given.cpu_time)
        runs[name] = passes(respond, u, chunks[name], list(range(chunks[name])))
    runs["single"] = single = passes(theirs, u, 1, sample)
    at_once = given.at_once or chunks["passes"]
    kept = jacobians(ours, u, at_once=at_once, keep=True)
    assert kept.rows is not None
    every, some = kept.rows[0], kept.rows[0, sample]
    runs["gram"] = lambda: gram_of(every)
    runs["fvlight"] = lambda: jacobians(ours, u, at_once=at_once)
    count = {"single": len(sample), "gram": n, "fvlight": n, **chunks}
    seconds = interleaved(runs, given.repeats, given.cpu_time)
    times = {name: [1000 * value / count[name] for value in each] for name, each in seconds.items()}
    others = ("single", "chunked", "passes")

    def ratio(name: str, less: str | None) -> float:
        left = [0.0] * given.repeats if less is None else times[less]
        rounds = zip(times[name], times["fvlight"], left, strict=True)
        return statistics.median(way / (own - gram) for way, own, gram in rounds)

    return result | {
        "at_once": at_once, "chunk": chunks, "milliseconds_of_chunks": per_chunk,
        "milliseconds": {name: statistics.median(each) for name, each in times.items()},
        "ratio": {name: ratio(name, None) for name in others},
        "ratio_of_jacobian": {name: ratio(name, "gram") for name in others},
        "difference": float((some - single()).norm() / some.norm()),
        **(error_of(kept, response, u) if dtype != "float32" else {}),
    }  # fmt: skip


def error_of(narrow: Jacobians, response: Response, u: Tensor) -> dict[str, float]:
    """Of a Jacobian in a narrow number type: relative to float32's, and degrees between the two predictions (k = 2)."""
    wide = jacobians(response, u, keep=True)
    assert narrow.rows is not None
    assert wide.rows is not None
    objectives = [predict(found.gram, found.response, 2).objective for found in (narrow, wide)]
    return {
        "error": float((narrow.rows - wide.rows).norm() / wide.rows.norm()),
        "degrees": float(angles(*objectives, unsigned=True)),
    }


def show(result: dict) -> None:
    """One table."""
    print(f"\n{NETWORK} {LAYER}, {result['size']} pixels, {result['features']} features, {result['dtype']}")
    print(f"  {'':10s}{'rows a pass':>12s}{'ms/feature':>12s}{'ratio':>8s}{'of J':>8s}")
    rows = {"fvlight": result["at_once"], "gram": "", "single": 1, **result["chunk"]}
    for name, count in rows.items():
        ratios = [result[key][name] for key in ("ratio", "ratio_of_jacobian") if name in result[key]]
        shown = "".join(f"{ratio:8.2f}" for ratio in ratios)
        print(f"  {name:10s}{count!s:>12s}{result['milliseconds'][name]:12.2f}{shown}")
    print(f"  rows of J, fvlight against the plain module: relative difference {result['difference']:.1e}")
    if "error" in result:
        print(f"  against float32: J {result['error']:.1e}, prediction {result['degrees']:.2f} degrees")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="random", help="see `load_network`")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 112], help="pixels of the image's side")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--chunks", nargs="+", type=int, default=[4, 8, 16, 32], help="rows a pass to choose from")
    parser.add_argument("--at-once", type=int, help="of fvlight (default: the best of --chunks)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of the process, in place of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc's settings alone")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if not given.default_allocator:
        keep_freed_memory()
    print(f"{given.threads} threads, torch {torch.__version__}; medians of {given.repeats} rounds")
    results = []
    for size in given.sizes:
        for dtype in given.dtypes:
            network = load_network(NETWORK, given.weights)
            network.module.to(given.device)
            phi = SigmoidPixels(network.input_space, (size, size))
            response = Response(network, LAYER, phi, Aggregation("max_mean", 3, 2, given.features))
            results.append(compare(response, dtype, given))
            show(results[-1])
    if given.json is not None:
        given.json.write_text(json.dumps({"threads": given.threads, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
