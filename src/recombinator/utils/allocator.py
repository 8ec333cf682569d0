"""How the C library hands memory back to the system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Keep what is freed for the next allocation, for the whole process.

    By default glibc maps every large block again, and the kernel clears its pages at first use. A training step
    allocates the same large blocks again and again, so that keeping them makes it faster. Does nothing with another C
    library. For the command line only: a library leaves this to the program that uses it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_TOP_PAD, 256 << 20)
