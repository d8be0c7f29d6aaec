"""Shared by all commands: logging, one-line errors, exit codes."""

from __future__ import annotations

import _thread
import argparse
import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from yolact_runtime.commandline.parser import Parser
from yolact_runtime.commandline.printing import (
    Table,
    error_console,
    is_terminal,
    print_line,
    printing_beside,
    progress_bar,
    rich_loads,
    track,
)
from yolact_runtime.errors import YolactError, escape_controls, first_line, lacks_memory
from yolact_runtime.files import discard_output
from yolact_runtime.packages import import_failure
from yolact_runtime.temporary import claiming
from yolact_runtime.untrusted import check_limits

__all__ = [
    "OWN_LOGGERS",
    "OneLine",
    "Parser",
    "Table",
    "end_process",
    "error_console",
    "is_terminal",
    "print_line",
    "printing_beside",
    "progress_bar",
    "run",
    "setup_logging",
    "stop_signals",
    "terminated_as_interrupted",
    "track",
]

log = logging.getLogger(__name__)

_CLOSED = "standard output was closed by its reader; stopped"
OWN_LOGGERS = ("yolact", "yolact_export", "yolact_runtime", "yolact_bench", "__main__")


# Characters of a message; longer ones lack their middle.
MESSAGE_LENGTH = 2000


class OneLine(logging.Formatter):
    """Formats a record on one line; escapes line ends and terminal control codes, as in file names."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message without a traceback."""
        text = escape_controls(super().formatMessage(record))
        # A file may have a name or a key of any length; what to do is said at the end.
        return text if len(text) <= MESSAGE_LENGTH else f"{text[:1400]} ... {text[-500:]}"


def run(
    command: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run `command`, log its error, and return the exit code.

    A package that is missing or does not load is such an error, too, and so are a lack of memory, a file that
    cannot be read or written, and a standard output that takes nothing.

    Returns:
        0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    code = _run(command, parser, argv)
    if reason := _flush():
        _report(reason)
    return code or int(bool(reason))


def _run(
    command: Callable[[argparse.Namespace], int | None], parser: Parser, argv: Sequence[str] | None
) -> int:
    """The exit code of a command, apart from what is not yet printed."""
    # Errors say what is wrong with an image; set before OpenCV is imported.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    debug, name = False, parser.prog
    try:
        args = parser.parse_args(argv)
        debug, name = args.debug, args.prog
        setup_logging(logging.WARNING if args.quiet else logging.INFO)
        check_limits()  # a wrong one would fail at every file
        with terminated_as_interrupted(), claiming():
            return command(args) or 0
    except SystemExit as stop:  # raised by the parser
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except Exception as error:
        failure = _failure(error, name)
        if debug or failure is None:
            raise
        _report(str(failure))
        return failure.exit_code


def _report(reason: str) -> None:
    """Log an error, also before the options are known."""
    if not logging.getLogger().handlers:
        setup_logging()
    log.error("%s", reason)


def _failure(error: Exception, name: str) -> YolactError | None:
    """The one line for an error that is no fault of the program; None for others."""
    if isinstance(error, YolactError):
        return error
    if isinstance(error, BrokenPipeError):
        return YolactError(_CLOSED)
    if failure := import_failure(error, name):
        return failure
    if lacks_memory(error):
        return YolactError(
            f"not enough memory ({first_line(error)}); free some, or use smaller images or batches"
        )
    if isinstance(error, RecursionError):
        return YolactError("a file is nested too deeply to be read")
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        return YolactError(f"{named}{error.strerror or first_line(error)}")
    return None


def end_process(code: int) -> NoReturn:
    """End the process as `sys.exit` does, but leave it to the system to free what the libraries hold.

    Taking ONNX Runtime and OpenCV apart, object by object, takes 30 ms and more. With a thread that the
    interpreter would wait for, this is `sys.exit`.
    """
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        _flush()
        os._exit(code)
    sys.exit(code)


def _flush() -> str:
    """Write what is buffered for standard output and error; returns why standard output takes nothing.

    Python would do it at exit, with a traceback.
    """
    reason = ""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:
            discard_output(stream)
            if stream is sys.stdout:
                closed = isinstance(error, BrokenPipeError)
                reason = _CLOSED if closed else f"cannot write standard output: {error.strerror or error}"
    return reason


def stop_signals() -> list[int]:
    """The signals that end a command as Ctrl-C does, and that its parent does not ignore.

    SIGTERM is from `docker stop` and job schedulers, SIGHUP from a terminal that closes; `nohup` ignores it.
    """
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    return [number for number in known if number is not None and signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Turn `stop_signals` into KeyboardInterrupt, as Python does with Ctrl-C.

    Both wait for the end of an import, during which libraries end the process or lose the exception. Where
    another library replaces it by an error of its own, it is raised again.
    """
    received = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            timer = threading.Timer(0.05, _thread.interrupt_main, (number,))
            timer.daemon = True
            timer.start()
            return
        received.append(number)
        raise KeyboardInterrupt

    numbers = stop_signals()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, interrupt)
    except ValueError:  # not in the main thread, which handles signals
        numbers = []
    try:
        yield
    except Exception as error:
        if received and not isinstance(error, YolactError):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame is inside an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def setup_logging(level: int = logging.INFO) -> None:
    """Log to standard error; plain lines if that is not a terminal, or if rich does not load."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    if is_terminal(sys.stderr) and rich_loads():
        from rich.logging import RichHandler

        handler = RichHandler(console=error_console(), show_path=False, show_time=False, markup=False)
        handler.setFormatter(OneLine("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Other libraries log their internals at INFO.
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)
