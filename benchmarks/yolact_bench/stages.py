"""Our engines as contenders, and where the time of a run goes.

A stage begins where the one before it ends, so they add up to the run:

    decode      image files to arrays
    preprocess  arrays to the network's input
    upload      input to the device
    network     the network, and all that an engine cannot tell apart from it
    detect      decoding of boxes and NMS, where they happen outside the graph
    download    results to the host
    masks       outlines of the masks at image size
    rle         COCO run lengths of them

An engine that works on a device can tell more than the host's clock: `stage_times(images, score_threshold,
top_k)` runs one batch stage by stage and returns milliseconds by the device's events. It is asked before
measuring, since such a run is slower, and what the host saw is shared out accordingly.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.contender import Contender, Run
from yolact_runtime import Engine
from yolact_runtime.engines.base import check_limits
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

STAGES = ("decode", "preprocess", "upload", "network", "detect", "download", "masks", "rle")
PREPARED = 8  # different batches that the engine alone is given in turn
DEVICE_RUNS = 10  # stage by stage; the first two warm up


class EngineContender(Contender):
    """An engine of ours.

    Args:
        name: In tables.
        engine: It; closed with this.
        score_threshold: End to end, detections above it get masks.
        top_k: And at most so many of them; None for all that the engine keeps.

    Attributes:
        engine: It.
        weights_sha256: Of the checkpoint it was exported from; empty where unknown.

    Raises:
        UsageError: a limit out of its range.
    """

    def __init__(
        self, name: str, engine: Engine, score_threshold: float = 0.0, top_k: int | None = None
    ) -> None:
        meta = engine.metadata
        self.name = name
        self.engine = engine
        self.backend = engine.name
        self.config = meta.config
        self.precision = getattr(engine, "precision", None) or meta.precision
        self.input_size = meta.input_size
        self.weights_sha256 = meta.weights_sha256
        self._limits = score_threshold, meta.max_detections if top_k is None else top_k
        check_limits(*self._limits)
        self._by_events: dict[str, float] = {}

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        meta = self.engine.metadata
        if not meta.min_batch <= batch <= meta.max_batch:
            raise UsageError(
                f"{self.name} takes batches of {meta.min_batch} to {meta.max_batch} images, not {batch}"
            )
        different = min(PREPARED, -(-len(images) // batch))
        self._prepared = itertools.cycle(
            [
                resize_batch([read_image(path) for path in paths], meta.input_size, meta.input_dtype)
                for paths in itertools.islice(batches(images, batch), different)
            ]
        )
        self._by_events = self._device_stages(next(batches(images, batch)))

    def alone(self) -> None:
        self.engine.detect(next(self._prepared))

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        engine = self.engine
        with _watched(engine) as watch:
            start = time.perf_counter_ns()
            images = [read_image(path) for path in paths]
            decoded = time.perf_counter_ns()
            prepared = [engine.prepare(image) for image in images]
            ready = time.perf_counter_ns()
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            results = engine.predict_prepared(prepared, sizes, *self._limits)
            returned = time.perf_counter_ns()
            for result in results:
                result.regions  # noqa: B018 - computed when first asked for
            traced = time.perf_counter_ns()
            count = sum(len(result.rles) for result in results)
            end = time.perf_counter_ns()
        # Stacking the batch comes before `detect`, dropping what is below the threshold after it.
        began, ended = watch.get("network", (ready, returned))
        head_began, head_ended = watch.get("detect", (ended, ended))
        spans = {
            "decode": decoded - start,
            "preprocess": began - decoded,
            "network": head_began - began,
            "detect": head_ended - head_began,
            "masks": traced - ended,
            "rle": end - traced,
        }
        spans["network"] += ended - head_ended
        if "detect" not in watch:
            del spans["detect"]
        seconds = {stage: taken / 1e9 for stage, taken in spans.items()}
        if self._by_events:
            seconds = _by_device(seconds, self._by_events)
        return Run(seconds, count)

    def _device_stages(self, paths: Sequence[Path]) -> dict[str, float]:
        """Median seconds of each stage by the device's events; empty where the engine cannot tell."""
        stage_times: Callable[..., Mapping[str, float]] | None = getattr(self.engine, "stage_times", None)
        if stage_times is None:
            return {}
        images = [read_image(path) for path in paths]
        try:
            taken = [stage_times(images, *self._limits) for _ in range(DEVICE_RUNS)][2:]
        except YolactError as error:
            log.info("%s: stages by the host's clock only: %s", self.name, error)
            return {}
        return {stage: float(np.median([run[stage] for run in taken])) / 1000 for stage in taken[0]}

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
        result = self.engine.predict([read_image(path)], 0.0, self.engine.metadata.max_detections)[0]
        return result.to_coco(image_id)

    def close(self) -> None:
        self.engine.close()


def batches(images: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """Endless batches over the images, in order, starting again at the end."""
    endless = itertools.cycle(images)
    while True:
        yield list(itertools.islice(endless, size))


@contextlib.contextmanager
def _watched(engine: Engine) -> Iterator[dict[str, tuple[int, int]]]:
    """Note when the parts of one call began and ended, in nanoseconds of `perf_counter_ns`.

    `network` is `Engine.detect`; `detect` within it is what happens to the outputs of a graph without
    detection. What an engine does not have or does not call is left out.
    """
    watch: dict[str, tuple[int, int]] = {}
    points: list[tuple[Any, str, str]] = [(engine, "detect", "network")]
    outputs = getattr(engine, "_outputs", None)
    if engine.metadata.detect == "runtime" and hasattr(outputs, "detections"):
        points.append((outputs, "detections", "detect"))
    with contextlib.ExitStack() as stack:
        for owner, method, stage in points:
            setattr(owner, method, _timed(getattr(owner, method), watch, stage))
            stack.callback(delattr, owner, method)
        yield watch


def _timed(method: Callable[..., Any], watch: dict[str, tuple[int, int]], stage: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        began = time.perf_counter_ns()
        value = method(*arguments)
        watch[stage] = began, time.perf_counter_ns()
        return value

    return run


def _by_device(host: Mapping[str, float], device: Mapping[str, float]) -> dict[str, float]:
    """The host's stages with those in between replaced by the device's, adding up to the same.

    What the events do not cover (launching, waiting) is the network's; where streams overlap, all
    shrink alike.
    """
    inner = {stage for stage in host if stage in ("network", "detect") or stage in device}
    spent = sum(host[stage] for stage in inner)
    told = {stage: device[stage] for stage in STAGES if stage in device}
    total = sum(told.values())
    if total > spent:
        told = {stage: taken * spent / total for stage, taken in told.items()}
    else:
        told["network"] = told.get("network", 0.0) + spent - total
    both = {**{stage: taken for stage, taken in host.items() if stage not in inner}, **told}
    return {stage: both[stage] for stage in STAGES if stage in both}
