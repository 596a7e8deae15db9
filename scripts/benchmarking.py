"""What the benchmarks share: multiply-adds counted, and times measured side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(run: Callable[[], object]) -> float:
    """Of convolutions and matrix products, forward and backward; element-wise products are not counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def timed(run: Callable[[], object], times: int = 1, cpu_time: bool = False) -> float:
    """Seconds for each of several runs, by the clock or of the process alone."""
    clock = time.process_time if cpu_time else time.perf_counter
    began = clock()
    for _ in range(times):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - began) / times


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each in each round; a change of the machine's speed meets them all.

    Args:
        least: seconds; what takes less is repeated within a round, so that it is not measured with the caches that
            the one before it has left behind.
    """
    times = {name: [timed(run), timed(run)][1] for name, run in runs.items()}
    repeats = {name: max(1, math.ceil(least / seconds)) for name, seconds in times.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if repeats[name] > 1:
                run()
            found[name].append(timed(run, repeats[name]))
    return found
