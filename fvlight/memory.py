"""Memory of a loop that allocates the same large tensors again and again."""

from __future__ import annotations

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@functools.cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next allocation instead of giving it back to the kernel.

    A CPU solver step frees and allocates tens of MB; by default each large block is unmapped and mapped anew, and
    the kernel zeroes every page of it: a step of VGG-19 conv3_1 with 72 images took 30 ms instead of 23. The process
    then holds on to its peak memory until it ends. Returns whether it could be done (glibc on Linux only).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
