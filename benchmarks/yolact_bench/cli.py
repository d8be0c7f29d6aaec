"""`yolact-bench`: latency, throughput, stages and percentiles of engines, side by side."""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2

from yolact_bench.cold import cold_start
from yolact_bench.report import show, write_html
from yolact_bench.suite import Settings, made_image, measure
from yolact_runtime import load_engine
from yolact_runtime.commandline import Parser, run
from yolact_runtime.files import write_json
from yolact_runtime.sources.images import list_images

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(_bench, _parser(), argv)


def _parser() -> Parser:
    parser = Parser(
        prog="yolact-bench",
        description="Latency, throughput, stages and percentiles of engines, side by side in one run.",
    )
    parser.add_argument(
        "--engine",
        action="append",
        required=True,
        metavar="E",
        dest="engines",
        help="repeat for several; ratios refer to the first",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of images (default: one made 640 x 480 image)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per run")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each engine and kind")
    parser.add_argument("--runs", type=int, default=200, help="at most so many runs of each engine and kind")
    parser.add_argument("--threads", type=int, help="CPU threads (default: what each engine chooses)")
    parser.add_argument("--score-threshold", type=float, default=0.0, help="masks for detections above this")
    parser.add_argument("--top-k", type=int, help="masks for at most so many (default: all)")
    parser.add_argument(
        "--no-cold", action="store_true", help="leave out start-up and memory (a process each)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--report", metavar="FILE.html", help="write the report as a page")
    return parser


def _bench(args: argparse.Namespace) -> int:
    settings = Settings(args.batch, args.seconds, args.runs, args.threads, args.score_threshold, args.top_k)
    options = {}
    if args.threads:
        options["threads"] = args.threads
        cv2.setNumThreads(args.threads)
    with contextlib.ExitStack() as stack:
        if args.images:
            images = list_images([args.images])
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            images = [folder / "made.jpg"]
            made_image(images[0])
        names = _names(args.engines)
        engines = {
            name: stack.enter_context(load_engine(path, **options))
            for name, path in zip(names, args.engines, strict=True)
        }
        cold = {}
        if not args.no_cold:
            for name, path in zip(names, args.engines, strict=True):
                log.info("starting %s in a process of its own", name)
                cold[name] = cold_start(path, images[0], args.threads)
        log.info("measuring %s", ", ".join(names))
        report = measure(engines, images, settings, cold)
    show(report)
    if args.json:
        write_json(args.json, report.to_json(), indent=2)
        log.info("wrote %s", args.json)
    if args.report:
        write_html(report, args.report)
        log.info("wrote %s", args.report)
    return 0


def _names(paths: Sequence[str]) -> list[str]:
    """Short and different names for engines: file names where they differ, else numbered paths."""
    short = [Path(path).name for path in paths]
    if len(set(short)) == len(short):
        return short
    if len(set(paths)) == len(paths):
        return list(paths)
    return [f"{path} #{number}" for number, path in enumerate(paths, start=1)]


if __name__ == "__main__":
    raise SystemExit(main())
