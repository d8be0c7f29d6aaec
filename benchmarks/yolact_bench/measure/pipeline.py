"""Images per second of the pipeline against a plain loop over the same images, interleaved.

The loop reads, prepares, predicts and encodes one batch after the other in one thread, with an engine opened
for latency: one call at a time has all threads. The pipeline overlaps these, with an engine opened for
throughput: its streams share the threads, and a single call would be slow, so the loop must not use
it. Both end in COCO RLE masks in memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from yolact_bench.measure.candidate import batches
from yolact_bench.measure.protocol import take_turns
from yolact_bench.measure.statistics import mean_interval, paired_ratio
from yolact_runtime import Engine, Result
from yolact_runtime import pipeline as runtime
from yolact_runtime.engines.threads import default_workers
from yolact_runtime.engines.tiles import TiledEngine
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.frames import Frame, Sink
from yolact_runtime.sources.images import ImageSource, read_image

PASS_SECONDS = 1.0  # long enough that filling and emptying the pipeline matters little
FEWEST, MOST = 16, 1000  # images in a pass
PASSES = 20


class RleSink(Sink):
    """Encodes RLE masks and drops them."""

    def prepare(self, frame: Frame, image: Any, result: Result) -> None:
        result.rles  # noqa: B018 - computed when first asked for

    def write(self, frame: Frame, prepared: Any) -> None:
        pass


def pipeline_throughput(
    latency: Engine,
    throughput: Engine,
    images: Sequence[Path],
    batch: int = 1,
    seconds: float = 3.0,
    score_threshold: float = 0.0,
    top_k: int | None = None,
    classes: Sequence[str] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Measure both with one model.

    Args:
        latency: Engine of the loop; on a CPU opened with one stream.
        throughput: Engine of the pipeline, opened with `streams="auto"`; may be the same one.
        images: Files, used in turn, `batch` per call of either engine.
        seconds: Time for each; at least five passes of each are measured.
        score_threshold, top_k: Which detections get masks; None for all that the engine keeps.
        classes: Names or category ids of the classes to find; None for all.
        clock: In nanoseconds.

    Returns:
        {"images": in a pass, "batch", "streams" and "workers" (to decode, and as many to encode) of the
        pipeline, "serial_threads" and "threads": of both engines, None if unknown,
        "serial": images per second as {"value", "low", "high"}, "pipeline": the same, "ratio": the same, how
        many times faster the pipeline is}.

    Raises:
        YolactError: an image or a call failed, or frames went missing.
        UsageError: a limit out of its range, or the loop's engine has several streams on a CPU.
    """
    top_k = latency.metadata.max_detections if top_k is None else top_k
    if shares_threads(latency):
        raise UsageError(f"the loop's engine has {latency.streams} streams; open it with streams=1")
    workers = default_workers()
    settings = runtime.PipelineSettings(
        batch, decode_workers=workers, post_workers=workers, score_threshold=score_threshold, top_k=top_k,
        classes=classes,
    )  # fmt: skip
    if isinstance(throughput, TiledEngine):  # as yolact-infer has it: large images wait in memory
        settings = replace(settings, in_flight=batch * throughput.streams + 2)

    def serial(total: int) -> None:
        for paths in itertools.islice(batches(images, batch), total // batch):
            pictures = [read_image(path) for path in paths]
            for result in latency.predict(pictures, score_threshold, top_k, classes):
                result.rles  # noqa: B018 - computed when first asked for

    def pipelined(total: int) -> None:
        source = ImageSource(list(itertools.islice(itertools.cycle(images), total)))
        done = runtime.run_pipeline(source, throughput, [RleSink()], settings=settings).done
        if done != total:
            raise YolactError(f"the pipeline gave {done} of {counted(total, 'image')}; it cannot be measured")

    serial(batch)
    start = clock()
    serial(batch)
    each = max(1, clock() - start) / batch / 1e9
    total = -(-min(MOST, max(FEWEST, round(PASS_SECONDS / each))) // batch) * batch
    tasks = {"serial": partial(serial, total), "pipeline": partial(pipelined, total)}
    times, _ = take_turns(tasks, seconds, PASSES, clock)
    return {
        "images": total,
        "batch": batch,
        "streams": throughput.streams,
        "workers": workers,
        "serial_threads": latency.threads,
        "threads": throughput.threads,
        **{name: mean_interval(total / taken)._asdict() for name, taken in times.items()},
        "ratio": paired_ratio(times["serial"], times["pipeline"])._asdict(),
    }


def shares_threads(engine: Engine) -> bool:
    """Whether a call has fewer CPU threads than it could, because other calls share them."""
    return engine.streams > 1 and engine.threads is not None
