"""Settings of a pipeline, and the counts of its run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real

from yolact_runtime.engines.base import check_limits, check_whole
from yolact_runtime.errors import UsageError
from yolact_runtime.tracks import TrackSettings


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
        track: Give instances their tracks; None: no tracks.
        classes: Names or category ids of the classes to find, as for `Engine.predict`; None for all.
        log_failures: Log each frame that fails; otherwise only the sinks hear of it.

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
    track: TrackSettings | None = None
    classes: Sequence[str | int] | None = None
    log_failures: bool = True

    def __post_init__(self) -> None:
        check_limits(self.score_threshold, self.top_k)
        for name in ("batch_size", "decode_workers", "post_workers", "in_flight", "engine_failures"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value)
        if not (isinstance(self.deadline, Real) and math.isfinite(self.deadline) and self.deadline >= 0):
            raise UsageError(f"deadline is {self.deadline}; it must be a number of seconds, 0 or more")
        if not isinstance(self.track, TrackSettings | None):
            raise UsageError(f"track is {self.track!r}; it must be TrackSettings(), or None for no tracks")


@dataclass
class SourceStats:
    """Counts of one source: as in `RunStats`."""

    done: int = 0
    failed: int = 0
    detections: int = 0


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
        sources: The same for each source, by `Frame.source`.
    """

    read: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    detections: int = 0
    seconds: float = 0.0
    sources: dict[int, SourceStats] = field(default_factory=dict)

    def count(self, source: int, detections: int | None) -> None:
        """Count a frame of a source with its detections; None for one that failed."""
        for stats in (self, self.sources.setdefault(source, SourceStats())):
            stats.done += detections is not None
            stats.failed += detections is None
            stats.detections += detections or 0

    def of(self, sources: Iterable[int]) -> SourceStats:
        """The counts of some sources together."""
        counts = [self.sources[source] for source in sources if source in self.sources]
        return SourceStats(
            sum(one.done for one in counts),
            sum(one.failed for one in counts),
            sum(one.detections for one in counts),
        )

    @property
    def fps(self) -> float:
        """Frames done per second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0
