"""The options of yolact-infer; `yolact_runtime.infer` does the work."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from yolact_runtime.commandline import Parser, end_process, run
from yolact_runtime.commandline.original import ELSEWHERE, add_original_options, split_video
from yolact_runtime.commandline.ray_options import add_ray_options, check_ray_options
from yolact_runtime.engines.options import add_class_filter, add_engine_options, add_tile_options
from yolact_runtime.errors import UsageError
from yolact_runtime.files import stream_of
from yolact_runtime.merge.cli import add_merge_options, merge_command
from yolact_runtime.packages import skip_openvino_tools
from yolact_runtime.untrusted import beyond, limit

_DRIVE = r"[A-Za-z]:(?=[\\/])"


def build_parser() -> Parser:
    """The options of yolact-infer."""
    parser = Parser(
        prog="yolact-infer",
        usage="yolact-infer --engine E SOURCE [options]\n       yolact-infer merge INPUT... [options]",
        description="Find instances in images, videos and cameras; merge the outputs of several machines.",
        elsewhere=ELSEWHERE,
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE",
        help="images, folders, patterns such as 'photos/*.jpg', videos, cameras (0, /dev/video0, rtsp://...;"
        " all at once), or - for a list of images on standard input")  # fmt: skip
    add("--null", action="store_true", help="paths on standard input end in NUL instead of a line end")
    add("--image", type=split_pair, metavar="IN[:OUT]", help="one image, and the file for its overlay")
    add("--images", type=split_pair, metavar="DIR[:OUTDIR]", help="a folder, and the folder for its overlays")
    add("--video", type=split_video, metavar="IN[:OUT]",
        help="one video or camera, and the file for its annotated version")  # fmt: skip
    add("--shard", type=split_shard, metavar="N/M",
        help="process image N, N + M, N + 2 M, ... of the list only; yolact-infer merge joins the outputs of"
        " all M shards")  # fmt: skip
    add("--score-threshold", default=0.15, type=float, help="minimum score of a detection, 0..1")
    add("--top-k", default=15, type=int, help="maximum number of detections per image")
    add_class_filter(parser)
    add("--annotations", type=Path, metavar="FILE",
        help="COCO file with the image ids, by file name; else images are numbered from 1")  # fmt: skip
    add_engine_options(parser)
    add_tile_options(parser)
    _add_output_options(parser)
    _add_track_options(parser)
    _add_labelling_options(parser)
    _add_pipeline_options(parser)
    add_ray_options(parser)
    add_original_options(parser)
    _add_merge(parser)
    return parser


def _add_merge(parser: Parser) -> None:
    """Add `merge`, which is a command as the first word only: any other word may be a SOURCE."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog=parser.prog, first_word=True)
    merge = commands.add_parser(
        "merge",
        help="join the outputs of shards, or rows in Parquet (a file of this name is ./merge)",
        description="Join the outputs of all shards of a run, or rows in Parquet, to the outputs of one run.",
    )
    add_merge_options(merge)


def _add_output_options(parser: Parser) -> None:
    """Add the options that select what is written, and where to."""
    add = parser.add_argument_group("outputs").add_argument
    add("--output", default="results/overlays", type=Path, metavar="DIR", help="folder for overlays")
    add("--video-output", type=Path, metavar="DIR", help="folder for annotated videos, if not --output")
    add("--no-overlay", action="store_true", help="write no overlays and no annotated videos")
    add("--json", "--mask-det-file", default="results/mask_detections.json", type=Path, metavar="FILE",
        help="COCO results with masks; box results and the image list go into the same folder; - is standard"
        " output, for masks only")  # fmt: skip
    add("--no-json", action="store_true", help="write no COCO results")
    add("--coco-dataset", type=Path, metavar="FILE",
        help="COCO annotation file of what was found: to correct, or to train on")  # fmt: skip
    add("--jsonl", metavar="FILE|-",
        help="JSON Lines: one line per image, as soon as it is done; - is standard output")  # fmt: skip
    add("--resume", action="store_true", help="continue --jsonl FILE: skip the images that it contains")
    add("--arrays", type=Path, metavar="DIR", help="folder for one NumPy .npz file per image")
    add("--masks", type=Path, metavar="DIR",
        help="folder for one PNG per image: 0 is background, else the number is a detection's row"
        " + 1")  # fmt: skip
    add("--masks-per-instance", action="store_true",
        help="with --masks: one PNG per detection instead, 255 in its mask and 0 outside")  # fmt: skip
    add("--cutouts", type=Path, metavar="DIR",
        help="folder for one PNG per detection, cut out along its mask: IMAGE_ROW_CLASS.png")  # fmt: skip
    add("--table", type=Path, metavar="FILE",
        help="table with a row per detection: FILE.csv, or FILE.parquet (pip install"
        " 'yolact[table]')")  # fmt: skip
    add("--polygons", action="store_true", help="polygons instead of RLE in the JSON; holes are lost")


def _add_track_options(parser: Parser) -> None:
    """Add the options for tracks."""
    add = parser.add_argument_group("tracks").add_argument
    add("--track", action="store_true",
        help="number each object, the same in all frames; images of a folder are frames")  # fmt: skip
    add("--track-memory", type=float, metavar="SECONDS",
        help="how long an object may be hidden and keep its number (default: 1)")  # fmt: skip
    add("--track-score", type=float, metavar="SCORE",
        help="lowest score that gives a new object a number, 0..1 (default: 0.4)")  # fmt: skip


def _add_labelling_options(parser: Parser) -> None:
    """Add the options for labelling tools, in which people correct what was found."""
    add = parser.add_argument_group("labelling tools").add_argument
    add("--labelme", type=Path, metavar="DIR",
        help="folder for one labelme file per image; files that are there are kept")  # fmt: skip
    add("--labelme-masks", action="store_true", help="exact masks instead of polygons in the labelme files")
    add("--labelme-overwrite", action="store_true", help="replace labelme files that are there")
    add("--label-studio", type=Path, metavar="FILE",
        help="tasks for Label Studio with brush masks or --polygons, and its labeling interface")  # fmt: skip
    add("--label-studio-prefix", default="/data/local-files/?d=", metavar="URL",
        help="what the addresses of the images in Label Studio begin with")  # fmt: skip
    add("--polygon-tolerance", default=1.0, type=float, metavar="PIXELS",
        help="how far polygons for labelling tools may be from the mask's outline; 0 is exact")  # fmt: skip


def _add_pipeline_options(parser: Parser) -> None:
    """Add the options for batching and threads."""
    add = parser.add_argument_group("pipeline").add_argument
    add("--batch-size", "--video-multiframe", default=1, type=int, metavar="N", help="images per engine call")
    add("--deadline-ms", default=50.0, type=float, metavar="MS",
        help="longest time an image waits for its batch to fill")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="threads that decode images, and as many that encode masks (default: half the cores,"
        " at most 4)")  # fmt: skip
    add("--streams", default="auto", type=_streams, metavar="N|auto",
        help="concurrent engine calls; auto: the number with the highest throughput")  # fmt: skip
    add("--drop-late", action=argparse.BooleanOptionalAction, default=None,
        help="drop frames that come faster than they are processed (default: for cameras only)")  # fmt: skip
    add("--reconnects", default=5, type=int, metavar="N",
        help="how often in a row to try to reach a camera again that was lost")  # fmt: skip


def _streams(text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of 1 or more")
    return text if text == "auto" else int(text)


def split_pair(text: str) -> tuple[str, str]:
    r"""Split `IN:OUT`; OUT may be missing, and both may begin with a drive such as `C:\`."""
    if os.path.exists(text):  # noqa: PTH110 - raises no error
        return text, ""
    match = re.fullmatch(rf"((?:{_DRIVE})?[^:]*)(?::(.*))?", text)
    if not match or not match[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form IN or IN:OUT")
    return match[1], match[2] or ""


def split_shard(text: str) -> tuple[int, int]:
    """The number and the count of `3/16`."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if count > limit("shards"):
        raise argparse.ArgumentTypeError(f"{text!r} are more shards than {beyond('shards')}")
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form N/M with N from 1 to M, such as 3/16")
    return number, count


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `yolact-infer`."""
    skip_openvino_tools()
    end_process(main(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `yolact-infer` with the words of its command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if words[:1] == ["merge"]:
        return run(merge_command, parser.subparsers.choices["merge"], words[1:])
    return run(_infer, parser, words)


def _infer(args: argparse.Namespace) -> int:
    check_options(args)
    # Imports OpenCV and the libraries of the engine: `--help` and wrong options do without.
    if args.ray is not None:
        from yolact_runtime.batch.on_ray import infer_on_ray

        return infer_on_ray(args)
    from yolact_runtime.infer import infer

    return infer(args)


def check_options(args: argparse.Namespace) -> None:
    """Raise a UsageError for values outside their range and options that contradict each other."""
    if not 0 <= args.score_threshold <= 1:
        raise UsageError(f"--score-threshold is {args.score_threshold}; it must be in 0..1")
    if not 0 <= args.deadline_ms <= 60_000:
        raise UsageError(f"--deadline-ms is {args.deadline_ms}; it must be in 0..60000")
    for option in ("top_k", "batch_size", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} is {value}; it must be 1 or more")
    if not 0 <= args.reconnects <= 1_000_000:
        raise UsageError(f"--reconnects is {args.reconnects}; it must be in 0..1000000")
    for option, most in (("batch_size", "batch"), ("workers", "threads")):
        if (getattr(args, option) or 1) > limit(most):
            name = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name} is {getattr(args, option)}; it must be at most {beyond(most)}")
    named = sum(map(bool, (args.sources, args.image, args.images, args.video)))
    if not named and args.classes and os.path.exists(args.classes[-1]):  # noqa: PTH110 - raises no error
        raise UsageError(f"--classes takes {args.classes[-1]} for a class; put -- before the images")
    if named != 1:
        raise UsageError(
            "name the images once: SOURCE..., --image IN[:OUT], --images DIR[:OUTDIR] or --video IN[:OUT]"
        )
    check_ray_options(args, build_parser())
    if args.ray is not None:
        return
    if args.resume and (args.jsonl is None or stream_of(args.jsonl) is not None):
        raise UsageError("--resume needs the file to continue: --jsonl FILE")
    check_track_options(args)
    if args.masks_per_instance and not args.masks:
        raise UsageError("--masks-per-instance needs the folder of the masks: --masks DIR")
    _check_labelling_options(args)
    _check_shard_options(args)
    others = args.jsonl, args.coco_dataset, args.arrays, args.masks, args.cutouts, args.table
    if args.no_json and args.no_overlay and not any((*others, args.labelme, args.label_studio)):
        raise UsageError(
            "nothing would be written: --no-json and --no-overlay need --jsonl, --coco-dataset, --arrays,"
            " --masks, --cutouts, --table, --labelme or --label-studio"
        )


def check_track_options(args: argparse.Namespace) -> None:
    """Raise a UsageError for options of tracks that are out of range or contradict others."""
    memory, score = args.track_memory, args.track_score
    if not args.track and (memory is not None or score is not None):
        name = "--track-memory" if memory is not None else "--track-score"
        raise UsageError(f"{name} needs --track")
    if memory is not None and not 0 <= memory <= 3600:
        raise UsageError(f"--track-memory is {memory}; it must be in 0..3600 seconds")
    if score is not None and not 0 <= score <= 1:
        raise UsageError(f"--track-score is {score}; it must be in 0..1")
    if args.track and args.resume:
        raise UsageError(
            "--resume cannot continue tracks, which depend on all frames before; run without --resume, or"
            " without --track"
        )


def _check_shard_options(args: argparse.Namespace) -> None:
    if args.shard and args.track:
        raise UsageError("--track needs all frames in order; run without --shard, or without --track")


def _check_labelling_options(args: argparse.Namespace) -> None:
    if not 0 <= args.polygon_tolerance <= 100:
        raise UsageError(f"--polygon-tolerance is {args.polygon_tolerance}; it must be in 0..100 pixels")
    for option in ("masks", "overwrite"):
        if getattr(args, f"labelme_{option}") and not args.labelme:
            raise UsageError(f"--labelme-{option} needs the folder for labelme files: --labelme DIR")


if __name__ == "__main__":
    program()
