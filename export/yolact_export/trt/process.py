"""Builds in a process of their own: TensorRT may end the one it runs in."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from yolact_export.trt.request import Answer, Request
from yolact_runtime.errors import YolactError

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "yolact_export.trt.worker")


def run_build(request: Request, title: str, command: Sequence[str] = WORKER) -> Answer:
    """Build in another process, with a progress bar where standard error is a terminal.

    Args:
        request: What to build.
        title: Of the library, for messages.
        command: The process to start.

    Raises:
        YolactError: the build failed, or the process died.
    """
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                with process.stdin as pipe:
                    pipe.write(request.to_text())
            except BrokenPipeError:
                pass  # it died at once; its exit status tells more
            outcome = _follow(process.stdout)
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        last = _last_line(noise)
    if "error" in outcome:
        raise YolactError(f"{title} cannot build {request.onnx}: {outcome['error']}")
    if "answer" not in outcome:
        raise YolactError(f"{title} ended {_ending(code)} while building {request.onnx}{last}")
    if last:
        log.debug("%s said%s", title, last)
    return Answer(**outcome["answer"])


def _follow(lines: IO[str]) -> dict:
    """Show the events of a build until it ends; the one that says how it went."""
    outcome: dict = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        phases: dict[str, TaskID] = {}
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # cut off by the end of the process
                continue
            if "progress" not in event:
                outcome = event
                continue
            kind, phase, steps = event["progress"]
            if kind == "start":
                phases[phase] = bars.add_task(phase, total=steps)
            elif phase in phases:
                if kind == "step":
                    bars.update(phases[phase], completed=steps)
                else:
                    bars.remove_task(phases.pop(phase))
    return outcome


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit status {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def _last_line(noise: IO[bytes]) -> str:
    """The last thing a process wrote, in parentheses; empty where it wrote nothing."""
    size = noise.seek(0, 2)
    noise.seek(max(0, size - 4000))
    lines = [line.strip() for line in noise.read().decode(errors="replace").splitlines() if line.strip()]
    return f" ({lines[-1][:200]})" if lines else ""
