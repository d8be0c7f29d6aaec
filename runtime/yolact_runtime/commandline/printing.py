"""What commands print: lines, tables and progress bars. All texts are data: nothing in them is markup.

Names of files and classes come from anywhere. Control characters in them are shown as escapes, and so is what
the encoding of the stream lacks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from yolact_runtime.errors import YolactError, escape_controls
from yolact_runtime.files import discard_output, is_stdout, writing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

T = TypeVar("T")
log = logging.getLogger(__name__)

TABLES = "YOLACT_TABLES"  # variable of the environment: how tables are printed
_WIDTH = 140  # of tables in files and pipes, enough for all columns


def is_terminal(stream: TextIO | None) -> bool:
    """Whether rich may draw on a stream, without importing rich to find out."""
    return stream is not None and (stream.isatty() or bool(os.environ.get("FORCE_COLOR")))


@functools.cache
def rich_loads() -> bool:
    """Whether rich can be imported; lines and log messages are plain without it, tables need it."""
    try:
        import rich.console
        import rich.logging  # noqa: F401
    except Exception:  # a broken package raises anything
        return False
    return True


def print_line(text: str, file: TextIO | None, style: str = "") -> None:
    """Print one line to standard output, or to standard error if there is any.

    Args:
        text: Data; line ends in it are shown as escapes, too.
        file: The stream; None for one that is closed.
        style: A style of rich, for terminals.

    Raises:
        BrokenPipeError: the reader has closed it.
        YolactError: it cannot be written, or standard output is closed.
    """
    if file is None:
        check_stdout()
        return
    if style and is_terminal(file) and rich_loads():
        from rich.console import Console

        console = Console(file=file)
        with _printing(file), console.capture() as drawn:
            console.print(plain(text, style), soft_wrap=True)
        print_text(drawn.get(), file)
    else:
        print_text(f"{escape_controls(text)}\n", file)


def check_stdout() -> None:
    """Raise a YolactError if standard output is closed."""
    if sys.stdout is None:
        raise YolactError("cannot write standard output: it is closed")


def plain(text: str, style: str = "") -> Text:
    """A text for rich that is shown as it is, with control characters as escapes."""
    from rich.text import Text

    return Text(escape_controls(text), style)


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first `text_columns` columns hold text, the others numbers.

    An empty row separates those before from those after it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1

    def show(self, styles: Sequence[str | None] = ()) -> None:
        """Print it to standard output; `styles` may hold a style of rich for each row.

        With `YOLACT_TABLES=markdown` in the environment, print it as Markdown.

        Raises:
            BrokenPipeError: the reader has closed it.
            YolactError: it cannot be written, or is closed.
        """
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table as Drawn

        check_stdout()
        if os.environ.get(TABLES) == "markdown":
            print_text(f"{self.markdown()}\n\n", sys.stdout)
            return
        drawn = Drawn(
            title=plain(self.title, "table.title") if self.title else None,
            caption=plain(self.note, "table.caption") if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE,
            pad_edge=False,
            show_header=any(self.columns),
        )
        for index, column in enumerate(self.columns):
            number = index >= self.text_columns
            justify = "right" if number else "left"
            drawn.add_column(plain(column), justify=justify, no_wrap=number, overflow="fold")  # type: ignore[arg-type]
        for index, row in enumerate(self.rows):
            if row:
                drawn.add_row(*map(plain, row), style=styles[index] if styles else None)
            else:
                drawn.add_section()
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        with _printing(sys.stdout), console.capture() as lines:
            console.print(drawn, "")
        print_text(lines.get(), sys.stdout)

    def markdown(self) -> str:
        """The table in Markdown, without a line end."""

        def line(cells: Iterable[str]) -> str:
            return f"| {' | '.join(escape_controls(cell).replace('|', chr(92) + '|') for cell in cells)} |"

        ruled = ["---" if index < self.text_columns else "---:" for index in range(len(self.columns))]
        lines = [line(self.columns), f"|{'|'.join(ruled)}|", *(line(row) for row in self.rows if row)]
        parts = [escape_controls(self.title), "\n".join(lines), escape_controls(self.note)]
        return "\n\n".join(filter(None, parts))


def print_text(text: str, file: TextIO) -> None:
    """Print lines of our own to a stream at once, with what its encoding lacks escaped.

    Raises:
        BrokenPipeError: the reader has closed it.
        YolactError: it cannot be written.
    """
    encoding = file.encoding or "utf-8"
    with _printing(file):
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=file, flush=True)


@contextlib.contextmanager
def _printing(file: TextIO) -> Iterator[None]:
    """Turn an OSError of the block into a YolactError, and print no more; a broken pipe passes."""
    with writing("standard output" if file is sys.stdout else "standard error"):
        try:
            yield
        except OSError:
            discard_output(file)
            raise


def printing_beside(*files: str | Path | None) -> contextlib.AbstractContextManager[object]:
    """A context that prints to standard error if one of `files` is standard output, which has no more."""
    beside = sys.stderr is not None and any(map(is_stdout, files))
    return contextlib.redirect_stdout(sys.stderr) if beside else contextlib.nullcontext()


@functools.cache
def error_console() -> Console:
    """Standard error; log lines and progress bars share it, so that a line goes above the bar."""
    from rich.console import Console

    return Console(stderr=True)


def progress_bar(*texts: str, quiet: bool = False) -> Progress:
    """A bar on standard error, to be used as a context; hidden without a terminal, or if `quiet`.

    Descriptions and fields are no markup, but must have no control characters: `escape_controls`.

    Args:
        texts: More columns, such as "{task.fields[rate]}".
        quiet: Whether to hide it in any case.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    name, *more = (TextColumn(text, markup=False) for text in ("{task.description}", *texts))
    first = name, BarColumn(), MofNCompleteColumn(), *more
    times = TimeElapsedColumn(), TextColumn("elapsed"), TimeRemainingColumn(), TextColumn("left")
    console = error_console()
    hidden = quiet or not console.is_terminal
    if hidden:
        from rich.console import Console

        # Old versions of rich end a bar that is not shown with an empty line.
        console = Console(quiet=True)
    # Results that go elsewhere than to the terminal must not be diverted to it.
    diverted = is_terminal(sys.stdout)
    return Progress(*first, *times, console=console, disable=hidden, transient=True, redirect_stdout=diverted)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show how many of them are done in a `progress_bar`, but not with --quiet."""
    with progress_bar(quiet=not log.isEnabledFor(logging.INFO)) as bar:
        yield from bar.track(items, total, description=escape_controls(what))
