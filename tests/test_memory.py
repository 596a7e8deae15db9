"""Freed memory is kept for the next allocation."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fvlight import memory

GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"

# A process without torch: page faults while the same 64 MB are allocated, written and freed four times.
FAULTS = """
import ctypes, importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("memory", sys.argv[1])
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
if sys.argv[2] == "keep":
    assert memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The answer is kept once it is known: forget it before and after."""
    memory.keep_freed_memory.cache_clear()
    yield
    memory.keep_freed_memory.cache_clear()


def faults(how: str) -> int:
    command = [sys.executable, "-I", "-c", FAULTS, memory.__file__, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(not GLIBC, reason="mallopt is glibc's")
def test_pages_are_not_mapped_anew() -> None:
    default, kept = faults("default"), faults("keep")
    # by default at least once per 2 MB (huge pages), most often once per 4 KB
    assert default >= 4 * 32
    assert kept < default / 10


@pytest.mark.parametrize(("system", "library"), [("Darwin", ("", "")), ("Windows", ("", "")), ("Linux", ("musl", "1"))])
def test_elsewhere_nothing_is_done(system: str, library: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("no library may be opened")

    monkeypatch.setattr(memory.platform, "system", lambda: system)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: library)
    monkeypatch.setattr(memory.ctypes, "CDLL", forbidden)
    assert memory.keep_freed_memory() is False


@pytest.mark.skipif(not GLIBC, reason="mallopt is glibc's")
def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def mallopt(*_: int) -> int:
            return 0

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Refusing)
    assert memory.keep_freed_memory() is False
