"""What the doctor prints: the machine, its libraries, and a line for each stage when it is done."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor.stage import FAILED, OK, Figure
from yolact_runtime.commandline import print_line
from yolact_runtime.packages import own_version

if TYPE_CHECKING:
    from yolact_bench.doctor.facts import Gpu, Library
    from yolact_bench.doctor.run import Checked

STYLES = {OK: "green", FAILED: "bold red"}
_INDENT, _WIDTH = " " * 9, 100


def now() -> float:
    """Seconds of a clock that does not jump."""
    return time.monotonic()


def machine(found: Mapping[str, Any], gpu: Gpu) -> None:
    """Print the machine."""
    for name, text in machine_rows(found, gpu):
        print_line(f"{name:<10} {text}", sys.stdout)
    print_line("", sys.stdout)


def machine_rows(found: Mapping[str, Any], gpu: Gpu) -> list[tuple[str, str]]:
    """Names and texts of the facts about a machine."""
    limits = [f"{found['cores']} usable of {found['logical_cpus']} logical"]
    limits += [f"quota {found['cpu_quota']}"] if found["cpu_quota"] else []
    memory = [f"{found['memory_gib']} GiB, {found['memory_available_gib']} available"]
    memory += [f"container's limit {found['memory_limit_gib']} GiB"] if found["memory_limit_gib"] else []
    names = ", ".join(f"{one['name']} ({one['capability']}, {one['memory_gib']} GiB)" for one in gpu.devices)
    driver = [f"driver {gpu.driver}"] if gpu.driver else []
    driver += [f"CUDA up to {gpu.cuda}"] if gpu.cuda else []
    return [
        ("yolact", f"{own_version()}, Python {found['python']}"),
        ("system", found["system"]),
        ("CPU", found["cpu"]),
        ("features", " ".join(found["cpu_features"]) or "unknown"),
        ("cores", ", ".join(limits)),
        ("memory", ", ".join(memory)),
        ("GPU", ", ".join([names or gpu.reason, *driver])),
    ]


def libraries(found: Mapping[str, Library]) -> None:
    """Print each library's state and, if it is not well, the command that mends it."""
    good = ", ".join(f"{one.distribution} {one.version}" for one in found.values() if one.state == OK)
    first, *more = textwrap.wrap(good, _WIDTH, break_on_hyphens=False) or [""]
    _line(f"{OK:<8} {first}", OK)
    for line in more:
        _line(f"{_INDENT}{line}", OK)
    for one in found.values():
        if one.state != OK:
            _line(f"{one.state:<8} {one.distribution} {one.version}".rstrip(), one.state)
            _advice(one.reason, one.remedy)
    print_line("", sys.stdout)


def stage(one: Checked) -> None:
    """Print the outcome of a stage: a line, its figures, what is wrong and what to do."""
    outcome = one.outcome
    seconds = f"{one.seconds:6.1f} s" if one.seconds else ""
    _line(f"{outcome.state:<8} {one.stage.name:<22}{seconds}".rstrip(), outcome.state)
    figures = ", ".join(f"{name} {text(value)}" for name, value in outcome.figures.items())
    for line in textwrap.wrap(figures, _WIDTH, break_long_words=False, break_on_hyphens=False):
        print_line(f"{_INDENT}{line}", sys.stdout)
    _advice(outcome.reason, outcome.remedy)


def end(report: Mapping[str, Any]) -> None:
    """Print how many stages ended how."""
    summary = report["summary"]
    counts = f"{summary['ok']} OK, {summary['failed']} FAILED, {summary['skipped']} SKIPPED"
    broken = ", ".join(summary["broken_libraries"])
    more = f"; libraries that do not load: {broken}" if broken else ""
    _line(f"{counts} in {report['seconds']:.0f} s{more}", FAILED if report["exit_code"] else OK)


def _advice(reason: str, remedy: str) -> None:
    for label, line in (("why", reason), ("do", remedy)):
        if line:
            print_line(f"{_INDENT}{label}: {line}", sys.stdout)


def _line(line: str, state: str) -> None:
    """Print a line in the colour of a state; without colour if rich does not load."""
    try:
        print_line(line, sys.stdout, STYLES.get(state, "yellow"))
    except ImportError:
        print_line(line, sys.stdout)


def text(value: Figure) -> str:
    """A figure as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
