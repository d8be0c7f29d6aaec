"""Runs a build in a separate process, because TensorRT may abort the process that it runs in.

`yolact_export.trt.builder` is that process. It reads a `BuildRequest` as JSON from its standard input, and
writes events to its standard output, one JSON object a line: `progress`, then `result` or `error`.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO

from rich.progress import TaskID

from yolact_runtime.child import module_command
from yolact_runtime.commandline import progress_bar
from yolact_runtime.errors import YolactError, escape_controls

log = logging.getLogger(__name__)

_BUILDER = "yolact_export.trt.builder"


@dataclass(frozen=True)
class BuildRequest:
    """One build.

    Attributes:
        library: Module to import, "tensorrt" or "tensorrt_rtx".
        onnx: Path of the graph.
        engine: Path to write the engine to.
        precision: Precision of the graph: "fp32", "fp16" or "int8".
        profile: Fewest, best and most images in one call.
        capabilities: Compute capabilities to build for, if the library can choose; empty for its default.
        workspace_mib: Limit of scratch memory in MiB, or None.
        timing_cache: Path of the timing cache, or "" for the default.
        default_cache: Name of the default one in the cache folder, without the library's version; "" for
            none.
        plugin: Properties of the metadata if detection plugins are to be added, else empty.
        tf32, hardware_compatible, version_compatible: As in `BuildOptions`.
    """

    library: str
    onnx: str
    engine: str
    precision: str
    profile: tuple[int, int, int]
    capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: str = ""
    default_cache: str = ""
    plugin: dict[str, str] = field(default_factory=dict)
    tf32: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False

    def to_text(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> BuildRequest:
        """The inverse of `to_text`."""
        values = json.loads(text)
        return cls(**values | {name: tuple(values[name]) for name in ("profile", "capabilities")})


@dataclass(frozen=True)
class BuildResult:
    """The result of a build.

    Attributes:
        version: Version of the library.
        compute: Number of convolutions and matrix products by the type that they compute in.
        inspected: Where they were counted: "engine" or "network".
        seconds: Duration of the build.
        network: The same as `compute`, of the network that was built.
        notes: Warnings for the user, one line each.
    """

    version: str
    compute: dict[str, int]
    inspected: str
    seconds: float
    network: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_build(request: BuildRequest, title: str, command: Sequence[str] = ()) -> BuildResult:
    """Build in a separate process, with a progress bar if standard error is a terminal.

    Args:
        request: What to build.
        title: The library's name in messages.
        command: The process to start, if not `builder`.

    Raises:
        YolactError: the build failed, or the process ended without a result.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            list(command) or module_command(_BUILDER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                with process.stdin as pipe:
                    pipe.write(request.to_text())
            except BrokenPipeError:
                pass  # the process has ended; its exit status is reported below
            outcome = _follow(process.stdout)
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        last = _last_line(output)
    if "error" in outcome:
        raise YolactError(f"{title} cannot build {request.onnx}: {outcome['error']}")
    if "result" not in outcome:
        raise YolactError(f"{title} ended {_ending(code)} while building {request.onnx}{last}")
    if last:
        log.debug("last line of %s:%s", title, last)
    try:
        return BuildResult(**outcome["result"])
    except TypeError as error:
        raise YolactError(f"{title} ended without a usable result for {request.onnx} ({error})") from None


def _follow(lines: IO[str]) -> dict:
    """Show the progress of a build until it ends; returns its last other event, {} if there was none."""
    outcome: dict = {}
    with progress_bar() as bars:
        phases: dict[str, TaskID] = {}
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # a line cut off when the process died
                continue
            if not isinstance(event, dict):
                continue
            if "progress" not in event:
                outcome = event
                continue
            kind, phase, steps = event["progress"]
            if kind == "start":
                phases[phase] = bars.add_task(escape_controls(phase), total=steps)
            elif phase in phases:
                if kind == "step":
                    bars.update(phases[phase], completed=steps)
                else:
                    bars.remove_task(phases.pop(phase))
    return outcome


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit status {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"by {names.get(-code, f'signal {-code}')}"


def _last_line(output: IO[bytes]) -> str:
    """The last line that a process wrote, in parentheses; "" if it wrote nothing."""
    size = output.seek(0, 2)
    output.seek(max(0, size - 4000))
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return f" ({lines[-1][:200]})" if lines else ""
