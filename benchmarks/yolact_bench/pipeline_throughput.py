"""Images per second of the pipeline beside a plain loop over the same images, taking turns.

The loop reads, prepares, predicts and encodes one batch after the other in one thread; the pipeline
overlaps these. Both end in COCO run lengths in memory.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from yolact_bench.protocol import sample_in_turns
from yolact_bench.statistics import mean_interval, paired_ratio
from yolact_runtime import Engine, Result
from yolact_runtime.engine import check_limits
from yolact_runtime.errors import YolactError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.sources.images import read_image

PASS_SECONDS = 1.0  # long enough that filling and emptying the pipeline weighs little
FEWEST, MOST = 16, 1000  # images in a pass
PASSES = 20


class Repeated(Source):
    """`total` frames over a few image files, over and over."""

    def __init__(self, images: Sequence[Path], total: int) -> None:
        self._images, self.total = images, total

    def __iter__(self) -> Iterator[Frame]:
        for index, path in zip(range(self.total or 0), itertools.cycle(self._images), strict=False):
            yield Frame(index, str(path), path, partial(read_image, path))


class RunLengths(Sink):
    """Makes run lengths, counts frames and drops both."""

    def __init__(self) -> None:
        self.frames = 0

    def prepare(self, frame: Frame, image: Any, result: Result) -> None:
        result.rles  # noqa: B018 - computed when first asked for

    def write(self, frame: Frame, prepared: Any) -> None:
        self.frames += 1


def pipeline_throughput(
    engine: Engine,
    images: Sequence[Path],
    batch: int = 1,
    seconds: float = 3.0,
    score_threshold: float = 0.0,
    top_k: int | None = None,
    run_pipeline: Callable[[Source, Engine, Sequence[Sink]], object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Measure both ways with one engine.

    Args:
        engine: It; with several streams the pipeline uses them.
        images: Files, used in turn.
        batch: Images per call of the engine, in both ways.
        seconds: Time for each way; at least five passes of each are made.
        score_threshold: Detections above it get masks.
        top_k: And at most so many of them; None for all that the engine keeps.
        run_pipeline: The pipeline; left out, the runtime's with this batch size and these limits.
        clock: In nanoseconds.

    Returns:
        {"images": in a pass, "batch", "streams", "serial": images per second as {"value", "low", "high"},
        "pipeline": the same, "ratio": the same, how many times faster the pipeline is}.

    Raises:
        YolactError: an image or a call failed, or frames went missing.
        UsageError: a limit out of its range.
    """
    top_k = engine.metadata.max_detections if top_k is None else top_k
    check_limits(score_threshold, top_k)
    if run_pipeline is None:
        run_pipeline = _runtimes(batch, score_threshold, top_k)

    def serial(total: int) -> None:
        frames = iter(Repeated(images, total))
        while some := list(itertools.islice(frames, batch)):
            pictures = [frame.read() for frame in some]
            for result in engine.predict(pictures, score_threshold, top_k):
                result.rles  # noqa: B018 - computed when first asked for

    def pipelined(total: int) -> None:
        sink = RunLengths()
        run_pipeline(Repeated(images, total), engine, [sink])
        if sink.frames != total:
            raise YolactError(f"the pipeline gave {sink.frames} of {total} images; it cannot be measured")

    serial(batch)
    start = clock()
    serial(batch)
    each = max(1, clock() - start) / batch / 1e9
    total = -(-min(MOST, max(FEWEST, round(PASS_SECONDS / each))) // batch) * batch
    ways: dict[str, Callable[[], None]] = {
        "serial": lambda: serial(total),
        "pipeline": lambda: pipelined(total),
    }
    sampled = {name: one.seconds for name, one in sample_in_turns(ways, seconds, PASSES, clock).items()}
    rates = {name: mean_interval(total / taken)._asdict() for name, taken in sampled.items()}
    ratio = paired_ratio(sampled["serial"], sampled["pipeline"])._asdict()
    return {"images": total, "batch": batch, "streams": engine.streams, **rates, "ratio": ratio}


def _runtimes(batch: int, score_threshold: float, top_k: int) -> Callable[..., object]:
    try:
        pipeline = importlib.import_module("yolact_runtime.pipeline")
    except ModuleNotFoundError:
        raise YolactError("this runtime has no pipeline; leave --pipeline out") from None
    settings = pipeline.PipelineSettings(batch_size=batch, score_threshold=score_threshold, top_k=top_k)
    return lambda source, engine, sinks: pipeline.run_pipeline(source, engine, sinks, settings)
