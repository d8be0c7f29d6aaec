"""`run_pipeline`: from a source through an engine into sinks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from yolact_runtime.engines.base import Engine
from yolact_runtime.frames import Sink, Source
from yolact_runtime.pipeline.settings import PipelineSettings, RunStats
from yolact_runtime.pipeline.stages import Run

log = logging.getLogger(__name__)

# Seconds between progress reports.
_TICK = 0.2


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
        UsageError: the engine does not have a class of the settings; then nothing is read, written or closed.
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
