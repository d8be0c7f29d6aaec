"""Checks of the options of yolact-infer, before any work: everything can be written, and over no input."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yolact_runtime.errors import UsageError
from yolact_runtime.files import STDOUT
from yolact_runtime.frames import Source
from yolact_runtime.outputs import Named, check_outputs, engine_files, identity_of
from yolact_runtime.sinks.coco import coco_paths
from yolact_runtime.sinks.label_studio import label_studio_paths
from yolact_runtime.sinks.names import source_names
from yolact_runtime.sinks.per_image.labelme import check_stills
from yolact_runtime.sinks.per_image.overlays import check_writable_suffix
from yolact_runtime.sinks.routing import options_of_source
from yolact_runtime.sinks.table import check_table, shard_file
from yolact_runtime.sinks.video import check_video_suffix
from yolact_runtime.sources.folders import IMAGES, VIDEOS
from yolact_runtime.sources.open import has_video, source_files
from yolact_runtime.sources.several import ChainSource, SimultaneousSource


@dataclass(frozen=True)
class OverlayTarget:
    """Folder for overlays; with `single` the file for the overlay of the only image."""

    path: Path
    single: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the overlays."""
        return self.path.parent if self.single else self.path


def check_all(args: argparse.Namespace, target: OverlayTarget, source: Source) -> None:
    """Check before any work that everything can be written, and that no input is written over.

    Raises:
        UsageError: the outputs do not fit the source, or one is an input, another output or a folder.
        YolactError: a folder cannot be written to.
    """
    if args.resume and isinstance(source, SimultaneousSource):
        raise UsageError("--resume cannot continue cameras, whose frames do not come again; leave it out")
    reads: list[Iterable[Named]] = []
    writes: list[Named] = []
    folders: list[Named] = []
    for options, one in each_source(args, source):
        named = _named(options, target, one)
        reads.append(named[0])
        # Once only: the stream that all sources write their lines to.
        writes += [output for output in named[1] if output not in writes or one is source]
        folders += named[2]
    check_outputs(itertools.chain(*reads), writes, folders)


def each_source(args: argparse.Namespace, source: Source) -> list[tuple[argparse.Namespace, Source]]:
    """The sources that have outputs of their own, with the options of each."""
    if not isinstance(source, SimultaneousSource):
        return [(args, source)]
    names = source_names(feed.name for feed in source.feeds)
    return [
        (options_of_source(args, name), feed.source) for name, feed in zip(names, source.feeds, strict=True)
    ]


def _named(
    args: argparse.Namespace, target: OverlayTarget, source: Source
) -> tuple[Iterable[Named], list[Named], list[Named]]:
    """The files that are read, those that are written, and the folders, with their options.

    Raises:
        UsageError: the outputs do not fit the source.
    """
    if args.resume and not args.no_overlay and has_video(source):
        raise UsageError("--resume cannot continue an annotated video; add --no-overlay")
    json: list[Named] = [] if args.no_json else [("--json", path) for path in coco_paths(args.json)]
    json += [("--coco-dataset", args.coco_dataset), ("--jsonl", args.jsonl)]
    if args.label_studio:
        check_stills("--label-studio", source)
        json += [("--label-studio", path) for path in label_studio_paths(args.label_studio)]
    for option, path in json:
        if path is not None and Path(path).suffix.lower() in (*IMAGES, *VIDEOS, ".npz"):
            raise UsageError(f"{option} {path}: this is the name of another kind of file; JSON is written")
    folders: list[Named] = [("--arrays", args.arrays), ("--masks", args.masks), ("--cutouts", args.cutouts)]
    if args.labelme:
        check_stills("--labelme", source)
        folders.append(("--labelme", args.labelme))
    pictures: list[Named] = []
    if args.table:
        check_table(args.table)
        pictures.append(("--table", args.table))
        if args.shard and args.table.suffix.lower() == ".csv":
            pictures.append(("--table", shard_file(args.table)))
    if args.video and not has_video(source):
        raise UsageError(f"--video {args.video[0]}: this is neither a video nor a camera; name it as SOURCE")
    if not args.no_overlay:
        if video := video_file(args):
            check_video_suffix(video)
            if isinstance(source, ChainSource):
                raise UsageError(f"--video {args.video[0]}:{video}: several videos cannot become one file")
            pictures.append(("--video", video))
        elif target.single:
            check_writable_suffix(target.path)
            pictures.append(("--image", target.path))
        else:
            folders.append(("--images" if args.images else "--output", target.path))
        folders += [("--video-output", args.video_output)] if has_video(source) else []
    _check_picture_folders(args, target)
    reads: list[Named] = [("--engine", path) for path in engine_files(args.engine)]
    reads += [("--annotations", args.annotations)]
    reads += [("standard input", STDOUT)] if STDOUT in args.sources else []
    sources = (("SOURCE", path) for path in source_files(source))
    return itertools.chain(reads, sources), json + pictures, folders


def _check_picture_folders(args: argparse.Namespace, target: OverlayTarget) -> None:
    """Raise a UsageError if two outputs would write `a.png` into one folder."""
    folders: list[Named] = [("--masks", args.masks), ("--cutouts", args.cutouts)]
    folders += [] if args.no_overlay else [("overlays", target.folder)]
    for (first, one), (second, other) in itertools.combinations(folders, 2):
        if one is not None and other is not None and identity_of(one) == identity_of(other):
            raise UsageError(f"{first} and {second} write into the same folder {one}; name two folders")


def video_file(args: argparse.Namespace) -> Path | None:
    """The OUT of `--video IN:OUT`."""
    return Path(args.video[1]) if args.video and args.video[1] else None
