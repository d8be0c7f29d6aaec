"""`yolact-bench`: latency, throughput, stages and percentiles of engines, interleaved in one run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.options import add_engines, add_output, add_protocol, check_files, deliver, settings_of
from yolact_runtime.commandline import Parser, run
from yolact_runtime.engines.options import add_class_filter, add_tile_options
from yolact_runtime.errors import UsageError
from yolact_runtime.packages import require

if TYPE_CHECKING:
    from yolact_bench.measure.stages import EngineCandidate
    from yolact_bench.measure.suite import BatchReport, Settings

log = logging.getLogger(__name__)

# Each module has `add_arguments(parser)` and `command(args)`, and loads large libraries in the latter only.
COMMANDS = {
    "compare": ("yolact_bench.report.compare", "decide whether one report is faster than another"),
    "peers": ("yolact_bench.peers.cli", "measure engines interleaved with other implementations"),
    "roofline": ("yolact_bench.roofline.cli", "least time of an ONNX graph on this machine"),
    "int8": ("yolact_bench.integers", "count and time what CPUs compute in integers of ONNX files"),
    "kernels": ("yolact_bench.kernels", "time the CUDA kernels, each against the bytes it moves"),
    "training": ("yolact_bench.training", "time a training step, stage by stage"),
    "data": ("yolact_bench.data", "time the making of training samples, stage by stage"),
    "masks": ("yolact_bench.masks", "time masks inside boxes against masks of whole images"),
    "overhead": ("yolact_bench.overhead", "time everything but the network, stage by stage"),
    "start": ("yolact_bench.start", "time a start, from the command to the first image"),
    "tracks": ("yolact_bench.tracks", "measure tracks on synthetic videos of known identities"),
    "load": ("yolact_bench.load", "measure an engine on a server under load"),
    "ray": ("yolact_bench.cluster", "measure yolact-infer --ray against the plain pipeline, and its driver"),
    "tables": ("yolact_bench.tables.cli", "measure the tables of the page of measurements"),
}


# Extras with the packages of subcommands that need more than `bench`; `train` has those of `bench`, too.
EXTRAS = {
    "roofline": "train",
    "kernels": "train,trt",
    "training": "train",
    "data": "train",
    "tracks": "bench,track",
    "ray": "bench,ray",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word not in ("--debug", "--quiet")), "")
    wanted = COMMANDS if "--print-completion" in words else {chosen} & set(COMMANDS)
    return run(_run, build_parser(wanted), words)


def build_parser(subcommands: Collection[str] = tuple(COMMANDS)) -> Parser:
    """The options of `yolact-bench`; imports the modules of these subcommands only, for their options."""
    text = "Measure latency, throughput, stages and percentiles of engines, interleaved in one run."
    parser = Parser(prog="yolact-bench", description=text)
    add_engines(parser, required=False)
    parser.add_argument("--images", metavar="DIR", help="folder of images (default: one synthetic image)")
    add_class_filter(parser)
    add_tile_options(parser)
    add_protocol(parser)
    more = parser.add_argument_group("more measurements")
    more.add_argument("--no-cold", action="store_true", help="skip start-up and memory (a process each)")
    more.add_argument("--pipeline", action="store_true", help="throughput of the pipeline and of a loop")
    more.add_argument("--roofline", action="store_true", help="share of the roofline that ONNX files reach")
    more.add_argument("--annotations", metavar="FILE", help="COCO annotations of --images: AP of each engine")
    more.add_argument("--max-images", type=int, metavar="N", help="AP on the first N images of the file only")
    add_output(parser)
    parser.set_defaults(command=command, extra="bench")
    group = parser.add_subparsers(title="subcommands", metavar="COMMAND", description="each has --help")
    for name, (module, text) in COMMANDS.items():
        subparser = group.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in subcommands:
            implementation = importlib.import_module(module)
            implementation.add_arguments(subparser)
            subparser.set_defaults(command=implementation.command, extra=EXTRAS.get(name, "bench"))
    return parser


def _run(args: argparse.Namespace) -> int | None:
    """Run the chosen command; missing packages are reported before the work, not after it."""
    extra = "train" if getattr(args, "roofline", False) or getattr(args, "torchvision", False) else args.extra
    require("yolact-bench", extra, "psutil", "scipy")
    if getattr(args, "report", None):
        require("--report", extra, "jinja2", "matplotlib")
    check_files(args)
    code: int | None = args.command(args)
    return code


def command(args: argparse.Namespace) -> None:
    """Measure the engines of `--engine`."""
    if not args.engines:
        raise UsageError("no engine to measure; give --engine E, or see yolact-bench --help")
    if args.annotations and not args.images:
        raise UsageError("--annotations needs --images DIR, the folder of the annotated images")
    from yolact_bench.measure.engines import open_engines
    from yolact_bench.measure.suite import measure, with_extras
    from yolact_runtime.sources.images import list_images

    if args.roofline:
        require("--roofline", "train", "onnx", "sympy")
    settings = settings_of(args)
    if settings.tiles and not args.images:
        raise UsageError("--tile needs --images DIR, a folder with images that are larger than a tile")
    with contextlib.ExitStack() as stack:
        folder = args.images or stack.enter_context(tempfile.TemporaryDirectory())
        if not args.images:
            write_synthetic_image(Path(folder) / "synthetic.jpg")
        images = list_images([folder])
        candidates = open_engines(args.engines, settings, stack)
        report = measure(candidates, images, settings)
        extras = {
            candidate.name: _extras(candidate, figures.batches[0], images, args)
            for candidate, figures in zip(candidates, report.engines, strict=True)
        }
    deliver(with_extras(report, extras), args)


def _extras(
    candidate: EngineCandidate, measured: BatchReport, images: Sequence[Path], args: argparse.Namespace
) -> Mapping[str, Any]:
    """The measurements of one engine that the options ask for, except its times."""
    from yolact_bench.measure.accuracy import accuracy
    from yolact_bench.measure.cold import cold_start
    from yolact_bench.measure.engines import on_gpu
    from yolact_bench.measure.protocol import cpu_threads

    found: dict[str, Any] = {}
    if not args.no_cold:
        log.info("starting %s in its own process", candidate.name)
        options = {**candidate.options, "tiles": settings_of(args).tiles}
        found["cold"] = cold_start(candidate.path, images[0], options, max(args.batch), args.classes)
    if args.pipeline:
        log.info("measuring the pipeline of %s", candidate.name)
        with cpu_threads(args.threads):
            found["pipeline"] = _pipeline(candidate, images, settings_of(args))
    if args.annotations:
        log.info("evaluating %s", candidate.name)
        found["accuracy"] = accuracy(candidate, Path(args.images), Path(args.annotations), args.max_images)
    if args.roofline:
        from yolact_bench.roofline.graph import roofline_share

        log.info("computing the roofline of %s", candidate.name)
        run = candidate.path, measured.batch, measured.network_only.median
        delivered = candidate.options.get("threads"), candidate.precision
        found["roofline"] = roofline_share(*run, on_gpu(candidate.backend), *delivered)
    return found


def _pipeline(candidate: EngineCandidate, images: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """Compare the pipeline on an engine opened for throughput with a loop on one opened for latency."""
    from yolact_bench.measure.engines import reopen
    from yolact_bench.measure.pipeline import pipeline_throughput, shares_threads

    latency = throughput = candidate.engine
    asked = candidate.options.get("streams", "auto")
    with contextlib.ExitStack() as stack:
        if shares_threads(latency):
            latency = stack.enter_context(reopen(candidate, 1))
        # An engine that has several streams anyway, or as many as asked for, is for throughput already.
        if candidate.engine.streams == 1 != asked:
            throughput = stack.enter_context(reopen(candidate, asked))
        batch = min(max(settings.batches), latency.metadata.max_batch)
        limits = settings.score_threshold, settings.top_k, settings.classes
        return pipeline_throughput(latency, throughput, images, batch, settings.seconds, *limits)


def write_synthetic_image(path: Path) -> None:
    """Write a 640 x 480 image of coloured clouds, the same one every time."""
    import cv2
    import numpy as np

    cells = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(cells, (640, 480), interpolation=cv2.INTER_CUBIC))


if __name__ == "__main__":
    raise SystemExit(main())
