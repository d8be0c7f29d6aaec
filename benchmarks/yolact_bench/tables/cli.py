"""`yolact-bench tables`: run the commands of tables, and write what they print into the page."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
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
from typing import Any

from yolact_bench.tables.page import read_blocks, replace_block
from yolact_bench.tables.registry import GPU, INPUTS, NEEDS, SERVER, TABLES, FigureTable
from yolact_runtime.commandline import Table, print_line, track
from yolact_runtime.commandline.printing import TABLES as AS_MARKDOWN
from yolact_runtime.errors import UsageError, YolactError, first_line, without_secrets
from yolact_runtime.files import write_json
from yolact_runtime.packages import require

log = logging.getLogger(__name__)

_WIDTH = 116  # of lines of text
_HOURS = 2.0  # of one command, at most
# What `report.tables` prints if figures are worthless, because something else took much of the CPU.
_BUSY = re.compile(r"^Warning: (other (?:processes|machines) .*)$", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench tables`."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="tables to measure; all that can be, if left out")
    add("--list", action="store_true", help="print the tables, what they need, and how long they take")
    add("--page", metavar="FILE", help="page whose blocks to replace (default: print the tables)")
    add("--keep", metavar="DIR", help="write what each command printed, and the machine, to DIR/NAME.json")
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
    if args.page and not _commit():
        raise UsageError("--page: the commit that is measured is unknown; run it from a clone with git")
    failed = 0
    for table in track(chosen, "tables"):
        log.info("%s: %s, about %g min", table.name, table.shows, table.minutes)
        try:
            record = measure(table, given)
            if args.keep:
                write_json(Path(args.keep, f"{table.name}.json"), record, indent=2)
            text = render(table, record)
            if args.page:
                if busy := _BUSY.search("\n".join(one["printed"] for one in record["commands"])):
                    raise YolactError(f"its block stays as it was: {busy[1]}")
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


def measure(table: FigureTable, given: Mapping[str, str]) -> dict[str, Any]:
    """Run a table's commands in a folder of their own.

    Args:
        table: The table.
        given: Where the inputs are, by key of `INPUTS`.

    Returns:
        What `render` needs, for JSON: the machine, versions, date, load, and what each command printed.

    Raises:
        YolactError: a command failed, or printed nothing.
    """
    require("yolact-bench tables", "bench", "psutil")
    import psutil

    before, start = psutil.getloadavg()[0], time.monotonic()
    printed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, value in given.items():
            if name in table.needs and name != SERVER:
                link = Path(folder, INPUTS[name])
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(value).resolve())
        for line in table.commands:
            output = _run(line.removeprefix("& "), folder, given)
            shown = _with_server(line, without_secrets(given.get(SERVER, "")))
            if not output.strip() and not line.startswith("& "):
                raise YolactError(f"{shown}: it printed nothing")
            printed.append({"command": shown, "printed": output})
    return {
        "table": table.name,
        **_machine(),
        "versions": _versions(("yolact", *table.packages)),
        "commit": _commit(),
        "date": str(date.today()),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "load": [round(before, 2), round(psutil.getloadavg()[0], 2)],
        "commands": printed,
    }


def render(table: FigureTable, record: Mapping[str, Any]) -> str:
    """The block of a table: machine, commands, and what they printed, in Markdown.

    Args:
        table: The table.
        record: As by `measure`.
    """
    variables = ", ".join(f"{name}={value}" for name, value in record["threads_variables"].items())
    before, after = record["load"]
    parts = [
        f"{record['cpu']} ({' '.join(record['cpu_features'])})",
        f"{record['cores']} cores, {record['memory_gib']:.0f} GiB",
        f"GPU {record['gpu']}" if record["gpu"] else "no GPU",
        record["system"],
        f"Python {record['python']}",
        *(f"{name} {version}" for name, version in record["versions"].items()),
        *([variables] if variables else []),
        *([f"commit {record['commit']}"] if record["commit"] else []),
        f"{record['date']}, {record['minutes']} min, load {before:.2f} before and {after:.2f} after",
    ]
    machine = "\n".join(textwrap.wrap(f"{'; '.join(parts)}.", _WIDTH, break_on_hyphens=False))
    commands = "\n".join(_wrapped(one["command"].removeprefix("& ")) for one in record["commands"])
    shown = [one["printed"] for one in record["commands"] if not one["command"].startswith("& ")]
    if table.verbatim:
        whole = textwrap.indent("\n".join(line.rstrip() for line in "".join(shown).splitlines()), "    ")
        return "\n\n".join([machine, commands, "It printed:", whole])
    return "\n\n".join([machine, commands, *(_kept(text.splitlines(), table.keep) for text in shown)])


def _run(line: str, folder: str, given: Mapping[str, str]) -> str:
    """What a command printed, with its tables in Markdown, and without the folder in its paths.

    Raises:
        YolactError: it failed.
    """
    program, *words = shlex.split(_with_server(line, given.get(SERVER, "")))
    line = _with_server(line, without_secrets(given.get(SERVER, "")))
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
    for path in (str(Path(folder).resolve()), folder):
        done.stdout = done.stdout.replace(f"{path}{os.sep}", "")
    return done.stdout


def _with_server(line: str, address: str) -> str:
    """A command with the address of the server that was given, if any."""
    return line.replace(INPUTS[SERVER], shlex.quote(address)) if address else line


def _kept(lines: list[str], keep: tuple[str, ...]) -> str:
    """What a command printed, without the tables whose title begins with none of `keep`, if it has any.

    With `keep`, whatever a library printed before the first of them is left out, too. Lines of text are
    wrapped.
    """
    first = next((number for number, text in enumerate(lines) if keep and text.startswith(keep)), 0)
    lines = [
        part
        for text in lines[first:]
        for part in ([text] if text.startswith("|") else textwrap.wrap(text, _WIDTH) or [""])
    ]
    # Without an empty line before it, a table would be text.
    whole = re.sub(r"^([^|\n].*)\n(?=\|)", r"\1\n\n", "\n".join(lines), flags=re.MULTILINE)
    parts = [part for part in whole.split("\n\n") if part.strip("\n")]
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


def _machine() -> dict[str, Any]:
    """What the figures are taken on."""
    from yolact_bench.measure.machine import describe_machine

    found = describe_machine()
    names = ("cpu", "cpu_features", "cores", "memory_gib", "system", "python", "threads_variables")
    return {**{name: found[name] for name in names}, "gpu": (found["gpu"] or {}).get("name")}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        for distribution in (name, f"{name}-gpu"):  # ONNX Runtime has another name with CUDA in it
            with contextlib.suppress(PackageNotFoundError):
                found[distribution] = version(distribution)
    return found


def _commit() -> str:
    """Commit of the code that is measured, with "+" if it was changed since; empty outside of a clone."""
    here = Path(__file__).parent
    folders = ("runtime", "export", "benchmarks", "yolact")
    try:
        root, head = (
            _git(here, "rev-parse", *what) for what in (["--show-toplevel"], ["--short=12", "HEAD"])
        )
        return head + ("+" if _git(Path(root), "status", "--porcelain", "--", *folders) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
