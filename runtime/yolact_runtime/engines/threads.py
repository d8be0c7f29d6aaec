"""How many threads an engine on the CPU takes, and how its streams share them."""

from __future__ import annotations

import os

from yolact_runtime.errors import UsageError

AUTO = "auto"


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int | None, streams: int | str) -> None:
    """Raise a UsageError where one of them is none or less."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be 1 or more")
    if streams != AUTO and (not isinstance(streams, int) or streams < 1):
        raise UsageError(f"streams is {streams!r}; it must be 1 or more, or {AUTO!r}")
