"""One process at a time: locks on files."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock between processes; the system frees it when a process dies."""
    with path.open("a+b") as file:
        try:
            if not _lock(file):
                log.info("another process holds %s; waiting for it", path)
                while not _lock(file):
                    time.sleep(0.2)
        except OSError as error:
            # Some network file systems have no locks; size and hash still guard the result.
            log.warning("%s cannot be locked (%s); going on without", path, error.strerror)
        yield


def _lock(file: IO[bytes]) -> bool:
    """Lock `file` until it is closed; False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
