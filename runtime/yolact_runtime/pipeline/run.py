"""`run_pipeline`, its settings and its counts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from yolact_runtime.engines.base import Engine, check_limits
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Sink, Source
from yolact_runtime.pipeline.stages import Run

log = logging.getLogger(__name__)

# Seconds between progress reports.
_TICK = 0.2


@dataclass(frozen=True)
class PipelineSettings:
    """Batching, threads and limits of a pipeline.

    Attributes:
        batch_size: Images per engine call, limited by the engine's `max_batch`.
        deadline: Seconds that the oldest image of a batch waits for the batch to fill.
        decode_workers: Threads that read, decode and resize.
        post_workers: Threads that run the sinks' `prepare`: RLE, drawing, encoding.
        score_threshold: Keep detections whose box score is greater, 0..1.
        top_k: Keep at most this many per image.
        drop_late: Drop the oldest waiting frame when a new one arrives and all threads are busy; None: only
            if the source is live.
        in_flight: Maximum number of frames between the start of decoding and the end of writing; None: as
            many as keep all stages busy.
        engine_failures: Number of consecutive images that the engine fails on before the run gives up.

    Raises:
        UsageError: a value outside its range.
    """

    batch_size: int = 1
    deadline: float = 0.05
    decode_workers: int = 2
    post_workers: int = 1
    score_threshold: float = 0.15
    top_k: int = 15
    drop_late: bool | None = None
    in_flight: int | None = None
    engine_failures: int = 10

    def __post_init__(self) -> None:
        check_limits(self.score_threshold, self.top_k)
        for name in ("batch_size", "decode_workers", "post_workers", "in_flight", "engine_failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
        if not (math.isfinite(self.deadline) and self.deadline >= 0):
            raise UsageError(f"deadline is {self.deadline}; it must be a number of seconds, 0 or more")


@dataclass
class RunStats:
    """Counts of a run; at its end `read` is done + failed + dropped, unless it was stopped.

    Attributes:
        read: Frames from the source.
        done: Frames written by every sink.
        failed: Frames that could not be read, or that the engine or a sink failed on.
        dropped: Frames of a live source that came too fast.
        detections: Detections in the frames done.
        seconds: From the start until the last frame was written.
    """

    read: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    detections: int = 0
    seconds: float = 0.0

    @property
    def fps(self) -> float:
        """Frames done per second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


def run_pipeline(
    source: Source,
    engine: Engine,
    sinks: Sequence[Sink],
    settings: PipelineSettings | None = None,
    progress: Callable[[RunStats], None] | None = None,
    stats: RunStats | None = None,
) -> RunStats:
    """Run every frame of `source` through `engine` into all `sinks`, and close source and sinks.

    A frame that fails is logged once and counted, and each sink's `fail` is called in its place. An error
    that ends the whole run (the source fails, a sink cannot write, the engine fails on everything) is raised
    after the finished frames are written.

    Args:
        source: Iterated once, by its own thread.
        engine: Called by `engine.streams` threads.
        sinks: Receive every frame, in order.
        settings: Batching, threads and limits.
        progress: Called in this thread a few times per second and at the end, with the counts so far.
        stats: Updated in place, for callers that need the counts even if an error is raised.

    Returns:
        The counts.

    Raises:
        YolactError: the error that ended the run.
        KeyboardInterrupt: Ctrl-C, after the frames in flight are written; a second one drops these, too.
    """
    run = Run(source, engine, sinks, settings or PipelineSettings(), stats or RunStats())
    interrupted = False
    try:
        run.start()
        while not run.finished.is_set():
            try:
                run.begin()
                run.finished.wait(_TICK)
                if progress:
                    progress(replace(run.stats))
            except KeyboardInterrupt:
                if interrupted:
                    break
                interrupted = True
                log.warning("interrupted: finishing the frames in flight; press Ctrl-C again to stop at once")
                run.stop_reading()
    except BaseException as error:
        run.abort(error)
        raise
    finally:
        if not run.finished.is_set():
            run.abort(None)
        try:
            run.join()
        finally:
            run.close()
    if progress:
        progress(replace(run.stats))
    if interrupted:
        if run.error is not None:
            log.error("%s", run.error)
        raise KeyboardInterrupt
    if run.error is not None:
        raise run.error
    return run.stats
