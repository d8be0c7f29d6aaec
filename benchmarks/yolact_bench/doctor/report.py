"""The doctor's report: JSON as `schema.json` describes it, and the same as one HTML page.

The schema's number grows when a field changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

import argparse
import getpass
import html
import math
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor.facts import Gpu, Library
from yolact_bench.doctor.show import machine_rows, text
from yolact_bench.doctor.stage import FAILED, OK, SKIPPED
from yolact_runtime.errors import UsageError, escape_controls
from yolact_runtime.files import atomic_path, write_json
from yolact_runtime.packages import PACKAGES
from yolact_runtime.version import __version__

if TYPE_CHECKING:
    from yolact_bench.doctor.run import Checked

SCHEMA = "yolact-doctor/1"
NAMES = ("doctor.json", "doctor.html")
# Part of a name whose value is secret.
_SECRET = "(?:password|passwd|secret|token|api_?key|access_?key|credential)"
# What the page says of it.
PRIVATE = (
    "Left out or replaced: folders of the user (~), of temporary files (TMP), of Python (VENV, PYTHON) and of"
    " a clone (CHECKOUT), names of users (...) and of the host (HOST), passwords, tokens and e-mail addresses"
    " (...). Messages of libraries may have more: read the page before you publish it."
)
# Keys of texts that are the project's own.
_OWN = ("schema", "name", "group", "text", "state", "distribution", "extras", "config", "only")
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6875; --grid: #e3e7ec; --page: #fff;
  --ok: #1d7a3c; --bad: #b3261e; --skip: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b2; --grid: #2c343e;
  --page: #12161b; --ok: #6fcf8e; --bad: #ff8a80; --skip: #f0b464; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1100px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin: 0; } h2 { font-size: 1.15em; margin: 2em 0 .4em; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: .3em .7em .3em 0; }
tr { border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 500; } .wide { overflow-x: auto; }
.OK { color: var(--ok); } .FAILED { color: var(--bad); font-weight: 700; } .SKIPPED { color: var(--skip); }
pre { white-space: pre-wrap; font-size: 12px; color: var(--soft); margin: .3em 0; } code { font-size: 13px; }
"""


def make_report(
    args: argparse.Namespace,
    begun: float,
    machine: Mapping[str, Any],
    gpu: Gpu,
    libraries: Mapping[str, Library],
    checked: Sequence[Checked],
    complete: bool = True,
) -> dict[str, Any]:
    """The report as JSON has it, without names of users, hosts and their folders.

    A library that failed counts if all stages are run; with `--only`, those that need it fail.
    """
    states = [one.outcome.state for one in checked]
    broken = [one.distribution for one in libraries.values() if one.state == FAILED]
    failed = FAILED in states or (bool(broken) and not args.only)
    failed = failed or (gpu.state == FAILED and not args.only)
    report = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "options": {"config": args.config, "quick": args.quick, "only": list(args.only)},
        "seconds": round(time.monotonic() - begun, 1),
        "exit_code": int(failed),
        "complete": complete,
        "summary": {
            "ok": states.count(OK),
            "failed": states.count(FAILED),
            "skipped": states.count(SKIPPED),
            "broken_libraries": broken,
        },
        "machine": dict(machine),
        "gpu": {**asdict(gpu), "devices": list(gpu.devices)},
        "libraries": [
            asdict(one) | {"extras": [extra or "base" for extra in PACKAGES[one.name][1]]}
            for one in libraries.values()
        ],
        "stages": [
            {
                "name": one.stage.name,
                "group": one.stage.group,
                "text": one.stage.text,
                "seconds": round(one.seconds, 2),
                **asdict(one.outcome),
                "output": one.output,
            }
            for one in checked
        ],
    }
    cleaned: dict[str, Any] = _without_names(report)
    return cleaned


def _without_names(value: Any) -> Any:
    """A value whose texts have no control characters, and other words for names of user and host."""
    patterns = *_secrets(), *_folders(), *_users()
    replaced = [(re.compile(pattern), short) for pattern, short in patterns]
    hosts = [(re.compile(pattern), short) for pattern, short in _hosts()]

    def clean(value: Any, key: str = "") -> Any:
        """The same for a part of it, the value of a key."""
        if isinstance(value, str):
            # A host may be called like a stage: what only we write stays.
            for pattern, short in [*replaced, *([] if key in _OWN else hosts)]:
                value = pattern.sub(short, value)
            return "\n".join(map(escape_controls, value.splitlines()))
        if isinstance(value, dict):
            return {clean(key, "name"): clean(one, key) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(one, key) for one in value]
        # JSON has no such numbers.
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return clean(value)


def _secrets() -> list[tuple[str, str]]:
    """Patterns of passwords and tokens: in addresses, after their names, and values of variables."""
    found = [
        (r"(?i)\b([a-z][\w+.-]*://)[^\s/]*@", r"\1...@"),
        (r"(?i)\b(bearer|basic)\s+[\w+/.=~-]{8,}", r"\1 ..."),
        (rf"(?i)({_SECRET}[\w-]*[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+", r"\1..."),
    ]
    values = {value for name, value in os.environ.items() if re.search(_SECRET, name, re.IGNORECASE)}
    # A short or common value would take words from the report.
    values = {value for value in values if len(value) >= 8}
    found += [(re.escape(value), "...") for value in sorted(values, key=len, reverse=True)]
    return [(r"\w[\w.+-]*@[\w-]+(\.[\w-]+)+", "..."), *found][::-1]


def _folders() -> list[tuple[str, str]]:
    """Patterns of folders that name the user or the run, with what is shown for each; longer ones first."""
    venv = sys.prefix != sys.base_prefix
    found = {tempfile.gettempdir(): "TMP", sys.prefix: "VENV" if venv else "PYTHON"}
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").exists():
        found[str(checkout)] = "CHECKOUT"
    with suppress(RuntimeError):
        found[str(Path.home())] = "~"
    with suppress(Exception):
        found[f"/home/{getpass.getuser()}"] = "~"
    usable = sorted((folder for folder in found if len(folder) > 3), key=len, reverse=True)
    return [(rf"{re.escape(folder)}(?![\w.-])", found[folder]) for folder in usable]


def _users() -> list[tuple[str, str]]:
    """Patterns of users' names in paths."""
    found = [(r"(/home/|/Users/|\\Users\\)[^/\\\s:'\"]+", r"\1...")]
    with suppress(Exception):
        found.append((rf"(?<=[/\\]){re.escape(getpass.getuser())}(?=[/\\\s:'\"]|$)", "..."))
    return found


def _hosts() -> list[tuple[str, str]]:
    """Patterns of the host's name, with and without its domain."""
    node = platform.node()
    names = sorted({node, node.partition(".")[0]} - {"", "localhost"}, key=len, reverse=True)
    return [(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "HOST") for name in names]


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files of these names are not reports of this command.

    Raises:
        UsageError: one is not.
    """
    signs = f'"schema": "{SCHEMA.partition("/")[0]}/', "<title>yolact-doctor</title>"
    for name, sign in zip(NAMES, signs, strict=True):
        path = folder / name
        if path.exists() and sign not in _start(path):
            raise UsageError(f"--report: {path} is not a report of yolact-doctor; name another folder")


def _start(path: Path) -> str:
    """The first 1000 bytes of a regular file as text; empty for what is none or cannot be read."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(1000).decode(errors="replace")
    return ""


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the report into a folder as JSON and as a page; returns both files.

    Raises:
        YolactError: they cannot be written.
    """
    paths = [folder / name for name in NAMES]
    write_json(paths[0], report, indent=2)
    with atomic_path(paths[1]) as temporary:
        temporary.write_text(page(report), encoding="utf-8", errors="backslashreplace")
    return paths


def page(report: Mapping[str, Any]) -> str:
    """The report as one page without scripts and outside resources; all texts in it are data."""
    gpu = Gpu(**{**report["gpu"], "devices": tuple(report["gpu"]["devices"])})
    summary = report["summary"]
    counts = f"{summary['ok']} OK, {summary['failed']} FAILED, {summary['skipped']} SKIPPED"
    libraries = [
        [
            _text(one["distribution"]),
            _text(one["version"]),
            _state(one),
            _text(one["reason"]),
            _code(one["remedy"]),
        ]
        for one in report["libraries"]
    ]
    stages = [
        [
            _text(one["name"]),
            _state(one),
            f"{one['seconds']:.1f} s" if one["seconds"] else "",
            _figures(one),
            _details(one),
        ]
        for one in report["stages"]
    ]
    ended = "" if report["complete"] else ". The command ended before all stages had been run."
    machine = [[_text(name), _text(value)] for name, value in machine_rows(report["machine"], gpu)]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>yolact-doctor</title><style>{_STYLE}</style></head><body>",
        "<h1>yolact-doctor</h1>",
        f"<p>{_text(counts)}, {report['seconds']:.0f} s, {_text(report['created'])}{ended}</p>",
        f"<p>{_text(PRIVATE)}</p>",
        f"<h2>Machine</h2>{_table([], machine)}",
        f"<h2>Stages</h2>{_table(['stage', 'state', 'time', 'figures', 'why, and what to do'], stages)}",
        f"<h2>Libraries</h2>{_table(['library', 'version', 'state', 'why', 'what mends it'], libraries)}",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _text(value: object) -> str:
    """A value as text of the page."""
    return html.escape(escape_controls(str(value)))


def _code(command: str) -> str:
    return f"<code>{_text(command)}</code>" if command else ""


def _state(one: Mapping[str, Any]) -> str:
    state = one["state"] if one["state"] in (OK, FAILED, SKIPPED) else ""
    return f'<span class="{state}">{state}</span>'


def _figures(one: Mapping[str, Any]) -> str:
    return "<br>".join(f"{_text(name)}: {_text(text(value))}" for name, value in one["figures"].items())


def _details(one: Mapping[str, Any]) -> str:
    """Reason and remedy of a stage, and the end of what it printed."""
    lines = "".join(f"<pre>{_text(line)}</pre>" for line in one["output"].splitlines())
    return f"{_text(one['reason'])}<br>{_text(one['remedy'])}{lines}".removeprefix("<br>")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{_text(one)}</th>" for one in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
