"""The sinks that the options of yolact-infer ask for, and what they have written."""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_runtime.commandline import STDOUT
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Sink, Source
from yolact_runtime.metadata import Metadata
from yolact_runtime.sinks.arrays import ArraySink
from yolact_runtime.sinks.coco import CocoSink, coco_paths
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, read_lines
from yolact_runtime.sinks.overlays import OverlaySink, check_writable_suffix
from yolact_runtime.sources.open import RemainingSource, has_video, image_folders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OverlayTarget:
    """Where overlays go: a folder, or with `single` the file of the one image."""

    path: Path
    single: bool = False

    @property
    def folder(self) -> Path:
        """The folder that has to be there."""
        return self.path.parent if self.single else self.path


@dataclass
class Outputs:
    """The sinks of a run, and what is left to do for them."""

    source: Source
    numbers: ImageNumbers
    sinks: list[Sink] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    coco: CocoSink | None = None
    overlays: OverlaySink | None = None
    videos: Any = None
    folder: Path | None = None

    @property
    def skipped(self) -> int:
        """Frames that an earlier run has done."""
        return self.source.skipped if isinstance(self.source, RemainingSource) else 0

    def written(self) -> list[str]:
        """What a user finds where."""
        coco = []
        if self.coco is not None and not self.coco.kept:
            coco = [", ".join(str(path) for path in coco_paths(self.coco.masks_path))]
        drawn = [f"overlays in {self.folder}"] if self.overlays is not None and self.overlays.drawn else []
        videos = [] if self.videos is None else [str(path) for path in self.videos.outputs]
        return self.places + coco + drawn + videos


def check_outputs(args: argparse.Namespace, target: OverlayTarget, source: Source) -> None:
    """Find out before any work whether everything can be written.

    Raises:
        UsageError: the outputs do not fit the source, or a file is a folder.
        YolactError: a folder cannot be written to.
    """
    if args.resume and not args.no_overlay and has_video(source):
        raise UsageError("--resume cannot go on with an annotated video; add --no-overlay")
    if target.single:
        check_writable_suffix(target.path)
    folders = [] if args.no_json else [args.json.parent]
    if not args.no_overlay:
        folders += [args.video_output or target.folder] if has_video(source) else []
        folders.append(target.folder)
    folders += [Path(args.jsonl).parent] if args.jsonl not in (None, STDOUT) else []
    folders += [args.arrays] if args.arrays else []
    for folder in folders:
        _check_writable(folder)
    files = [] if args.no_json else list(coco_paths(args.json))
    files += [Path(args.jsonl)] if args.jsonl not in (None, STDOUT) else []
    files += [target.path] if target.single and not args.no_overlay else []
    for file in files:
        if file.is_dir():
            raise UsageError(f"cannot write {file}: it is a folder; name a file")


def open_outputs(
    args: argparse.Namespace, target: OverlayTarget, source: Source, meta: Metadata, ids: ImageIds | None
) -> Outputs:
    """Open the sinks; with --resume, take over what the JSON Lines hold.

    Raises:
        YolactError: a file cannot be written or resumed, or another run writes it.
    """
    numbers = ImageNumbers(ids, source.total)
    outputs = Outputs(source, numbers)
    lines = JsonLinesSink(args.jsonl, numbers, args.polygons, args.resume) if args.jsonl else None
    resumable: list[CocoSink | ArraySink | OverlaySink] = []
    if not args.no_json:
        outputs.coco = CocoSink(args.json, meta.category_ids, meta.class_names, numbers, args.polygons)
        resumable.append(outputs.coco)
    sources = image_folders(source)
    if args.arrays:
        resumable.append(ArraySink(args.arrays, sources))
        outputs.places.append(f"arrays in {args.arrays}")
    if not args.no_overlay:
        outputs.overlays = OverlaySink(target.path, target.single, sources)
        outputs.folder = target.path
        resumable.append(outputs.overlays)
    outputs.sinks += resumable
    if not args.no_overlay and has_video(source):
        outputs.videos = _video_sink(args.video_output or target.folder, args.sources)
        outputs.sinks.append(outputs.videos)
    if lines is not None:
        # Last: a line says that an image is done, and a resumed run believes it.
        outputs.sinks.append(lines)
        outputs.places += [str(args.jsonl)] if args.jsonl != STDOUT else []
    if lines is not None and args.resume:
        for line, _ in read_lines(Path(args.jsonl)):
            line["image_id"] = numbers.carry(line["image_id"], line["image"])
            for sink in resumable:
                sink.carry(line)
        outputs.source = RemainingSource(source, lines.done)
        log.info("%s: %d images are done", args.jsonl, sum(lines.done.values()))
    return outputs


def _video_sink(folder: Path, words: list[str]) -> Sink:
    from yolact_runtime.sinks.video import VideoSink

    return VideoSink(folder, keep=[word for word in words if Path(word).is_file()])


def _check_writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise YolactError(f"cannot write to folder {folder}: it is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise YolactError(f"cannot write to folder {folder}: {error.strerror or error}") from error
