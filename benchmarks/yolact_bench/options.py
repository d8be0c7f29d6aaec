"""The options of every command that measures contenders, and where its report goes."""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path

from yolact_bench.page import write_html
from yolact_bench.report import show
from yolact_bench.suite import Report, Settings
from yolact_runtime.errors import UsageError
from yolact_runtime.files import atomic_path

log = logging.getLogger(__name__)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """The options of every command that measures; `settings_of` reads them."""
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="N", help="images per run; several sizes in turn"
    )
    group.add_argument("--seconds", type=float, default=3.0, help="time for each engine, batch and kind")
    group.add_argument("--runs", type=int, default=200, help="at most so many runs of each")
    group.add_argument("--threads", type=int, help="CPU threads (default: what each engine chooses)")
    group.add_argument("--score-threshold", type=float, default=0.0, help="masks for detections above this")
    group.add_argument("--top-k", type=int, help="masks for at most so many (default: all)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a report goes; `deliver` reads them."""
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--report", metavar="FILE.html", help="write the report as a page")


def settings_of(args: argparse.Namespace) -> Settings:
    """What `add_protocol` asked for.

    Raises:
        UsageError: a batch size below 1 or given twice, or fewer than one thread.
    """
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it must be 1 or more")
    return Settings(
        tuple(args.batch), args.seconds, args.runs, args.threads, args.score_threshold, args.top_k
    )


def deliver(report: Report, args: argparse.Namespace) -> None:
    """Print a report and write the files that `add_output` asked for."""
    show(report)
    if args.json:
        write_report_json(report, args.json)
        log.info("wrote %s", args.json)
    if args.report:
        write_html(report, args.report)
        log.info("wrote %s", args.report)


def write_report_json(report: Report, path: str | Path) -> None:
    """Write the report as JSON, lists of numbers on one line each."""
    text = json.dumps(report.to_json(), indent=2, allow_nan=False)
    # Strings hold no bare line breaks, so this meets lists only.
    text = re.sub(
        r"\[\n[\s\d.,eE+nul-]*\]",
        lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
