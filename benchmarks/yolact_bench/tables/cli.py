"""`yolact-bench tables`: run the commands of tables, and write what they print into the page."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from yolact_bench.tables.page import read_blocks, replace_block
from yolact_bench.tables.registry import GPU, INPUTS, NEEDS, SERVER, TABLES, FigureTable
from yolact_runtime.commandline import Table, print_line, track
from yolact_runtime.commandline.printing import TABLES as AS_MARKDOWN
from yolact_runtime.errors import UsageError, YolactError, first_line
from yolact_runtime.packages import require

log = logging.getLogger(__name__)

_WIDTH = 116  # of lines of text
_HOURS = 2.0  # of one command, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench tables`."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="tables to measure; all that can be, if left out")
    add("--list", action="store_true", help="print the tables, what they need, and how long they take")
    add("--page", metavar="FILE", help="page whose blocks to replace (default: print the tables)")
    add("--most-minutes", type=float, metavar="M", help="leave out tables that take longer")
    for name, text in NEEDS.items():
        metavar = "ADDRESS" if name == SERVER else "DIR"
        add(
            f"--{name}",
            metavar=metavar,
            help=text if name != SERVER else f"{text}, such as grpc://host:8001/shapes",
        )


def command(args: argparse.Namespace) -> int:
    """List the tables, or measure them one after the other.

    Returns:
        The exit code: 1 if a table could not be measured.
    """
    given = {name: value for name in INPUTS if (value := getattr(args, name.replace("-", "_")))}
    if args.list:
        _list(given)
        return 0
    chosen = _chosen(args, given)
    blocks = read_blocks(args.page) if args.page else {}
    if args.page and (lost := [table.name for table in chosen if table.name not in blocks]):
        raise UsageError(f"{args.page} has no block for {', '.join(lost)}")
    failed = 0
    for table in track(chosen, "tables"):
        log.info("%s: %s, about %g min", table.name, table.shows, table.minutes)
        try:
            text = measure(table, given)
            if args.page:
                replace_block(args.page, table.name, text)
            else:
                print_line("", sys.stdout)
                for line in text.splitlines():
                    print_line(line, sys.stdout)
        except YolactError as error:
            failed += 1
            log.error("%s: %s", table.name, error)
    return 1 if failed else 0


def _list(given: Mapping[str, str]) -> None:
    """Print all tables."""
    rows = [
        [
            table.name,
            table.shows,
            ", ".join(table.needs),
            f"{table.minutes:g}",
            "yes" if _can(table, given) else "no",
        ]
        for table in TABLES
    ]
    note = "; ".join(f"{name}: {text}" for name, text in NEEDS.items())
    Table("", ("table", "shows", "needs", "minutes", "can be run"), rows, note, text_columns=3).show()


def _can(table: FigureTable, given: Mapping[str, str]) -> bool:
    """Whether all is there that the table needs."""
    return all(_has_gpu() if need == GPU else need in given for need in table.needs)


def _has_gpu() -> bool:
    from yolact_bench.measure.nvml import open_nvml

    if nvml := open_nvml():
        nvml.close()
    return nvml is not None


def _chosen(args: argparse.Namespace, given: Mapping[str, str]) -> list[FigureTable]:
    """The tables to measure.

    Raises:
        UsageError: an unknown name, or something is missing that a named table needs.
    """
    known = {table.name: table for table in TABLES}
    for name in args.names:
        if name not in known:
            raise UsageError(f"table {name!r}: there are {', '.join(known)}")
        for need in known[name].needs:
            if need == GPU and not _has_gpu():
                raise UsageError(f"table {name} needs an NVIDIA GPU, and there is none")
            if need != GPU and need not in given:
                raise UsageError(f"table {name} needs --{need}: {NEEDS[need]}")
    for name, value in given.items():
        if name != SERVER and not Path(value).is_dir():
            raise UsageError(f"--{name} {value}: no such folder; give {NEEDS[name]}")
    tables = [known[name] for name in dict.fromkeys(args.names)] or [
        one for one in TABLES if _can(one, given)
    ]
    return [table for table in tables if args.most_minutes is None or table.minutes <= args.most_minutes]


def measure(table: FigureTable, given: Mapping[str, str]) -> str:
    """Run a table's commands in a folder of their own.

    Args:
        table: The table.
        given: Where the inputs are, by key of `INPUTS`.

    Returns:
        The block: machine, commands, and what they print, in Markdown.

    Raises:
        YolactError: a command failed.
    """
    require("yolact-bench tables", "bench", "psutil")
    import psutil

    load = psutil.getloadavg()[0]
    start = time.monotonic()
    printed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, value in given.items():
            if name in table.needs and name != SERVER:
                link = Path(folder, INPUTS[name])
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(value).resolve())
        for line in table.commands:
            output = _run(line.removeprefix("& "), folder, given)
            if not line.startswith("& "):
                printed.append(_kept(output, table.keep))
    minutes = (time.monotonic() - start) / 60
    commands = "\n".join(_wrapped(line.removeprefix("& ")) for line in table.commands)
    return "\n\n".join([_machine(table, load, minutes), commands, *printed])


def _run(line: str, folder: str, given: Mapping[str, str]) -> list[str]:
    """Lines that a command printed; those of text are wrapped.

    Raises:
        YolactError: it failed, or printed nothing that its table needs.
    """
    if SERVER in given:
        line = line.replace(INPUTS[SERVER], given[SERVER])
    program, *words = shlex.split(line)
    environment = {**os.environ, AS_MARKDOWN: "markdown"}
    script = Path(sysconfig.get_path("scripts"), program)
    try:
        done = subprocess.run(
            [script, "--quiet", *words] if program != "yolact-demo" else [script, *words],
            cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=3600 * _HOURS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise YolactError(f"{line}: {first_line(error)}") from error
    if done.returncode:
        raise YolactError(f"{line}: exit code {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    return [
        part
        for text in done.stdout.splitlines()
        for part in ([text] if text.startswith("|") else textwrap.wrap(text, _WIDTH) or [""])
    ]


def _kept(lines: list[str], keep: tuple[str, ...]) -> str:
    """What a command printed, without the tables whose title begins with none of `keep`, if it has any."""
    parts = [part for part in "\n".join(lines).split("\n\n") if part.strip("\n")]
    shown, wanted = [], True
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if keep and following.lstrip("\n").startswith("|") and not part.lstrip("\n").startswith("|"):
            wanted = part.strip("\n").startswith(keep)  # a title
        if wanted:
            shown.append(part.strip("\n"))
    return "\n\n".join(shown)


def _wrapped(line: str) -> str:
    """A command as an indented block, continued by backslashes."""
    parts = textwrap.wrap(line, _WIDTH - 10, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"    {'    ' if n else ''}{part}{chr(92).rjust(2) if n + 1 < len(parts) else ''}"
                     for n, part in enumerate(parts))  # fmt: skip


def _machine(table: FigureTable, load: float, minutes: float) -> str:
    """One paragraph: what the figures were taken on, and when."""
    from yolact_bench.doctor.facts import machine
    from yolact_bench.measure.machine import describe_machine

    found, gpu = machine(), describe_machine()["gpu"]
    threads = ", ".join(f"{name}={value}" for name, value in found["threads_variables"].items())
    parts = [
        f"{found['cpu']} ({' '.join(found['cpu_features'])})",
        f"{found['cores']} cores, {found['memory_gib']:.0f} GiB",
        f"GPU {gpu['name']}" if gpu else "no GPU",
        found["system"],
        f"Python {found['python']}",
        *_versions(("yolact", *table.packages)),
        *([threads] if threads else []),
        f"{date.today()}, {minutes:.1f} min, load {load:.2f} before",
    ]
    return "\n".join(textwrap.wrap(f"{'; '.join(parts)}.", _WIDTH, break_on_hyphens=False))


def _versions(packages: Iterable[str]) -> list[str]:
    found = []
    for name in packages:
        for distribution in (name, f"{name}-gpu"):  # ONNX Runtime has another name with CUDA in it
            with contextlib.suppress(PackageNotFoundError):
                found.append(f"{distribution} {version(distribution)}")
    return found
