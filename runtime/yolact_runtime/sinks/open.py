"""The sinks selected by the options of yolact-infer."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from yolact_runtime.errors import UsageError, counted
from yolact_runtime.files import STDOUT, is_stdout
from yolact_runtime.frames import Sink, Source
from yolact_runtime.metadata import Metadata
from yolact_runtime.outputs import Named, among, check_outputs, engine_files, identity_of
from yolact_runtime.sinks.arrays import ArraySink
from yolact_runtime.sinks.coco import CocoSink, coco_paths
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.cutouts import CutoutSink
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, fill_areas, read_lines
from yolact_runtime.sinks.label_studio import LabelStudioSink, label_studio_paths
from yolact_runtime.sinks.labelme import LabelmeSink, check_stills
from yolact_runtime.sinks.masks import MaskSink
from yolact_runtime.sinks.names import FileNames, source_names
from yolact_runtime.sinks.overlays import OverlaySink, check_writable_suffix
from yolact_runtime.sinks.routing import RoutingSink, options_of_source
from yolact_runtime.sinks.table import TableSink, check_table
from yolact_runtime.sinks.video import VideoSink, check_video_suffix
from yolact_runtime.sources.folders import IMAGES, VIDEOS
from yolact_runtime.sources.open import (
    RemainingSource,
    file_folders,
    has_video,
    image_folders,
    source_files,
)
from yolact_runtime.sources.several import ChainSource, SimultaneousSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OverlayTarget:
    """Folder for overlays; with `single` the file for the overlay of the only image."""

    path: Path
    single: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the overlays."""
        return self.path.parent if self.single else self.path


@dataclass
class Outputs:
    """The sinks of a run, and the source without the frames that an earlier run has done."""

    source: Source
    numbers: ImageNumbers
    sinks: list[Sink] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    coco: CocoSink | None = None
    dataset: CocoDatasetSink | None = None
    label_studio: LabelStudioSink | None = None
    overlays: OverlaySink | None = None
    table: TableSink | None = None
    videos: VideoSink | None = None

    @property
    def skipped(self) -> int:
        """Number of frames that an earlier run has done."""
        return self.source.skipped if isinstance(self.source, RemainingSource) else 0

    def written(self) -> list[str]:
        """The files and folders written, for the summary; standard output is none."""
        written = list(self.paths)
        if self.coco and not self.coco.kept and not is_stdout(self.coco.paths[0]):
            written.append(", ".join(map(str, self.coco.paths)))
        if self.dataset and not self.dataset.kept and not is_stdout(self.dataset.path):
            written.append(str(self.dataset.path))
        if self.label_studio and not self.label_studio.kept and not is_stdout(self.label_studio.paths[0]):
            written.append(", ".join(map(str, self.label_studio.paths)))
        if self.table and self.table.written:
            written.append(str(self.table.path))
        if self.overlays and self.overlays.drawn:
            written.append(f"overlays in {self.overlays.target}")
        return written + [str(path) for path in self.videos.outputs] if self.videos else written


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
    for options, one in _each_source(args, source):
        named = _named(options, target, one)
        reads.append(named[0])
        # Once only: the stream that all sources write their lines to.
        writes += [output for output in named[1] if output not in writes or one is source]
        folders += named[2]
    check_outputs(itertools.chain(*reads), writes, folders)


def _each_source(args: argparse.Namespace, source: Source) -> list[tuple[argparse.Namespace, Source]]:
    """The sources that have outputs of their own, with the options of each."""
    if not isinstance(source, SimultaneousSource):
        return [(args, source)]
    names = source_names(lane.name for lane in source.lanes)
    return [
        (options_of_source(args, name), lane.source) for name, lane in zip(names, source.lanes, strict=True)
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
    if args.video and not has_video(source):
        raise UsageError(f"--video {args.video[0]}: this is neither a video nor a camera; name it as SOURCE")
    if not args.no_overlay:
        if video := _video_file(args):
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


def _video_file(args: argparse.Namespace) -> Path | None:
    """The OUT of `--video IN:OUT`."""
    return Path(args.video[1]) if args.video and args.video[1] else None


def open_all(
    args: argparse.Namespace, target: OverlayTarget, source: Source, meta: Metadata, ids: ImageIds | None
) -> tuple[list[Outputs], Source, list[Sink]]:
    """Open the outputs of all sources that have their own; for one source, of this one.

    Returns:
        The outputs, and the source and sinks of the pipeline.

    Raises:
        YolactError: as for `open_outputs`.
    """
    taken: set[Path] = set()
    outputs = [
        open_outputs(options, target, one, meta, ids, source, taken)
        for options, one in _each_source(args, source)
    ]
    if not isinstance(source, SimultaneousSource):
        return outputs, outputs[0].source, outputs[0].sinks
    rows = itertools.zip_longest(*(one.sinks for one in outputs))
    return outputs, source, [RoutingSink(source, row) for row in rows]


def open_outputs(
    args: argparse.Namespace,
    target: OverlayTarget,
    source: Source,
    meta: Metadata,
    ids: ImageIds | None,
    whole: Source,
    taken: set[Path],
) -> Outputs:
    """Open the sinks of one source; with --resume, take over the images in the JSON Lines file.

    Args:
        args: Its options.
        target: Of its overlays.
        source: What is written.
        meta: Of the engine.
        ids: Of the annotation file.
        whole: All sources of the run, whose files are kept.
        taken: Paths of the videos of all sources.

    Raises:
        YolactError: a file cannot be written or resumed, or another run writes it.
    """
    names = FileNames(file_folders(source), isinstance(source, ChainSource))
    numbers = ImageNumbers(ids, source.total, names)
    outputs = Outputs(source, numbers)
    name = getattr(args, "source_name", "")
    lines = JsonLinesSink(args.jsonl, numbers, args.polygons, args.resume, name) if args.jsonl else None
    resumable: list[
        CocoSink
        | CocoDatasetSink
        | ArraySink
        | OverlaySink
        | MaskSink
        | CutoutSink
        | TableSink
        | LabelmeSink
        | LabelStudioSink
    ] = []
    # First, because any of their files may fail alone: the image is then in none of the JSON.
    sources = image_folders(whole), among(lambda: source_files(whole))
    if args.arrays:
        resumable.append(ArraySink(args.arrays, *sources))
        outputs.paths.append(f"arrays in {args.arrays}")
    if args.masks:
        resumable.append(MaskSink(args.masks, args.masks_per_instance, *sources))
        outputs.paths.append(f"masks in {args.masks}")
    if args.cutouts:
        resumable.append(CutoutSink(args.cutouts, meta.category_ids, meta.class_names, *sources))
        outputs.paths.append(f"cut-outs in {args.cutouts}")
    if args.labelme:
        how = args.labelme_masks, args.polygon_tolerance, args.labelme_overwrite
        resumable.append(LabelmeSink(args.labelme, *how, is_source=sources[1]))
        outputs.paths.append(f"labelme files in {args.labelme}")
    if not args.no_overlay:
        outputs.overlays = OverlaySink(target.path, target.single, *sources)
        resumable.append(outputs.overlays)
    outputs.sinks += resumable
    if not args.no_overlay and has_video(source):
        keep = [path for path in source_files(whole) if Path(path).suffix.lower() not in IMAGES]
        folder = args.video_output or target.folder
        stem = "" if isinstance(source, ChainSource) else name
        outputs.videos = VideoSink(folder, keep=keep, target=_video_file(args), stem=stem, taken=taken)
        outputs.sinks.append(outputs.videos)
    classes = meta.category_ids, meta.class_names, numbers, args.polygons
    if not args.no_json:
        outputs.coco = CocoSink(args.json, *classes)
        resumable.append(outputs.coco)
        outputs.sinks.append(outputs.coco)
    if args.coco_dataset:
        outputs.dataset = CocoDatasetSink(args.coco_dataset, *classes)
        resumable.append(outputs.dataset)
        outputs.sinks.append(outputs.dataset)
    if args.label_studio:
        how = args.polygon_tolerance, args.label_studio_prefix, Path(args.engine).name
        outputs.label_studio = LabelStudioSink(args.label_studio, *classes, *how)
        resumable.append(outputs.label_studio)
        outputs.sinks.append(outputs.label_studio)
    if args.table:
        outputs.table = TableSink(args.table, meta.category_ids, meta.class_names)
        resumable.append(outputs.table)
        outputs.sinks.append(outputs.table)
    if lines is not None:
        # Last, because a line marks its image as done for a resumed run.
        outputs.sinks.append(lines)
        outputs.paths += [] if is_stdout(args.jsonl) else [str(args.jsonl)]
    if lines is not None and args.resume:
        for line, _ in read_lines(Path(args.jsonl)):
            fill_areas(line)
            line["image_id"] = numbers.carry(line["image_id"], line["image"])
            for sink in resumable:
                sink.carry(line)
        outputs.source = RemainingSource(source, lines.done)
        log.info("%s: %s already done", args.jsonl, counted(sum(lines.done.values()), "image"))
    return outputs
