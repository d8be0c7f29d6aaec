"""The progress bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from yolact_runtime.commandline import is_terminal
from yolact_runtime.pipeline import RunStats


@contextlib.contextmanager
def show_progress(name: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[RunStats], None]]:
    """Show a progress bar on standard error if that is a terminal.

    Args:
        name: Label of the bar.
        total: Number of frames; None if unknown.
        quiet: Show nothing in any case.

    Returns:
        The `progress` argument of `run_pipeline`.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda stats: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, rate="")

        def show(stats: RunStats) -> None:
            rate = f"{stats.fps:.1f} images/s"
            if stats.dropped:
                rate += f", {stats.dropped} dropped"
            bar.update(task, completed=stats.done + stats.failed + stats.dropped, rate=rate)

        yield show
