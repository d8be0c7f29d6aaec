"""Ctrl-C, SIGTERM and SIGHUP during a training: the first asks to stop, the second stops at once.

Under torchrun, the second changes nothing: schedulers such as Slurm send SIGTERM to every process, and
torchrun passes on its own. torchrun kills what does not end in time (`--shutdown-timeout`).
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolact_runtime.commandline import stop_signals
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)


class TrainingInterruptedError(YolactError):
    """Training was asked to stop, and saved its state."""

    exit_code = 130


class StopSignal:
    """True once one of the signals was received; in use as a context, which the second one ends at once.

    Args:
        launched: Whether torchrun started this process, and ends it.

    Attributes:
        current: What the first signal waits for, for the log.
    """

    def __init__(self, launched: bool = False) -> None:
        self._launched = launched
        self.current = "this iteration"
        self._received: list[int] = []
        self._old: dict[int, Any] = {}
        self._shielded = False
        self._late: int | None = None

    def __bool__(self) -> bool:
        return bool(self._received)

    def __enter__(self) -> StopSignal:
        """Install the handlers."""
        try:
            for number in (signal.SIGINT, *stop_signals()):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:
            self._old.clear()  # not the main thread: the caller handles signals
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block, such as saving, that a second signal does not cut short; it takes effect afterwards."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
            if self._late is not None:
                self._stop_at_once(self._late)

    def _handle(self, number: int, frame: object) -> None:
        """Note the first signal; pass the second one on."""
        if not self._received:
            self._received.append(number)
            again = "" if self._launched else " (again: stop at once)"
            log.warning("stopping after %s%s", self.current, again)
        elif self._launched:
            return
        elif self._shielded:
            self._late = number
        else:
            self._stop_at_once(number)

    def _stop_at_once(self, number: int) -> None:
        self._late = None
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        while self._old:
            signal.signal(*self._old.popitem())
