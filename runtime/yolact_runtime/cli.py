"""yolact-infer: images, videos and cameras to overlays, COCO JSON, JSON Lines and arrays."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from yolact_runtime.commandline import Parser, print_line, run, terminated_as_interrupted
from yolact_runtime.engines.options import add_engine_options, open_engine
from yolact_runtime.engines.threads import default_workers
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.pipeline import PipelineSettings, Tally, run_pipeline
from yolact_runtime.pipeline.progress import show_progress
from yolact_runtime.sinks.image_ids import ImageIds
from yolact_runtime.sinks.jsonl import STDOUT
from yolact_runtime.sinks.open import Outputs, OverlayTarget, check_outputs, open_outputs
from yolact_runtime.sources.headers import max_pixels
from yolact_runtime.sources.open import open_source

log = logging.getLogger(__name__)

_DRIVE = r"[A-Za-z]:(?=[\\/])"


def build_parser() -> Parser:
    """The options of yolact-infer."""
    parser = Parser(prog="yolact-infer", description="Find instances in images, videos and cameras.")
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE",
        help="images, folders, patterns such as 'photos/*.jpg', videos, a camera (0, /dev/video0, rtsp://...),"
        " or - for a list of images on standard input")  # fmt: skip
    add("--null", action="store_true", help="the list on standard input is separated by NUL")
    add("--image", metavar="IN[:OUT]", help="one image, and optionally the file for its overlay")
    add("--images", metavar="DIR[:OUTDIR]", help="a folder, and optionally the folder for its overlays")
    add("--score-threshold", default=0.15, type=float, help="least score of a detection, 0..1")
    add("--top-k", default=15, type=int, help="most detections per image")
    add("--annotations", type=Path, metavar="FILE",
        help="COCO file with the images' ids, found by file name; otherwise numbered from 1")  # fmt: skip
    add_engine_options(parser)
    _add_output_options(parser)
    _add_pipeline_options(parser)
    return parser


def _add_output_options(parser: Parser) -> None:
    add = parser.add_argument_group("outputs").add_argument
    add("--output", default="results/overlays", type=Path, metavar="DIR", help="folder of the overlays")
    add("--video-output", type=Path, metavar="DIR", help="folder of annotated videos, if not --output")
    add("--no-overlay", action="store_true", help="draw nothing")
    add("--json", default="results/mask_detections.json", type=Path, metavar="FILE",
        help="COCO results with masks; boxes and the list of images are written beside it")  # fmt: skip
    add("--no-json", action="store_true", help="write no COCO results")
    add(
        "--jsonl",
        metavar="FILE|-",
        help="JSON Lines, a line an image as soon as it is done; - is standard output",
    )
    add("--resume", action="store_true", help="go on with --jsonl FILE: skip the images that are in it")
    add("--arrays", type=Path, metavar="DIR", help="folder for one NumPy .npz an image")
    add("--polygons", action="store_true", help="outlines instead of run lengths in the JSON; no holes")


def _add_pipeline_options(parser: Parser) -> None:
    add = parser.add_argument_group("pipeline").add_argument
    add("--batch-size", default=1, type=int, metavar="N", help="images in one call of the engine")
    add("--deadline-ms", default=50.0, type=float, metavar="MS",
        help="an image waits at most this long for its batch to fill")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="threads that read images, and as many that make masks; by default half the cores,"
        " at most 4")  # fmt: skip
    add("--streams", default="auto", type=_streams, metavar="N|auto",
        help="calls of the engine at the same time; auto: as many as its backend gains by")  # fmt: skip
    add("--drop-late", action=argparse.BooleanOptionalAction, default=None,
        help="leave out frames that come too fast; by default for cameras only")  # fmt: skip


def _streams(text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of 1 or more")
    return text if text == "auto" else int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-infer`; returns the exit code."""
    return run(infer, build_parser(), argv)


def infer(args: argparse.Namespace) -> int:
    """Do what the options say; 1 when an image failed, 130 when interrupted."""
    settings = _settings(args)
    # What a decoder has to say about a damaged image is in the exception.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    words, target = _sources(args)
    source = open_source(words, null=args.null)
    ids = ImageIds(args.annotations) if args.annotations else None
    check_outputs(args, target, source)
    tally = Tally()
    with open_engine(args, streams=args.streams) as engine:
        meta = engine.metadata
        if ids:
            for sentence in ids.contradictions(meta.category_ids, meta.class_names):
                log.warning("%s: the JSON has the engine's ids", sentence)
        outputs = open_outputs(args, target, source, meta, ids)
        try:
            with (
                terminated_as_interrupted(),
                show_progress("yolact-infer", outputs.source.total, args.quiet) as progress,
            ):
                run_pipeline(outputs.source, engine, outputs.sinks, settings, progress, tally)
        except KeyboardInterrupt:
            _summarise(tally, outputs, args)
            log.error("interrupted: the results of the images done so far are written")
            return 130
        except YolactError:
            _summarise(tally, outputs, args)
            raise
    _summarise(tally, outputs, args)
    return 1 if tally.failed or outputs.numbers.unlisted else 0


def _settings(args: argparse.Namespace) -> PipelineSettings:
    if not 0 <= args.score_threshold <= 1:
        raise UsageError(f"--score-threshold is {args.score_threshold}; it must be in 0..1")
    if not 0 <= args.deadline_ms <= 60_000:
        raise UsageError(f"--deadline-ms is {args.deadline_ms}; it must be in 0..60000")
    for option in ("top_k", "batch_size", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} is {value}; it must be 1 or more")
    if sum([bool(args.sources), bool(args.image), bool(args.images)]) != 1:
        raise UsageError("name the images once: SOURCE..., --image IN[:OUT] or --images DIR[:OUTDIR]")
    max_pixels()  # or every image would say that the limit is none
    workers = args.workers or default_workers()
    return PipelineSettings(
        batch_size=args.batch_size,
        deadline=args.deadline_ms / 1000,
        decode_workers=workers,
        post_workers=workers,
        score_threshold=args.score_threshold,
        top_k=args.top_k,
        drop_late=args.drop_late,
    )


def _sources(args: argparse.Namespace) -> tuple[list[str], OverlayTarget]:
    """What to read, and where overlays go."""
    if args.image:
        source, target = split_pair(args.image)
        return [source], OverlayTarget(Path(target), single=True) if target else OverlayTarget(args.output)
    if args.images:
        source, target = split_pair(args.images)
        return [source], OverlayTarget(Path(target) if target else args.output)
    return args.sources, OverlayTarget(args.output)


def split_pair(text: str) -> tuple[str, str]:
    r"""`IN:OUT` in two; OUT may be missing, and both may begin with a drive such as `C:\`."""
    if Path(text).exists():
        return text, ""
    match = re.fullmatch(rf"((?:{_DRIVE})?[^:]*)(?::(.*))?", text)
    if not match or not match[1]:
        raise UsageError(f"{text!r} is not of the form IN or IN:OUT")
    return match[1], match[2] or ""


def _summarise(tally: Tally, outputs: Outputs, args: argparse.Namespace) -> None:
    parts = [f"{tally.done} images, {tally.detections} detections, {tally.failed} failures"]
    if tally.dropped:
        parts.append(f"{tally.dropped} dropped")
    if args.resume:
        parts.append(f"{outputs.skipped} done before")
    if args.annotations:
        parts.append(f"{outputs.numbers.unlisted} not in {args.annotations}")
    if tally.done and tally.seconds > 0:
        parts.append(f"{1000 / tally.fps:.1f} ms per image ({tally.fps:.1f} images/s)")
    # Standard output belongs to the lines where they go there.
    print_line("; ".join(parts + outputs.written()), sys.stderr if args.jsonl == STDOUT else sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
