"""Numbers of CPU threads and streams."""

from __future__ import annotations

import math
import os
from pathlib import Path

from yolact_runtime.errors import UsageError
from yolact_runtime.untrusted import beyond, limit

AUTO = "auto"
_SYSTEM = Path("/sys")


def usable_cores(system: Path = _SYSTEM) -> int:
    """CPU cores available to this process, limited by its affinity and its container's quota.

    Args:
        system: The /sys folder of Linux; on other systems all cores are counted.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    topology = [system / f"devices/system/cpu/cpu{cpu}/topology" for cpu in allowed]
    siblings = [_read(folder / "thread_siblings_list") for folder in topology]
    # A second thread on a core does not speed up arithmetic.
    cores = len(allowed) if "" in siblings else len(set(siblings))
    quota, _, period = _read(system / "fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def default_workers(cores: int | None = None) -> int:
    """Threads that decode images, and as many that encode masks, next to an engine: half the cores, 1..4."""
    return max(1, min(4, (cores or usable_cores()) // 2))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def check_threads(threads: int | None, streams: int | str) -> None:
    """Raise a UsageError if one of them is less than 1 or beyond its limit."""
    if threads is not None and not 1 <= threads <= limit("threads"):
        raise UsageError(f"threads is {threads}; it must be 1 or more, and at most {beyond('threads')}")
    if streams != AUTO and not (isinstance(streams, int) and 1 <= streams <= limit("streams")):
        raise UsageError(
            f"streams is {streams!r}; it must be 1 or more, or {AUTO!r}, and at most {beyond('streams')}"
        )
