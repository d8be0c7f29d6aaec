"""Shared by all commands: logging, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from yolact_runtime.commandline.parser import Parser
from yolact_runtime.errors import YolactError, escape_controls
from yolact_runtime.files import is_stdout, writing
from yolact_runtime.packages import import_failure
from yolact_runtime.untrusted import check_limits

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
log = logging.getLogger(__name__)

OWN_LOGGERS = ("yolact", "yolact_export", "yolact_runtime", "yolact_bench", "__main__")


class OneLine(logging.Formatter):
    """Formats a record on one line; escapes line ends and terminal control codes, as in file names."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message without a traceback."""
        return escape_controls(super().formatMessage(record))


def run(
    command: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run `command`, log its error, and return the exit code.

    A package that is missing or does not load is such an error, too.

    Returns:
        0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    debug, name = False, parser.prog
    try:
        args = parser.parse_args(argv)
        debug, name = args.debug, args.prog
        setup_logging(logging.WARNING if args.quiet else logging.INFO)
        check_limits()  # a wrong one would fail at every file
        return command(args) or 0
    except SystemExit as stop:  # raised by the parser
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except BrokenPipeError:  # --help | head
        return 1
    except Exception as error:
        failure = error if isinstance(error, YolactError) else import_failure(error, name)
        if debug or failure is None:
            raise
        log.error("%s", failure)
        return failure.exit_code


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Turn SIGTERM, sent by `docker stop` and job schedulers, into KeyboardInterrupt, like Ctrl-C."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread, which handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def setup_logging(level: int = logging.INFO) -> None:
    """Log to standard error; plain lines if that is not a terminal."""
    if is_terminal(sys.stderr):
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=error_console(), show_path=False, show_time=False, markup=False
        )
        handler.setFormatter(OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Other libraries log their internals at INFO.
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether rich may draw on a stream, without importing rich to find out."""
    return stream is not None and (stream.isatty() or bool(os.environ.get("FORCE_COLOR")))


def print_line(text: str, file: TextIO | None) -> None:
    """Print one line to standard output or error, if there is any, with unencodable characters escaped.

    Raises:
        BrokenPipeError: the reader has closed it.
        YolactError: it cannot be written.
    """
    if file is None:
        return
    encoding = file.encoding or "utf-8"
    with writing("standard output" if file is sys.stdout else "standard error"):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


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

    first = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, texts)
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
        yield from bar.track(items, total, description=what)


def table_console() -> Console:
    """Standard output for tables; if it is not a terminal, wide enough for all columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)
