"""What does a run cost beyond its arithmetic? Against a bare torch loop, per inner step; in one process.

    python scripts/benchmark_overhead.py [--units 1] [--images 6] [--rounds 7] [--steps 1000]

Diverse feature visualization of units of a small network with random weights (the CNN of V1, conv2), on which a step
costs about 2 ms. Compared are, in milliseconds per inner step of the whole batch:

  bare      the task's `evaluate`, torch.autograd.grad, Adam and the stopping rule in a plain loop, written out: a call
            of torch.optim.Adam costs more than its arithmetic
  block     `solve_block`: the same with masks for problems that stop on their own, no Lightning
  fit       the run itself, as the command starts it: progress bar on a terminal, CSV logger, checkpoints; from
            `on_train_start` to `on_train_end`, the last checkpoint included

The rounds are interleaved; times and ratios are medians over them, and "best" is the ratio of the fastest rounds, which
says more where others keep the machine busy. All end with the same images: how far they are from the bare loop's stands
beside. Checkpoints are saved more often than by default (every 20 s) since a round is
short. --cpu-time counts the process's own time, where others keep the machine busy (with one thread).
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import timed
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from fvlight.application import build_network, build_task
from fvlight.cli import configurations
from fvlight.memory import keep_freed_memory
from fvlight.solvers import Block, Status, solve_block
from fvlight.tasks import DiverseTask
from fvlight.training import fit

NAMES = ("bare", "block", "fit")


class Terminal(io.StringIO):
    """Takes the progress bar as a terminal does."""

    def isatty(self) -> bool:
        return True


def configuration(given: argparse.Namespace) -> dict[str, Any]:
    """Of a run with two problems per unit, all in the batch, that takes all its steps."""
    return configurations([
        "network=v1_cnn", "network.weights=random", "layer=conv2", f"unit=[{','.join(map(str, range(given.units)))}]",
        "norm=10", "lambda_grid.values=[0,1]", "restarts=1", f"images_per_problem={given.images}", "describe=false",
        "convention=paper", f"solver.max_steps={given.steps}", f"solver.patience={given.steps}",
        f"solver.inner_steps={given.inner_steps}", f"checkpoint_seconds={given.checkpoint_seconds}", "trainer=cpu",
    ])[""]  # fmt: skip


def bare(task: DiverseTask, raw: Tensor, rows: Tensor, steps: int) -> Tensor:
    """The parameters after so many steps, each of them as one would write it first."""
    adam, patience = task.adam, task.patience
    (beta1, beta2), parameter = adam.betas, raw.clone()
    first, second = torch.zeros_like(raw), torch.zeros_like(raw)
    average, best, since = None, torch.full((len(raw),), torch.inf), torch.zeros(len(raw))
    for step in range(1, steps + 1):
        parameter.requires_grad_()
        score = task.evaluate(parameter, rows, None).score
        (gradient,) = torch.autograd.grad(-score.sum(), parameter)
        parameter, loss = parameter.detach(), -score.detach()
        average = loss if average is None else patience.decay * average + (1 - patience.decay) * loss
        since = torch.where(average < best, 0, since + 1)
        best = torch.minimum(average, best)
        if (since > patience.patience).all():
            break
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second.sqrt() / math.sqrt(1 - beta2**step)).add_(adam.eps)
        parameter.addcdiv_(first, denominator, value=-adam.lr / (1 - beta1**step))
    return parameter


def block(task: DiverseTask, raw: Tensor, rows: Tensor, steps: int, inner_steps: int) -> Tensor:
    """The same by `solve_block`, in blocks of the run's size."""
    state = Block(
        raw=raw.clone(), first=torch.zeros_like(raw), second=torch.zeros_like(raw),
        steps=torch.zeros(len(raw), dtype=torch.int64), stopping=task.patience.start(len(raw)),
        status=torch.full((len(raw),), int(Status.ACTIVE)),
    )  # fmt: skip
    for _ in range(steps // inner_steps):
        solve_block(lambda raw: task.evaluate(raw, rows, None), state, task.adam, task.patience, inner_steps)
    return state.raw


def run(config: dict[str, Any], task: DiverseTask, seconds: list[float], clock: Callable[[], float]) -> Tensor:
    """The same as a run, whose time is added to ``seconds``; the task is used up."""
    ends, last = [], task.on_train_end

    def ended() -> None:
        ends.append(clock())
        last()

    task.on_train_start = lambda: ends.append(clock())  # type: ignore[method-assign]
    task.on_train_end = ended  # type: ignore[method-assign]
    terminal, sys.stderr = sys.stderr, Terminal()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, task, Path(folder), CSVLogger(folder, name="logs"))
    finally:
        sys.stderr = terminal
    seconds.append(ends[1] - ends[0])
    return task.raw.detach()


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """All that is printed and written; milliseconds per step."""
    config = configuration(given)
    network = build_network(config)

    def fresh() -> DiverseTask:
        return build_task(config, network)[0]

    clock = time.process_time if given.cpu_time else time.perf_counter
    task = fresh()
    rows = torch.arange(len(task.pool))
    raw = task.start(rows)
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    ends: dict[str, Tensor] = {}

    def measure(name: str, solve: Callable[[], Tensor]) -> None:
        times[name].append(timed(lambda: ends.update({name: solve()}), cpu_time=given.cpu_time))

    for _ in range(given.rounds + 1):  # the first warms up
        measure("bare", lambda: bare(task, raw, rows, given.steps))
        measure("block", lambda: block(task, raw, rows, given.steps, given.inner_steps))
        ends["fit"] = run(config, fresh(), times["fit"], clock)
    kept = {name: [1000 * value / given.steps for value in each[1:]] for name, each in times.items()}
    return {
        "milliseconds": {name: statistics.median(each) for name, each in kept.items()},
        "ratio": {
            name: statistics.median(one / plain for one, plain in zip(kept[name], kept["bare"], strict=True))
            for name in NAMES
        },
        "best": {name: min(each) / min(kept["bare"]) for name, each in kept.items()},
        "difference": {name: float((ends[name] - ends["bare"]).norm() / ends["bare"].norm()) for name in NAMES},
        "rounds": kept,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1, help="two problems each, all in the batch")
    parser.add_argument("--images", type=int, default=6, help="per problem")
    parser.add_argument("--steps", type=int, default=1000, help="of a round")
    parser.add_argument("--inner-steps", type=int, default=25, help="of a block")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint-seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of the process, in place of the clock's")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    result = compare(given)
    print(f"{given.threads} threads, torch {torch.__version__}; {given.rounds} rounds of {given.steps} steps")
    print(f"  {'':8s}{'ms/step':>10s}{'ratio':>8s}{'best':>8s}{'difference':>12s}")
    for name in NAMES:
        shown = f"{result['milliseconds'][name]:10.3f}{result['ratio'][name]:8.3f}{result['best'][name]:8.3f}"
        print(f"  {name:8s}{shown}{result['difference'][name]:12.1e}")
    if given.json is not None:
        given.json.write_text(json.dumps({"threads": given.threads, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
