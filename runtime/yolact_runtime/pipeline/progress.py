"""The progress bar on the terminal, and the file whose time shows that a run goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from yolact_runtime.commandline import is_terminal, progress_bar
from yolact_runtime.pipeline import RunStats

log = logging.getLogger(__name__)

# Names the file of the `Heartbeat`: for health checks of containers.
HEARTBEAT = "YOLACT_HEARTBEAT"


class Heartbeat:
    """Sets the time of a file at the start, and whenever frames are finished.

    Frames that a camera drops do not count: they are dropped although an engine hangs.

    Args:
        path: The file, which is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        """Take the path; nothing is written."""
        self._path: Path | None = path
        self._finished = -1

    def __call__(self, stats: RunStats) -> None:
        finished = stats.done + stats.failed
        if finished == self._finished or self._path is None:
            return
        self._finished = finished
        try:
            self._path.touch()
        except OSError as error:
            log.warning("%s: cannot write %s: %s", HEARTBEAT, self._path, error.strerror or error)
            self._path = None


@contextlib.contextmanager
def show_progress(name: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[RunStats], None]]:
    """Show a bar for `total` frames on standard error if that is a terminal and `quiet` is false.

    Yields the `progress` argument of `run_pipeline`, which also sets the time of the file that
    `YOLACT_HEARTBEAT` names.
    """
    path = os.environ.get(HEARTBEAT)
    beat = Heartbeat(Path(path)) if path else lambda stats: None
    if quiet or not is_terminal(sys.stderr):
        yield beat
        return
    with progress_bar("{task.fields[rate]}") as bar:
        task = bar.add_task(name, total=total, rate="")

        def show(stats: RunStats) -> None:
            beat(stats)
            rate = f"{stats.fps:.1f} images/s"
            if stats.dropped:
                rate += f", {stats.dropped} dropped"
            bar.update(task, completed=stats.done + stats.failed + stats.dropped, rate=rate)

        yield show
