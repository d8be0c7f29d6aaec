"""How the processes that load images are started, and how they keep their memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import sys

# Options of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def start_method() -> str:
    """The start method that the program has chosen; else `fork` on Linux, where it is quick and safe here.

    Batches do not depend on it. macOS has `fork`, but its libraries do not survive one; Windows has `spawn`
    only.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or ("fork" if sys.platform == "linux" else "spawn")


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of returning it to the system; glibc only.

    For good, and for everything the process does: for commands and workers, not for library functions.
    Samples and activations are arrays of megabytes, whose memory glibc returns at once. To get it anew costs
    a page fault for every 4 KiB: up to half of the time of a sample.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_MMAP_THRESHOLD, 2**31 - 1)  # refused by some versions; then the next one counts
        mallopt(_MMAP_MAX, 0)
