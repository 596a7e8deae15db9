"""How much faster is a run that several processes share? One thread each, on one machine.

    python scripts/benchmark_scaling.py [--processes 1 2 4] [--units 32] [--lambdas 6] [--steps 200]

Diverse feature visualization of units of a small network with random weights (the CNN of V1, conv2), shared by
`trainer.strategy=problems_fork`. Measured is the time from the call of `fit` to its end, the start of the processes
and what they send to the first one included; the processes take turns over the rounds, and the medians are printed.
"Speed" is problems per second, "efficiency" speed over that of one process times their number, "CPU" the seconds that
all processes compute together: what sharing costs, also where others keep the machine busy. All end with the same
images, which is checked. More processes than idle cores can't be faster: the number of cores is printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarking import timed
from torch import Tensor

from fvlight.application import build_network, build_task
from fvlight.cli import configurations
from fvlight.training import fit


def configuration(given: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Of a run in which every problem takes all its steps."""
    return configurations([
        "network=v1_cnn", "network.weights=random", "layer=conv2", f"unit=[{','.join(map(str, range(given.units)))}]",
        "norm=10", f"lambda_grid.values=[{','.join(map(str, range(given.lambdas)))}]", "restarts=1", "describe=false",
        f"solver.max_steps={given.steps}", f"solver.patience={given.steps}", f"solver.at_once={given.at_once}",
        "trainer=cpu", f"trainer.devices={processes}", "trainer.strategy=problems_fork",
    ])[""]  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(given: argparse.Namespace, processes: int) -> tuple[float, float, Tensor]:
    """Seconds of a fit by so many processes, by the clock and of all together, and the parameters that it ends with."""
    config = configuration(given, processes)
    task = build_task(config, build_network(config))[0]
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(lambda: fit(config, task, Path(folder), None))
    return seconds, cpu_seconds() - before, task.raw.detach()


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """All that is printed and written, by the number of processes."""
    problems = given.units * given.lambdas
    times: dict[int, list[float]] = {processes: [] for processes in given.processes}
    cpu: dict[int, list[float]] = {processes: [] for processes in given.processes}
    ends: dict[int, Tensor] = {}
    for _ in range(given.rounds):
        for processes in given.processes:
            seconds, computed, ends[processes] = measure(given, processes)
            times[processes].append(seconds)
            cpu[processes].append(computed)
    first = given.processes[0]
    if not all(torch.equal(end, ends[first]) for end in ends.values()):
        raise SystemExit("the images depend on the number of processes")
    speed = {processes: problems / statistics.median(each) for processes, each in times.items()}
    return {
        "problems": problems, "cores": len(os.sched_getaffinity(0)), "seconds": times, "cpu": cpu, "speed": speed,
        "efficiency": {processes: speed[processes] * first / (speed[first] * processes) for processes in speed},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="efficiency is relative to the first")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--lambdas", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200, help="of a problem")
    parser.add_argument("--at-once", type=int, default=16, help="problems in the batch of a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
    result = compare(given)
    print(f"{result['problems']} problems of {given.steps} steps, {result['cores']} cores, torch {torch.__version__}")
    print(f"  {'processes':>10s}{'seconds':>10s}{'speed':>10s}{'efficiency':>12s}{'CPU':>10s}")
    for processes, speed in result["speed"].items():
        seconds, cpu = (statistics.median(result[name][processes]) for name in ("seconds", "cpu"))
        print(f"  {processes:10d}{seconds:10.2f}{speed:10.2f}{result['efficiency'][processes]:12.2f}{cpu:10.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
