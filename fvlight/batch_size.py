"""How many problems are solved at once: as many as are of use, and as fit into the memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

SAFE = 0.8  # of the free memory is used
GAIN = 1.05  # a larger batch has to be so many times as fast, per member
REPEATS = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the CPU: torch has a class of its own only for the first."""
    words = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate")
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had: on the GPU, or here, where a control group may allow less than the machine has."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    found = [math.inf]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024.0 * int(line.split()[1]))
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        found.append(float(int(limit) - int(used)))
    return min(found)


class PeakMemory:
    """How many more bytes than at its making the process, or GPU, has had since the last `reset`; None if unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._base = self._now("VmRSS")

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM

    def read(self) -> float | None:
        base, peak = self._base, self._now("VmHWM")
        return None if base is None or peak is None else max(peak - base, 0.0)

    def _now(self, key: str) -> float | None:
        if self.device.type == "cuda":
            read = torch.cuda.memory_allocated if key == "VmRSS" else torch.cuda.max_memory_allocated
            return float(read(self.device))
        for line in _read("/proc/self/status").splitlines():
            if line.startswith(f"{key}:"):
                return 1024.0 * int(line.split()[1])
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def best_batch(run: Callable[[int], object], most: int, device: torch.device) -> int:
    """The smallest batch that is nearly as fast, per member, as any that fits: measured, by doubling.

    Args:
        run: computes once with so many members.
        most: no larger batch is of use.

    Raises:
        MemoryError: not even one fits.
    """
    peak, free = PeakMemory(device), free_memory(device)
    rates: dict[int, float] = {}
    size, tired = 1, 0
    while tired < 2:
        peak.reset()
        seconds = _seconds(run, size, device)
        if seconds is None:
            break
        tired = 0 if size / seconds >= GAIN * max(rates.values(), default=0) else tired + 1
        rates[size] = size / seconds
        following = min(2 * size, most)
        if following == size or (peak.read() or 0) * following / size > SAFE * free:
            break
        size = following
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not rates:
        raise MemoryError("out of memory with a batch of one")
    return min(size for size, rate in rates.items() if rate * GAIN >= max(rates.values()))


def _seconds(run: Callable[[int], object], size: int, device: torch.device) -> float | None:
    """Of the fastest of a few runs, after one to get ready; None where there is too little memory."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        try:
            run(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
