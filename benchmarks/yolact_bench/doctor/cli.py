"""`yolact-doctor`: what this machine has, and whether each part of the project works on it."""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.commandline import Parser, Table, run

if TYPE_CHECKING:
    from yolact_bench.doctor.stage import Context, Stage

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "yolact_resnet50"
LIMIT = 150.0  # so that the whole takes about three minutes


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="yolact-doctor",
        description="Show what this machine has, and run each part of YOLACT Deploy on it: OK, FAILED or"
        " SKIPPED. Exit code 0: nothing failed, 1: something did, 2: wrong use.",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="write doctor.json and doctor.html there")
    only = "run these stages or groups of them only; --list names them"
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help=only)
    parser.add_argument(
        "--quick", action="store_true", help="check, and measure nothing: less than 20 seconds"
    )
    config = "configuration to measure, with random weights"
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="NAME", help=config)
    limit = f"begin no stage after so many seconds (default: {LIMIT:.0f}, or none with --only)"
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=limit)
    parser.add_argument("--list", action="store_true", help="list the stages and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(command, build_parser(), argv)


def command(args: argparse.Namespace) -> int:
    """Run the command; 1 if a library or a stage failed."""
    from yolact_bench.doctor.stage import Context
    from yolact_bench.doctor.stages import all_stages, choose

    with tempfile.TemporaryDirectory(prefix="yolact-doctor-", ignore_cleanup_errors=True) as folder:
        context = Context(Path(folder), args.config, args.quick)
        stages = choose(all_stages(context), args.only, args.quick)
        if args.list:
            _list(stages)
            return 0
        _check(args)
        return _examine(args, context, stages)


def _check(args: argparse.Namespace) -> None:
    """Refuse an unknown configuration, and a folder that cannot be written to."""
    from yolact.registry import get_config
    from yolact_bench.doctor.report import NAMES, check_folder
    from yolact_bench.options import LONGEST, check_number
    from yolact_runtime.outputs import check_outputs

    get_config(args.config)
    check_number("--limit", args.limit, 0, LONGEST)
    if args.report is not None:
        check_outputs([], [("--report", args.report / name) for name in NAMES], [("--report", args.report)])
        check_folder(args.report)


def _list(stages: Sequence[Stage]) -> None:
    """Print the stages with what they need."""
    rows = [[one.name, one.group, one.text, ", ".join(one.needs)] for one in stages]
    Table("Stages", ("stage", "group", "checks", "needs"), rows, text_columns=4).show()


def _examine(args: argparse.Namespace, context: Context, stages: Sequence[Stage]) -> int:
    """Look at the machine, run the stages, print what is found, and write the report after each of them."""
    from yolact_bench.doctor import facts, show
    from yolact_bench.doctor.report import make_report, write_report
    from yolact_bench.doctor.run import Checked, run_stages
    from yolact_bench.doctor.stage import BASE
    from yolact_bench.measure.machine import machine

    begun = time.monotonic()
    found, gpu = machine(), facts.probe_gpu()
    show.machine(found, gpu)
    # With --only, those that the stages need are imported, and others only looked up.
    needed = {*BASE, *(name for one in stages for name in one.needs)}
    names = [name for name in facts.PROBED if name in needed or not args.only]
    libraries = facts.probe_libraries(gpu, names)
    show.libraries(libraries)
    checked: list[Checked] = []
    default = math.inf if args.only else LIMIT
    limit = default if args.limit is None else args.limit
    running = run_stages(stages, context, libraries, gpu, limit)

    def report(complete: bool = False) -> dict[str, Any]:
        """The report so far, which is written whole or not at all."""
        made = make_report(args, begun, found, gpu, libraries, checked, complete)
        if args.report is not None:
            paths = write_report(made, args.report)
            for path in paths if complete else ():
                log.info("wrote %s", path)
        return made

    report()
    waiting: list[Checked] = []  # not begun, for the same reason: they are shown together
    for one in running:
        checked.append(one)
        report()
        if waiting and show.reason(one) != show.reason(waiting[0]):
            show.stages(waiting)
            waiting = []
        waiting.append(one)
        if show.reason(one) is None:
            show.stages(waiting)
            waiting = []
    if waiting:
        show.stages(waiting)
    whole = report(complete=True)
    show.end(whole)
    code: int = whole["exit_code"]
    return code


if __name__ == "__main__":
    raise SystemExit(main())
