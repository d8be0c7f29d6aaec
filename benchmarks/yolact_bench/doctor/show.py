"""What the doctor prints: the machine, its libraries, and a line for each stage when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor.stage import FAILED, OK, Figure
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.packages import own_version

if TYPE_CHECKING:
    from yolact_bench.doctor.facts import Gpu, Library
    from yolact_bench.doctor.run import Checked

STYLES = {OK: "green", FAILED: "bold red"}
_SKIPPED = "yellow"
_INDENT = " " * 9


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
    rows = [[one.distribution, one.version, one.state, one.reason, one.remedy] for one in found.values()]
    styles = [style(one.state) if one.state == FAILED else None for one in found.values()]
    Table("Libraries", ("", "version", "state", "why", "what mends it"), rows, text_columns=5).show(styles)


def style(state: str) -> str:
    """The style of a state in a terminal."""
    return STYLES.get(state, _SKIPPED)


def stage(one: Checked) -> None:
    """Print the outcome of a stage: a line, and what is wrong and to do in lines below."""
    outcome = one.outcome
    seconds = f"{one.seconds:5.1f} s" if one.seconds else ""
    figures = ", ".join(f"{name} {text(value)}" for name, value in outcome.figures.items())
    print_line(f"{outcome.state:<8} {one.stage.name:<18} {seconds:>7}  {figures}".rstrip(), sys.stdout, style(outcome.state))
    for label, line in (("why", outcome.reason), ("do", outcome.remedy)):
        if line:
            print_line(f"{_INDENT}{label}: {line}", sys.stdout)


def text(value: Figure) -> str:
    """A figure as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
