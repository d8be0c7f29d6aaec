"""The sinks selected by the options of yolact-infer."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from yolact_runtime.classes import resolve_classes
from yolact_runtime.engines.remote.address import engine_name
from yolact_runtime.engines.tiles.windows import OVERLAP
from yolact_runtime.errors import counted
from yolact_runtime.files import is_file, sha256
from yolact_runtime.frames import ResumableSink, Sink, Source
from yolact_runtime.metadata import Metadata
from yolact_runtime.outputs import among
from yolact_runtime.sinks.check import OverlayTarget, each_source, video_file
from yolact_runtime.sinks.coco import CocoSink
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.items import FolderSink
from yolact_runtime.sinks.jsonl import JsonLinesSink, fill_areas, read_lines
from yolact_runtime.sinks.label_studio import LabelStudioSink
from yolact_runtime.sinks.names import FileNames
from yolact_runtime.sinks.per_image.arrays import ArraySink
from yolact_runtime.sinks.per_image.cutouts import CutoutSink
from yolact_runtime.sinks.per_image.labelme import LabelmeSink
from yolact_runtime.sinks.per_image.masks import MaskSink
from yolact_runtime.sinks.per_image.overlays import OverlaySink
from yolact_runtime.sinks.routing import RoutingSink
from yolact_runtime.sinks.table import TableSink
from yolact_runtime.sinks.video import VideoSink
from yolact_runtime.sources.folders import IMAGES
from yolact_runtime.sources.open import (
    RemainingSource,
    file_folders,
    first_image,
    has_video,
    image_folders,
    source_files,
)
from yolact_runtime.sources.several import ChainSource, SimultaneousSource
from yolact_runtime.sources.shard import Shard, ShardSource

log = logging.getLogger(__name__)


@dataclass
class Outputs:
    """The sinks of a run, and the source without the frames that an earlier run has done."""

    source: Source
    numbers: ImageNumbers
    sinks: list[Sink] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Number of frames that an earlier run has done."""
        return self.source.skipped if isinstance(self.source, RemainingSource) else 0

    def written(self) -> list[str]:
        """The files and folders written, for the summary; standard output is none."""
        return [name for sink in self.sinks for name in sink.written()]


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
        for options, one in each_source(args, source)
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
    shard = _shard_of(args, source, meta, ids)
    whole_list = source.sources[0] if isinstance(source, ShardSource) else source
    several = isinstance(whole_list, ChainSource)
    names = FileNames(file_folders(source), several, lambda: first_image(source))
    outputs = Outputs(source, ImageNumbers(ids, whole_list.total, names))
    source_name = getattr(args, "source_name", "")
    lines = None
    if args.jsonl:
        categories = [{"id": key, "name": name} for key, name in zip(*_classes(meta), strict=True)]
        how = args.polygons, args.resume, source_name, mark_of(args, meta), shard, categories
        lines = JsonLinesSink(args.jsonl, outputs.numbers, *how)
    # First, because any of their files may fail alone: the image is then in none of the JSON.
    outputs.sinks += _file_sinks(args, target, meta, whole)
    if not args.no_overlay and has_video(source):
        keep = [path for path in source_files(whole) if Path(path).suffix.lower() not in IMAGES]
        folder = args.video_output or target.folder
        stem = "" if isinstance(source, ChainSource) else source_name
        outputs.sinks.append(VideoSink(folder, keep=keep, target=video_file(args), stem=stem, taken=taken))
    outputs.sinks += _list_sinks(args, meta, outputs.numbers, shard)
    if lines is not None:
        # Last, because a line marks its image as done for a resumed run.
        outputs.sinks.append(lines)
        if args.resume:
            outputs.source = _resume(args.jsonl, lines, outputs)
    return outputs


def _shard_of(args: argparse.Namespace, source: Source, meta: Metadata, ids: ImageIds | None) -> Shard | None:
    """What the outputs say about the shard that is read; None for a whole source."""
    if not isinstance(source, ShardSource):
        return None
    return source.shard(mark_of(args, meta), sha256(ids.path)[:16] if ids else "counted")


def _classes(meta: Metadata) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return meta.category_ids, meta.class_names


def mark_of(args: argparse.Namespace, meta: Metadata) -> str:
    """The same eight digits for runs that find the same in an image, and write it in the same form."""
    path = Path(args.engine)
    engine = asdict(meta)
    if not meta.weights_sha256 and is_file(path):  # a checkpoint
        engine["weights_sha256"] = sha256(path)
    for name in ("min_batch", "max_batch", "versions", "created", "command"):
        del engine[name]
    classes = resolve_classes(args.classes, meta.class_names, meta.category_ids)
    overlap = OVERLAP if args.tile_overlap is None else args.tile_overlap
    tiles = args.tile and [args.tile, overlap, args.tile_full is not False]
    options = [args.precision, args.score_threshold, args.top_k, args.polygons, args.track, tiles]
    # Of a server, the name of the model, which may be on another host in the next run.
    everything = [engine_name(args.engine), engine, classes and sorted(classes), *options]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:8]


def _file_sinks(
    args: argparse.Namespace, target: OverlayTarget, meta: Metadata, whole: Source
) -> Iterator[ResumableSink]:
    """The sinks with a file or more for each image."""
    sources = image_folders(whole), among(lambda: source_files(whole))
    if args.arrays:
        yield ArraySink(args.arrays, *sources)
    if args.masks:
        yield MaskSink(args.masks, args.masks_per_instance, *sources)
    if args.cutouts:
        yield CutoutSink(args.cutouts, meta.category_ids, meta.class_names, *sources)
    if args.labelme:
        how = args.labelme_masks, args.polygon_tolerance, args.labelme_overwrite
        yield LabelmeSink(args.labelme, *how, is_source=sources[1])
    if not args.no_overlay:
        yield OverlaySink(target.path, target.single, *sources)


def _list_sinks(
    args: argparse.Namespace, meta: Metadata, numbers: ImageNumbers, shard: Shard | None
) -> Iterator[ResumableSink]:
    """The sinks with a file for all images."""
    classes = _classes(meta)
    if not args.no_json:
        yield CocoSink(args.json, *classes, numbers, args.polygons, shard)
    if args.coco_dataset:
        yield CocoDatasetSink(args.coco_dataset, *classes, numbers, args.polygons, shard)
    if args.label_studio:
        yield LabelStudioSink(
            args.label_studio,
            *classes,
            numbers,
            args.polygons,
            tolerance=args.polygon_tolerance,
            prefix=args.label_studio_prefix,
            model_version=engine_name(args.engine),
            empty=shard is not None and not shard.images,
        )
    if args.table:
        yield TableSink(args.table, *classes, shard)


def _resume(path: str, lines: JsonLinesSink, outputs: Outputs) -> Source:
    """Give the sinks the images that an earlier run has done; returns the source of the others."""
    resumable = [sink for sink in outputs.sinks if isinstance(sink, ResumableSink)]
    for sink in resumable:
        if lines.done and isinstance(sink, FolderSink) and sink.is_empty():
            log.warning(
                "%s is new: the images that are done have no files there, and get none with --resume",
                sink.folder,
            )
    for line, _ in read_lines(Path(path)):
        fill_areas(line)
        line["image_id"] = outputs.numbers.carry(line["image_id"], line["image"])
        for sink in resumable:
            sink.carry(line)
    log.info("%s: %s already done", path, counted(sum(lines.done.values()), "image"))
    return RemainingSource(outputs.source, lines.done, lines.indices)
