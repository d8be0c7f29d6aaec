"""Shared by all commands: option parsing, shell completion, logging, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yolact_runtime
from yolact_runtime.errors import YolactError
from yolact_runtime.files import is_stdout, writing

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

OWN_LOGGERS = ("yolact", "yolact_export", "yolact_runtime", "yolact_bench", "__main__")
# Options that take a path without saying so by `type=Path`.
_PATHS = {"FILE", "FILE|-", "SOURCE", "IN[:OUT]", "E", "engine", "weights", "images", "annotations"}


class OneLine(logging.Formatter):
    """Formats a record on one line; escapes line ends and terminal control codes, as in file names."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message without a traceback."""
        return re.sub(
            r"[\x00-\x08\x0a-\x1f\x7f]",
            lambda match: match[0].encode("unicode_escape").decode(),
            super().formatMessage(record),
        )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults except None, False and empty lists."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that also accepts the original YOLACT's spelling, `--top_k` for `--top-k`.

    Every command gets `--debug`, `--quiet`, `--version` and `--print-completion`. Subcommands get the first
    two, which may be given before or after the subcommand's name.
    """

    def __init__(self, subcommand: bool = False, **options: Any) -> None:
        """Pass `options` to argparse and add the general options."""
        options.setdefault("formatter_class", _HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        add = self.add_argument_group("general").add_argument
        # A default of the subcommand would overwrite an option given before the subcommand's name.
        flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS if subcommand else False}
        add("--debug", help="show the traceback of an error", **flag)
        add("--quiet", help="print warnings and results only", **flag)
        if not subcommand:
            add("--version", action="version", help="show the version and exit")
            add("--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
                help="print a completion script for this shell and exit")  # fmt: skip

    @property
    def version(self) -> str:
        """Read by argparse for `--version` only, as finding it takes longer than building a parser."""
        return f"{self.prog} {yolact_runtime.__version__}"

    def add_subparsers(self, **options: Any) -> Any:
        """Same as in argparse, with parsers of this class."""
        options["parser_class"] = functools.partial(Parser, subcommand=True)
        return super().add_subparsers(**options)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        argv = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([_dashes(word) for word in argv], namespace)


class _PrintCompletion(argparse.Action):
    """Prints the completion script of shtab; options that take a path complete files or folders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "default": argparse.SUPPRESS})

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: Any, option: str | None = None
    ) -> None:
        import shtab

        _mark_paths(parser, shtab.FILE, shtab.DIRECTORY)
        print(shtab.complete(parser, shell))
        parser.exit()


def _mark_paths(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """Set shtab's `complete` attribute on every action that takes a path."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _mark_paths(subparser, file, folder)
        elif "DIR" in str(action.metavar):
            action.complete = folder  # type: ignore[attr-defined]
        elif action.type is Path or {str(action.metavar), action.dest} & _PATHS:
            action.complete = file  # type: ignore[attr-defined]
        if isinstance(action.metavar, str):
            action.metavar = action.metavar.replace(":", " ")  # it separates fields in zsh


def _dashes(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value


def run(
    command: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run `command`, log its error, and return the exit code.

    Returns:
        0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # --help | head
        return 1
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
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_time=False, markup=False
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


def table_console() -> Console:
    """Standard output for tables; if it is not a terminal, wide enough for all columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)
