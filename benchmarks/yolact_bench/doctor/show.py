"""What the doctor prints: the machine, its libraries, and a line for each stage when it is done."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor.stage import FAILED, OK, Figure
from yolact_runtime.commandline import print_line
from yolact_runtime.version import __version__

if TYPE_CHECKING:
    from yolact_bench.doctor.facts import Gpu, Library
    from yolact_bench.doctor.run import Checked

STYLES = {OK: "green", FAILED: "bold red"}
_INDENT, _WIDTH = " " * 9, 100


def machine(found: Mapping[str, Any], gpu: Gpu) -> None:
    """Print the machine."""
    for name, text in machine_rows(found, gpu):
        print_line(f"{name:<10} {text}", sys.stdout)
    print_line("", sys.stdout)


def machine_rows(found: Mapping[str, Any], gpu: Gpu) -> list[tuple[str, str]]:
    """Names and texts of the facts about a machine."""
    limits = [f"{found['cores']} usable of {found['logical_cpus']} logical"]
    if found["load"] is not None:
        busy = "; other programs run, so times are too long" if found["load"] > 0.5 * found["cores"] else ""
        limits.append(f"load {found['load']}{busy}")
    limits += [f"quota {found['cpu_quota']}"] if found["cpu_quota"] else []
    memory = [f"{found['memory_gib']} GiB, {found['memory_available_gib']} available"]
    memory += [f"container's limit {found['memory_limit_gib']} GiB"] if found["memory_limit_gib"] else []
    names = ", ".join(f"{one['name']} ({one['capability']}, {one['memory_gib']} GiB)" for one in gpu.devices)
    driver = [f"driver {gpu.driver}"] if gpu.driver else []
    driver += [f"CUDA up to {gpu.cuda}"] if gpu.cuda else []
    return [
        ("yolact", f"{__version__}, Python {found['python']}"),
        ("system", found["system"]),
        ("CPU", found["cpu"]),
        ("features", " ".join(found["cpu_features"]) or "unknown"),
        ("cores", ", ".join(limits)),
        ("memory", ", ".join(memory)),
        ("GPU", ", ".join([names or gpu.reason, *driver])),
    ]


def libraries(found: Mapping[str, Library]) -> None:
    """Print each library's state and, if it is not well, the command that mends it."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in found.values():
        names = groups.setdefault((one.state, one.reason, one.remedy), [])
        names.append(f"{one.distribution} {one.version}".rstrip())
    for (state, why, remedy), names in groups.items():
        _several(state, names)
        _advice(why, remedy)
    print_line("", sys.stdout)


def reason(one: Checked) -> tuple[str, str] | None:
    """Why a stage was not begun; None for others."""
    left_out = one.outcome.state != OK and not one.seconds
    return (one.outcome.reason, one.outcome.remedy.replace(one.stage.name, "STAGE")) if left_out else None


def stages(together: Sequence[Checked]) -> None:
    """Print the outcome of a stage: a line, its figures, what is wrong and what to do.

    Args:
        together: One stage, or several that were not begun for the same reason.
    """
    one, outcome = together[0], together[0].outcome
    seconds = f"{one.seconds:6.1f} s" if one.seconds else ""
    names = [each.stage.name for each in together]
    _several(outcome.state, names if len(names) > 1 else [f"{names[0]:<22}{seconds}".rstrip()])
    figures = ", ".join(f"{name} {text(value)}" for name, value in outcome.figures.items())
    for line in textwrap.wrap(figures, _WIDTH, break_long_words=False, break_on_hyphens=False):
        print_line(f"{_INDENT}{line}", sys.stdout)
    remedy = outcome.remedy if len(together) == 1 else outcome.remedy.replace(one.stage.name, "STAGE")
    _advice(outcome.reason, remedy)


def end(report: Mapping[str, Any]) -> None:
    """Print how many stages ended how."""
    summary = report["summary"]
    counts = f"{summary['ok']} OK, {summary['failed']} FAILED, {summary['skipped']} SKIPPED"
    broken = ", ".join(summary["broken_libraries"])
    more = f"; libraries that do not load: {broken}" if broken else ""
    _line(f"{counts} in {report['seconds']:.0f} s{more}", FAILED if report["exit_code"] else OK)


def _several(state: str, names: Sequence[str]) -> None:
    """Print a state and names, on several lines if need be."""
    first, *more = textwrap.wrap(", ".join(names), _WIDTH, break_on_hyphens=False) or [""]
    _line(f"{state:<8} {first}", state)
    for line in more:
        _line(f"{_INDENT}{line}", state)


def _advice(reason: str, remedy: str) -> None:
    for label, line in (("why", reason), ("do", remedy)):
        if line:
            print_line(f"{_INDENT}{label}: {line}", sys.stdout)


def _line(line: str, state: str) -> None:
    """Print a line in the colour of a state."""
    print_line(line, sys.stdout, STYLES.get(state, "yellow"))


def text(value: Figure) -> str:
    """A figure as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
