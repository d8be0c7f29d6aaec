"""The work of yolact-infer: open the sources, the engine and the sinks, and run the pipeline."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from yolact_runtime.commandline import print_line
from yolact_runtime.commandline.original import engine_options
from yolact_runtime.engines.options import open_engine
from yolact_runtime.engines.threads import default_workers
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import is_stdout
from yolact_runtime.frames import Source
from yolact_runtime.packages import require
from yolact_runtime.pipeline import PipelineSettings, RunStats, SourceStats, run_pipeline
from yolact_runtime.pipeline.progress import show_progress
from yolact_runtime.sinks.check import OverlayTarget, check_all
from yolact_runtime.sinks.image_ids import ImageIds
from yolact_runtime.sinks.open import Outputs, open_all
from yolact_runtime.sources.camera import CameraSettings
from yolact_runtime.sources.images import silence_opencv
from yolact_runtime.sources.open import open_source
from yolact_runtime.sources.several import SimultaneousSource
from yolact_runtime.sources.shard import ShardSource
from yolact_runtime.tracks import TrackSettings

log = logging.getLogger(__name__)


def infer(args: argparse.Namespace) -> int:
    """Run yolact-infer with checked options.

    Returns:
        The exit code: 0 done, 1 when an image failed, 130 when interrupted.

    Raises:
        YolactError: what ended the run.
    """
    silence_opencv()
    names, target = _sources(args)
    source = open_source(names, null=args.null, camera=CameraSettings(attempts=args.reconnects))
    if args.shard:
        source = ShardSource(source, *args.shard)
        log.info("shard %d of %d: %d of %s", *args.shard, source.total, counted(source.listed, "image"))
    check_all(args, target, source)
    settings = pipeline_settings(args)
    ids = ImageIds(args.annotations) if args.annotations else None
    stats = RunStats()
    with open_engine(args, streams=args.streams, **engine_options(args)) as engine:
        meta = engine.metadata
        engine.class_indices(args.classes, "--classes")  # wrong ones are reported before the work
        if ids:
            for sentence in ids.contradictions(meta.category_ids, meta.class_names):
                log.warning("%s: the JSON has the engine's ids", sentence)
        outputs, source, sinks = open_all(args, target, source, meta, ids)
        if args.tile:  # large images: no more of them at once than keep all stages busy
            settings = replace(settings, in_flight=args.batch_size * engine.streams + 2)
        try:
            with show_progress("yolact-infer", source.total, args.quiet) as progress:
                run_pipeline(source, engine, sinks, settings, progress, stats)
        except (KeyboardInterrupt, YolactError) as error:
            _summarise(stats, outputs, source, args)
            if isinstance(error, YolactError):
                raise
            log.error("interrupted: the results of the images done so far are written")
            return 130
    _summarise(stats, outputs, source, args)
    return 1 if stats.failed or any(one.numbers.unlisted for one in outputs) else 0


def pipeline_settings(args: argparse.Namespace) -> PipelineSettings:
    """The settings that the options name."""
    workers = args.workers or default_workers()
    return PipelineSettings(
        batch_size=args.batch_size,
        deadline=args.deadline_ms / 1000,
        decode_workers=workers,
        post_workers=workers,
        score_threshold=args.score_threshold,
        top_k=args.top_k,
        drop_late=args.drop_late,
        track=track_settings(args),
        classes=args.classes,
    )


def track_settings(args: argparse.Namespace) -> TrackSettings | None:
    """The settings of tracks that the options name; None without --track."""
    if not args.track:
        return None
    require("--track", "track", "trackers", "supervision")
    given = {"memory": args.track_memory, "score": args.track_score}
    return TrackSettings(**{name: value for name, value in given.items() if value is not None})


def _sources(args: argparse.Namespace) -> tuple[list[str], OverlayTarget]:
    """The names of the sources, and the target of overlays."""
    if args.video:
        return [args.video[0]], OverlayTarget(args.output)
    if not (pair := args.image or args.images):
        return args.sources, OverlayTarget(args.output)
    source, target = pair
    if not target:
        return [source], OverlayTarget(args.output)
    return [source], OverlayTarget(Path(target), single=bool(args.image))


def _summarise(stats: RunStats, outputs: list[Outputs], source: Source, args: argparse.Namespace) -> None:
    """Print one line: counts, speed and the files written; of several sources, one more for each."""
    summary = [_counts(stats)]
    if stats.dropped:
        summary.append(f"{stats.dropped} dropped")
    if args.resume:
        summary.append(f"{sum(one.skipped for one in outputs)} done before")
    if args.annotations:
        summary.append(f"{sum(one.numbers.unlisted for one in outputs)} not in {args.annotations}")
    if stats.done and stats.seconds > 0:
        summary.append(f"{1000 / stats.fps:.1f} ms per image ({stats.fps:.1f} images/s)")
    # Standard output holds the JSON only.
    files = args.jsonl, args.coco_dataset, args.label_studio, None if args.no_json else args.json
    out = sys.stderr if any(map(is_stdout, files)) else sys.stdout
    if not isinstance(source, SimultaneousSource):
        print_line("; ".join(summary + outputs[0].written()), out)
        return
    print_line("; ".join(summary), out)
    for feed, one in zip(source.feeds, outputs, strict=True):
        counts = _counts(stats.of(feed.numbers))
        more = [f"{feed.dropped} dropped"] if feed.dropped else []
        more += [counted(feed.reconnects, "reconnection")] if feed.reconnects else []
        print_line(f"{feed.name}: {'; '.join([counts, *more, *one.written()])}", out)


def _counts(stats: RunStats | SourceStats) -> str:
    """How much was done and found, and how much failed."""
    return (
        f"{counted(stats.done, 'image')}, {counted(stats.detections, 'detection')},"
        f" {counted(stats.failed, 'failure')}"
    )
