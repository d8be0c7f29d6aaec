"""From a source through an engine into sinks, with every stage in threads of its own."""

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

# Seconds between two reports of progress.
_TICK = 0.2


@dataclass(frozen=True)
class PipelineSettings:
    """How a source is worked through.

    Attributes:
        batch_size: Images in one call of the engine; at most the engine's `max_batch` are taken.
        deadline: Seconds after which a batch goes although it is not full, counted from its oldest image.
        decode_workers: Threads that read, decode and resize.
        post_workers: Threads that run the sinks' `prepare`: run lengths, drawing, encoding.
        score_threshold: Keep detections whose box score is greater, 0..1.
        top_k: Keep at most this many per image.
        drop_late: Throw the oldest waiting frame out when a new one comes and nobody is free; None: where
            the source is live.
        in_flight: Most frames between the start of decoding and the end of writing; None: as many as the
            stages need to keep each other busy.
        engine_failures: Give up when the engine has failed on this many images in a row.

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
class Tally:
    """What became of the frames; at the end `read` is the sum of the next three unless the run was stopped.

    Attributes:
        read: Frames that the source gave.
        done: Written by every sink.
        failed: Left out because they could not be read, or because the engine or a sink failed on them.
        dropped: Too late, of a live source.
        detections: In the frames done.
        seconds: Since the start, until the last frame was written.
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
    progress: Callable[[Tally], None] | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Run every frame of `source` through `engine` into all `sinks`, and close source and sinks.

    A fault in one frame is logged once and counted; each sink's `fail` is told in the frame's place. What
    ends the whole run (the source broke off, a sink cannot write, the engine fails on everything) is raised
    at the end, when what was done has been written.

    Args:
        source: Iterated once, by a thread of its own.
        engine: `engine.streams` threads call it.
        sinks: Get every frame, in the order of the frames.
        settings: Left out, the defaults.
        progress: Called from this thread a few times a second, and at the end, with how far it is.
        tally: Counts into this one, for callers that want the counts also when an error is raised.

    Returns:
        The tally.

    Raises:
        YolactError: what ended the run.
        KeyboardInterrupt: Ctrl-C, after what was under way has been finished and written; a second one
            lets go of that as well.
    """
    run = Run(source, engine, sinks, settings or PipelineSettings(), tally or Tally())
    interrupted = False
    try:
        run.start()
        while not run.finished.is_set():
            try:
                run.begin()
                run.finished.wait(_TICK)
                if progress:
                    progress(replace(run.tally))
            except KeyboardInterrupt:
                if interrupted:
                    break
                interrupted = True
                log.warning("interrupted: finishing what is under way; Ctrl-C again stops at once")
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
        progress(replace(run.tally))
    if interrupted:
        if run.error is not None:
            log.error("%s", run.error)
        raise KeyboardInterrupt
    if run.error is not None:
        raise run.error
    return run.tally
