"""The progress bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from yolact_runtime.commandline import is_terminal, progress_bar
from yolact_runtime.pipeline import RunStats


@contextlib.contextmanager
def show_progress(name: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[RunStats], None]]:
    """Show a bar for `total` frames on standard error if that is a terminal and `quiet` is false.

    Yields the `progress` argument of `run_pipeline`.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda stats: None
        return
    with progress_bar("{task.fields[rate]}") as bar:
        task = bar.add_task(name, total=total, rate="")

        def show(stats: RunStats) -> None:
            rate = f"{stats.fps:.1f} images/s"
            if stats.dropped:
                rate += f", {stats.dropped} dropped"
            bar.update(task, completed=stats.done + stats.failed + stats.dropped, rate=rate)

        yield show
