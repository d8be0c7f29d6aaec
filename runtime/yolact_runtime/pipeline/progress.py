"""How far a run is, on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from yolact_runtime.commandline import is_terminal
from yolact_runtime.pipeline import Tally


@contextlib.contextmanager
def show_progress(name: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[Tally], None]]:
    """A bar on standard error, nothing where that is no terminal.

    Args:
        name: What is going on.
        total: How many frames there will be, if that is known.
        quiet: Show nothing in any case.

    Returns:
        What `run_pipeline` takes as `progress`.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda tally: None
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

        def show(tally: Tally) -> None:
            rate = f"{tally.fps:.1f} images/s"
            if tally.dropped:
                rate += f", {tally.dropped} dropped"
            bar.update(task, completed=tally.done + tally.failed + tally.dropped, rate=rate)

        yield show
