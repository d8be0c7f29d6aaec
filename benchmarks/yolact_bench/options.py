"""The options of every command that measures candidates, and where its report goes."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from yolact_runtime.commandline import printing_beside
from yolact_runtime.errors import UsageError
from yolact_runtime.outputs import Named, check_outputs, engine_files
from yolact_runtime.untrusted import beyond, limit

if TYPE_CHECKING:
    from yolact_bench.measure.suite import Report, Settings

log = logging.getLogger(__name__)

# Options of any subcommand that name files or folders to read.
LONGEST = 1e6  # seconds
_READ = ("images", "annotations", "weights", "torchvision_weights", "original")


def add_engines(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option that names engines; `measure.engines.open_engines` reads it."""
    text = "repeat for several; ratios refer to the first; options follow a colon: m.onnx:threads=2,name=ours"
    form: Any = {"metavar": "E[:KEY=VALUE,...]", "dest": "engines"}
    parser.add_argument("--engine", action="append", required=required, help=text, **form)


def add_protocol(parser: argparse.ArgumentParser, seconds: float = 3.0, all_cores: bool = False) -> None:
    """Add the options of every command that measures, with these defaults; `settings_of` reads them."""
    from yolact_runtime.engines.threads import usable_cores

    group = parser.add_argument_group("protocol")
    group.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images per run")
    group.add_argument("--seconds", type=float, default=seconds, help="time for each engine, batch and kind")
    group.add_argument("--runs", type=int, default=200, help="at most this many runs of each")
    threads, default = (usable_cores(), "all cores") if all_cores else (None, "the choice of each engine")
    group.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default: {default})")
    group.add_argument("--score-threshold", type=float, default=0.0, help="masks for detections above this")
    group.add_argument("--top-k", type=int, help="masks for at most this many (default: all)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options for where a report goes; `deliver` reads them."""
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - is standard output")
    parser.add_argument("--report", metavar="FILE.html", help="write the report as a page")


def check_files(args: argparse.Namespace) -> None:
    """Check before the work that the reports of any subcommand can be written, and that none is an input."""
    given = vars(args)
    writes: list[Named] = [(f"--{name}", given.get(name)) for name in ("json", "report")]
    if not any(path for _, path in writes):
        return
    reads: list[Named] = [(f"--{name}", given.get(name)) for name in _READ]
    engines = {
        "--engine": given.get("engines") or [],
        "--local": [given["local"]] if given.get("local") else [],
    }
    for option, texts in engines.items():
        if texts:
            from yolact_bench.measure.engines import parse_engine

            files = (engine_files(parse_engine(text).path) for text in texts)
            reads += [(option, path) for path in itertools.chain(*files)]
    reads += [("--onnx", path) for path in engine_files(args.onnx)] if given.get("onnx") else []
    reads += [("--ultralytics", path) for path in given.get("ultralytics") or ()]
    if given.get("dataset"):
        from yolact.data.files import dataset_files

        reads += dataset_files(args.dataset)
    check_outputs(reads, writes)


def check_number(option: str, value: float | None, low: float, high: float | str) -> None:
    """Check the value of an option; None, an option that was not given, is right.

    Args:
        option: Its name.
        value: Its value.
        low: The lowest that is allowed.
        high: The highest, or its name in `untrusted.LIMITS`.

    Raises:
        UsageError: it is outside this range, or not a number.
    """
    highest, allowed = (limit(high), beyond(high)) if isinstance(high, str) else (high, f"{high:,}")
    if value is not None and not low <= value <= highest:
        raise UsageError(f"{option} is {value}; it must be {low} or more, and at most {allowed}")


def check_protocol(args: argparse.Namespace) -> None:
    """Check the options of time and threads that measurements have in common."""
    check_number("--threads", args.threads, 1, "threads")
    check_number("--seconds", args.seconds, 1e-6, LONGEST)
    check_number("--runs", args.runs, 1, "runs")


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Height and width of images from text such as 480x640.

    Raises:
        UsageError: it has another form, or they are beyond the limits on images.
    """
    if not re.fullmatch(r"[0-9]{1,9}x[0-9]{1,9}", text):
        raise UsageError(f"{option} is {text!r}; height x width is needed, such as 480x640")
    height, width = (int(side) for side in text.split("x"))
    check_number(f"the shorter side of {option}", min(height, width), 1, "side")
    check_number(f"the longer side of {option}", max(height, width), 1, "side")
    check_number(f"height times width of {option}", height * width, 1, "pixels")
    return height, width


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that `add_protocol` asked for.

    Raises:
        UsageError: a batch size given twice, or a value outside its range.
    """
    from yolact_bench.measure.suite import Settings
    from yolact_runtime.engines.options import tile_options

    check_protocol(args)
    for size in args.batch:
        check_number("--batch", size, 1, "batch")
    check_number("--score-threshold", args.score_threshold, 0, 1)
    check_number("--top-k", args.top_k, 1, "candidates")
    check_number("--max-images", getattr(args, "max_images", None), 1, 10**9)
    limits = args.score_threshold, args.top_k
    classes = tuple(chosen) if (chosen := getattr(args, "classes", None)) else None
    tiles = tile_options(args) or None
    return Settings(tuple(args.batch), args.seconds, args.runs, args.threads, *limits, classes, tiles)


def deliver(report: Report, args: argparse.Namespace) -> None:
    """Print a report and write the files that `add_output` asked for."""
    from yolact_bench.report.page import write_html
    from yolact_bench.report.tables import show

    with printing_beside(args.json, args.report):
        show(report)
    for path, write in ((args.json, report.write_json), (args.report, partial(write_html, report))):
        if path:
            write(path)
            log.info("wrote %s", path)
