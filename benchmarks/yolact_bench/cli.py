"""`yolact-bench`: latency, throughput, stages and percentiles of engines, side by side.

yolact-bench --engine A [--engine B ...]    measure
yolact-bench compare A.json B.json          tell whether B is faster
yolact-bench peers ...                      measure beside other implementations
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_bench.accuracy import accuracy
from yolact_bench.accuracy import check_packages as check_accuracy_packages
from yolact_bench.cold import cold_start
from yolact_bench.compare import compare, read_report
from yolact_bench.engines import open_engine
from yolact_bench.images import made_image
from yolact_bench.options import (
    Opened,
    add_engines,
    add_output,
    add_protocol,
    deliver,
    on_gpu,
    open_engines,
    settings_of,
)
from yolact_bench.peers import cli as peers
from yolact_bench.pipeline_throughput import pipeline_throughput, shares_threads
from yolact_bench.protocol import cpu_threads
from yolact_bench.report.page import check_packages as check_page_packages
from yolact_bench.report.tables import show_comparison
from yolact_bench.roofline.share import roofline_share
from yolact_bench.suite import Settings, measure, with_extras
from yolact_runtime import Engine
from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import UsageError
from yolact_runtime.sources.images import list_images

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        return run(_compare, _compare_parser(), words[1:])
    if words[:1] == ["peers"]:
        return peers.main(words[1:])
    return run(_bench, _parser(), words)


def _parser() -> Parser:
    parser = Parser(
        prog="yolact-bench",
        description="Latency, throughput, stages and percentiles of engines, side by side in one run.",
        epilog="Also: yolact-bench compare A.json B.json; yolact-bench peers. Each has --help.",
    )
    add_engines(parser)
    parser.add_argument(
        "--images", metavar="DIR", help="folder of images (default: one made 640 x 480 image)"
    )
    add_protocol(parser)
    more = parser.add_argument_group("what else")
    more.add_argument("--no-cold", action="store_true", help="leave out start-up and memory (a process each)")
    more.add_argument(
        "--pipeline", action="store_true", help="throughput of the pipeline beside a plain loop, too"
    )
    more.add_argument(
        "--roofline",
        action="store_true",
        help="share of the device's roofline that ONNX files reach",
    )
    more.add_argument(
        "--annotations", metavar="FILE", help="COCO annotations of --images: AP of every engine"
    )
    more.add_argument("--max-images", type=int, metavar="N", help="AP on the first N images of the file only")
    add_output(parser)
    return parser


def _bench(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.annotations and not args.images:
        raise UsageError("--annotations needs --images DIR, the folder of the annotated images")
    # What is missing is said before the work, not after it.
    if args.annotations:
        check_accuracy_packages()
    if args.report:
        check_page_packages()
    with contextlib.ExitStack() as stack:
        if args.images:
            images = list_images([args.images])
        else:
            images = [Path(stack.enter_context(tempfile.TemporaryDirectory())) / "made.jpg"]
            made_image(images[0])
        opened = open_engines(args.engines, settings, stack)
        report = measure([one.contender for one in opened], images, settings)
        extras: dict[str, dict[str, Any]] = {one.contender.name: {} for one in opened}
        if not args.no_cold:
            for one in opened:
                log.info("starting %s in a process of its own", one.contender.name)
                extras[one.contender.name]["cold"] = cold_start(
                    one.path, images[0], one.options, max(settings.batches)
                )
        _add_costly(extras, opened, images, settings, args)
        if args.roofline:
            for figures, one in zip(report.engines, opened, strict=True):
                log.info("counting and limiting %s", figures.name)
                first = figures.batches[0]
                extras[figures.name]["roofline"] = roofline_share(
                    one.path,
                    first.batch,
                    first.alone.median,
                    on_gpu(figures.backend),
                    one.options.get("threads"),
                    figures.precision,
                )
    deliver(with_extras(report, extras), args)
    return 0


def _add_costly(
    extras: dict[str, dict[str, Any]],
    opened: Sequence[Opened],
    images: Sequence[Path],
    settings: Settings,
    args: argparse.Namespace,
) -> None:
    for one in opened:
        contender = one.contender
        if args.pipeline:
            log.info("measuring the pipeline of %s", contender.name)
            with cpu_threads(settings.threads):
                extras[contender.name]["pipeline"] = _pipeline(one, images, settings)
        if args.annotations:
            log.info("evaluating %s", contender.name)
            extras[contender.name]["accuracy"] = accuracy(
                contender, Path(args.images), Path(args.annotations), args.max_images
            )


def _pipeline(one: Opened, images: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """The pipeline with an engine opened for throughput, beside a loop with one opened for latency."""
    engine = one.contender.engine
    asked = one.options.get("streams", "auto")
    with contextlib.ExitStack() as stack:

        def reopened(streams: int | str) -> Engine:
            return stack.enter_context(open_engine(one.path, {**one.options, "streams": streams}))

        latency = throughput = engine
        if shares_threads(engine):
            latency = reopened(1)
        # What has several streams by itself, or as many as asked for, is for throughput already.
        if engine.streams == 1 != asked:
            throughput = reopened(asked)
        return pipeline_throughput(
            latency,
            throughput,
            images,
            min(max(settings.batches), latency.metadata.max_batch),
            settings.seconds,
            settings.score_threshold,
            settings.top_k,
        )


def _compare_parser() -> Parser:
    parser = Parser(
        prog="yolact-bench compare",
        description="Whether the engines of one report are faster than those of another, or only look so.",
    )
    parser.add_argument("before", metavar="A.json", help="a report of yolact-bench --json")
    parser.add_argument("after", metavar="B.json", help="another one; engines are matched by name")
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and test")
    parser.add_argument(
        "--min-effect", type=float, default=3.0, metavar="PERCENT", help="smaller changes do not count"
    )
    parser.add_argument(
        "--control",
        metavar="ENGINE",
        help="an unchanged engine in both reports: times are taken as parts of its own",
    )
    parser.add_argument(
        "--fail-if-slower",
        type=float,
        metavar="PERCENT",
        help="exit with 1 where something is told to be slower by more than this",
    )
    return parser


def _compare(args: argparse.Namespace) -> int:
    if args.fail_if_slower is not None and not args.fail_if_slower >= 0:
        raise UsageError(f"--fail-if-slower is {args.fail_if_slower:g}; it must be 0 or more")
    effect = args.min_effect / 100
    found, warnings = compare(
        read_report(args.before),
        read_report(args.after),
        confidence=args.confidence,
        min_effect=effect,
        control=args.control,
    )
    show_comparison(found, warnings, args.confidence, effect, args.control)
    if args.fail_if_slower is None:
        return 0
    slower = [
        one for one in found if one.verdict == "slower" and 100 * (one.ratio.value - 1) > args.fail_if_slower
    ]
    for one in slower:
        log.error("%s, batch %d, %s: %s", one.engine, one.batch, one.kind.replace("_", " "), one.words)
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
