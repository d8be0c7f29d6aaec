"""What every command shares: option spelling, logging, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TextIO

from rich.console import Console
from rich.logging import RichHandler

from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

OWN_LOGGERS = ("yolact", "yolact_export", "yolact_runtime", "yolact_bench", "__main__")


class OneLine(logging.Formatter):
    """A record's message on one line, whatever the names in it hold: line ends, or a terminal's commands."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message without the traceback that may follow."""
        return re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", _escaped, super().formatMessage(record))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that also takes the original's spelling: `--top_k` is `--top-k`.

    Every command gets `--debug` (traceback on errors) and `--quiet` (warnings only).
    """

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)  # type: ignore[arg-type]
        group = self.add_argument_group("general")
        group.add_argument("--debug", action="store_true", help="show the traceback of an error")
        group.add_argument("--quiet", action="store_true", help="print warnings and results only")
        group.add_argument("--version", action="version", version=f"%(prog)s {version('yolact')}")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        argv = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_dashes(word) for word in argv], namespace)


def _dashes(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value


def run(
    command: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run `command` and turn what happens into an exit code.

    Returns:
        0 done, 1 the work failed, 2 wrong use, 130 interrupted.
    """
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return 130
    setup_logging(logging.WARNING if args.quiet else logging.INFO)
    try:
        return command(args) or 0
    except YolactError as error:
        if args.debug:
            raise
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except BrokenPipeError:
        return 1


def setup_logging(level: int = logging.INFO) -> None:
    """Send log records to standard error; plain lines where that is not a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_time=False, markup=False
        )
        handler.setFormatter(OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Other libraries tell their inner workings at INFO.
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)


def print_line(text: str, file: TextIO | None) -> None:
    """Print a result; what the stream's encoding lacks is escaped.

    Args:
        text: One line.
        file: Standard output or error; None where the process has none.

    Raises:
        BrokenPipeError: nobody reads it.
        YolactError: it cannot be written.
    """
    if file is None:
        return
    encoding = file.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if file is sys.stdout else "standard error"
        raise YolactError(f"cannot write {name}: {error.strerror or error}") from error


def table_console() -> Console:
    """Standard output for tables; where that is not a terminal, wide enough to leave no column out."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
