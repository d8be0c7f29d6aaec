"""Runs what may crash or hang in child processes, with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.child import module_command
from yolact_runtime.untrusted import LIMITS

_SHOWN = 1200  # characters of what a child has printed
_KILLED = "the system killed it (SIGKILL), most likely as memory ran out; free memory, or allow more"


@dataclass(frozen=True)
class Ended:
    """How a child process ended.

    Attributes:
        value: The last value that it reported; None if there is none.
        problem: Why it did not end well, one line; empty if it did.
        output: The end of what it printed.
        late: Whether it was stopped because its time was up.
    """

    value: Any = None
    problem: str = ""
    output: str = ""
    late: bool = False


def call(function: str, *words: str, seconds: float, folder: Path | None = None) -> Ended:
    """Call `module:function` in a child process, as `worker.main` does.

    Args:
        function: What to call.
        words: Its arguments.
        seconds: After so many, it and its own children are killed.
        folder: For its temporary files; None for the system's.
    """
    environment = {**os.environ, "YOLACT_TRUST_ENGINES": "1", "OPENCV_LOG_LEVEL": "OFF"}
    # No compiled network of a run is kept: the next one would not find it.
    environment[LIMITS["cache_bytes"].variable] = "1"
    if folder is not None:
        environment["TMPDIR"] = str(folder)
    problem, late = "", False
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as reported:
        child = subprocess.Popen(
            module_command("yolact_bench.doctor.worker", function, *words),
            stdin=subprocess.DEVNULL, stdout=reported, stderr=printed, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            problem = f"it did not end within {seconds:.0f} s and was stopped"
        else:
            problem = _problem(code)
        finally:
            _kill(child)
        output = _end(printed).decode(errors="replace").strip()
        lines = _end(reported, 1 << 20).decode(errors="replace").splitlines()
    value = None
    with contextlib.suppress(ValueError, IndexError):
        value = json.loads(lines[-1])
    if not problem and value is None:
        problem = "it ended without a result"
    if problem and (error := _error(output)):
        problem = f"{problem}: {error}"
    fatal = output.rfind("Fatal Python error")
    shown = output[fatal:][:_SHOWN] if fatal >= 0 else output[-_SHOWN:]
    return Ended(value, problem, shown if problem else "", late)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def _problem(code: int) -> str:
    """What an exit code says; empty for 0."""
    if not code:
        return ""
    if code == -getattr(signal, "SIGKILL", 9):
        return _KILLED
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed with signal {-code}, {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"


def _error(output: str) -> str:
    """The line of an exception at the end of what a process has printed; empty if there is none."""
    lines = output.splitlines()
    last = lines[-1].strip() if lines else ""
    return last[:300] if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", last) else ""


def _end(file: Any, most: int = 4 * _SHOWN) -> bytes:
    """The last bytes of a file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    data: bytes = file.read()
    return data
