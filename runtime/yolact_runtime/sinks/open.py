"""The sinks selected by the options of yolact-infer."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from yolact_runtime.commandline import STDOUT
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.frames import Sink, Source
from yolact_runtime.metadata import Metadata
from yolact_runtime.sinks.arrays import ArraySink
from yolact_runtime.sinks.coco import CocoSink, coco_paths
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, read_lines
from yolact_runtime.sinks.overlays import OverlaySink, check_writable_suffix
from yolact_runtime.sinks.video import VideoSink
from yolact_runtime.sources.open import RemainingSource, has_video, image_folders

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
    overlays: OverlaySink | None = None
    videos: VideoSink | None = None

    @property
    def skipped(self) -> int:
        """Number of frames that an earlier run has done."""
        return self.source.skipped if isinstance(self.source, RemainingSource) else 0

    def written(self) -> list[str]:
        """The files and folders written, for the summary."""
        written = list(self.paths)
        if self.coco and not self.coco.kept:
            written.append(", ".join(map(str, self.coco.paths)))
        if self.overlays and self.overlays.drawn:
            written.append(f"overlays in {self.overlays.target}")
        return written + [str(path) for path in self.videos.outputs] if self.videos else written


def check_outputs(args: argparse.Namespace, target: OverlayTarget, source: Source) -> None:
    """Check before any work that everything can be written.

    Raises:
        UsageError: the outputs do not fit the source, or a file is a folder.
        YolactError: a folder cannot be written to.
    """
    if args.resume and not args.no_overlay and has_video(source):
        raise UsageError("--resume cannot continue an annotated video; add --no-overlay")
    if target.single:
        check_writable_suffix(target.path)
    files = [] if args.no_json else list(coco_paths(args.json))
    files += [Path(args.jsonl)] if args.jsonl not in (None, STDOUT) else []
    folders = [file.parent for file in files] + ([args.arrays] if args.arrays else [])
    if not args.no_overlay:
        files += [target.path] if target.single else []
        folders.append(target.folder)
        folders += [args.video_output] if args.video_output and has_video(source) else []
    for folder in dict.fromkeys(folders):
        _check_writable(folder)
    for file in files:
        if file.is_dir():
            raise UsageError(f"cannot write {file}: it is a folder; name a file")


def open_outputs(
    args: argparse.Namespace, target: OverlayTarget, source: Source, meta: Metadata, ids: ImageIds | None
) -> Outputs:
    """Open the sinks; with --resume, take over the images in the JSON Lines file.

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
        outputs.paths.append(f"arrays in {args.arrays}")
    if not args.no_overlay:
        outputs.overlays = OverlaySink(target.path, target.single, sources)
        resumable.append(outputs.overlays)
    outputs.sinks += resumable
    if not args.no_overlay and has_video(source):
        keep = [name for name in args.sources if os.path.isfile(name)]  # noqa: PTH113 - raises no error
        outputs.videos = VideoSink(args.video_output or target.folder, keep=keep)
        outputs.sinks.append(outputs.videos)
    if lines is not None:
        # Last, because a line marks its image as done for a resumed run.
        outputs.sinks.append(lines)
        outputs.paths += [str(args.jsonl)] if args.jsonl != STDOUT else []
    if lines is not None and args.resume:
        for line, _ in read_lines(Path(args.jsonl)):
            line["image_id"] = numbers.carry(line["image_id"], line["image"])
            for sink in resumable:
                sink.carry(line)
        outputs.source = RemainingSource(source, lines.done)
        log.info("%s: %d images are already done", args.jsonl, sum(lines.done.values()))
    return outputs


def _check_writable(folder: Path) -> None:
    """Create the folder, and a temporary file in it."""
    if folder.exists() and not folder.is_dir():
        raise YolactError(f"cannot write to folder {folder}: it is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise YolactError(f"cannot write to folder {folder}: {error.strerror or error}") from error
