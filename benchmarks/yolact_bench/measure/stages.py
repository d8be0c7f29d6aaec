"""Our engines as candidates, and where the time of a run goes.

A stage begins where the one before it ends, so they add up to the run:

    decode      image files to arrays
    preprocess  arrays to the network's input
    upload      input to the device
    network     the network, and everything that an engine cannot separate from it
    detect      decoding of boxes and NMS, if they happen outside the graph
    download    results to the host
    masks       contours of the masks at image size
    rle         COCO RLE of these
    merge       of tiles: matching what was found in several, and cutting images

With tiles, stages take turns, so that each is the sum over the tiles; resizing tiles is preprocessing.

An engine reports its stages to `Engine.stage_timer`. One that works on a device can report more than the
host's clock sees: `stage_times(images, score_threshold, top_k)` runs one batch stage by stage and returns
milliseconds by the device's events. It is called before measuring, since such a run is slower, and its
proportions divide the time that the host measures.
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

from yolact_bench.measure.candidate import Candidate, Run, batches, different_batches, in_order
from yolact_runtime import Engine
from yolact_runtime.engines.base import check_limits
from yolact_runtime.engines.tiles import TiledEngine
from yolact_runtime.errors import UsageError, YolactError, counted
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

# When each stage of a run began and ended, in nanoseconds; several times if it runs tile by tile.
_Spans = dict[str, list[tuple[int, int]]]
DEVICE_RUNS = 10  # stage by stage; the first two warm up


class EngineCandidate(Candidate):
    """One of our engines, which is closed with this; `path` and `options` serve to open it again.

    `classes` are the names or category ids of those to find; None for all. `tiles` are the arguments that the
    engine was `tiled` with; None if it was not.

    Raises:
        UsageError: a limit out of its range, or a class that the engine does not have.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        score_threshold: float = 0.0,
        top_k: int | None = None,
        path: str = "",
        options: Mapping[str, Any] | None = None,
        classes: Sequence[str | int] | None = None,
        tiles: Mapping[str, Any] | None = None,
    ) -> None:
        meta = engine.metadata
        self.name, self.engine, self.path, self.options = name, engine, path, dict(options or {})
        self.backend, self.config, self.input_size = engine.name, meta.config, meta.input_size
        self.precision, self.weights_sha256 = engine.precision, meta.weights_sha256
        if engine.remote:
            self.note = "on a server: all times include the network, those of the network only also masks"
        self._limits = score_threshold, meta.max_detections if top_k is None else top_k
        check_limits(*self._limits)
        self.tiles = tiles
        self.classes = engine.class_indices(classes, "--classes")
        # Engines of other packages may not take classes.
        self._only = () if self.classes is None else (self.classes,)
        self._by_events: dict[str, float] = {}

    def prepare(self, images: Sequence[Path], batch: int) -> None:
        """Decode and resize the batches, and ask the engine for the stages on its device."""
        meta = self.engine.metadata
        if not meta.min_batch <= batch <= meta.max_batch:
            allowed = f"{meta.min_batch} to {meta.max_batch}"
            raise UsageError(f"{self.name} takes batches of {allowed} images, not {batch}")
        ready: list[tuple[Any, list[tuple[int, int]]]] = []
        for paths in different_batches(images, batch):
            pictures = [read_image(path) for path in paths]
            sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
            ready.append((resize_batch(pictures, meta.input_size, meta.input_dtype), sizes))
        tiles = self.engine if isinstance(self.engine, TiledEngine) else None
        if tiles and not any(tiles.cuts(size) for _, sizes in ready for size in sizes):
            raise UsageError(
                f"{self.name}: none of the first {counted(len(ready) * batch, 'image')} is larger than its"
                f" {tiles.name.rpartition(', ')[2]}; measure without --tile, or with larger images"
            )
        self._prepared = itertools.cycle(ready)
        self._by_events = self._device_stages(next(batches(images, batch)))

    def network_only(self) -> None:
        batch, sizes = next(self._prepared)
        engine = self.engine.untiled if isinstance(self.engine, TiledEngine) else self.engine
        if engine.remote:  # which returns instances: its masks count as well
            engine.predict_prepared(batch, sizes, *self._limits, *self._only)
        else:
            engine.detect(batch, *self._only)

    def end_to_end(self, paths: Sequence[Path]) -> Run:
        """Run the engine as its users do, and time each stage."""
        engine, clock = self.engine, time.perf_counter_ns
        with _timed_stages(engine) as spans:
            start = clock()
            images = [read_image(path) for path in paths]
            decoded = clock()
            prepared = [engine.prepare(image) for image in images]
            ready = clock()
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            results = engine.predict_prepared(prepared, sizes, *self._limits, *self._only)
            returned = clock()
            for result in results:
                result.regions  # noqa: B018 - computed when first asked for
            masked = clock()
            count = sum(len(result.rles) for result in results)
            end = clock()
        marks = start, decoded, ready, returned, masked, end
        taken = _tile_stages(spans, *marks) if self.tiles else _stages(spans, *marks)
        seconds = {name: ns / 1e9 for name, ns in taken.items() if name != "detect" or name in spans}
        return Run(_divided(seconds, self._by_events) if self._by_events else seconds, count)

    def _device_stages(self, paths: Sequence[Path]) -> dict[str, float]:
        """Median seconds of each stage by the device's events; empty if the engine cannot report them."""
        stage_times: Callable[..., Mapping[str, float]] | None = getattr(self.engine, "stage_times", None)
        if stage_times is None:
            return {}
        images = [read_image(path) for path in paths]
        try:
            taken = [stage_times(images, *self._limits, *self._only) for _ in range(DEVICE_RUNS)][2:]
        except YolactError as error:
            log.info("%s: stages by the host's clock only: %s", self.name, error)
            return {}
        return {stage: float(np.median([run[stage] for run in taken])) / 1000 for stage in taken[0]}

    def to_coco(self, path: Path, image_id: int) -> list[dict[str, Any]]:
        result = self.engine.predict([read_image(path)], 0.0, self.engine.metadata.max_detections)[0]
        return result.to_coco(image_id)

    def close(self) -> None:
        self.engine.close()


def _stages(
    spans: _Spans, start: int, decoded: int, ready: int, returned: int, masked: int, end: int
) -> dict[str, int]:
    """Nanoseconds of each stage, from what the engine reports and the ends of what surrounds it."""
    # Stacking the batch comes before the network, dropping what is below the threshold after it.
    began, ended = spans.get("network", [(ready, returned)])[-1]
    detect_began, detect_ended = spans.get("detect", [(ended, ended)])[-1]
    return {
        "decode": decoded - start,
        "preprocess": began - decoded,
        "network": detect_began - began + ended - detect_ended,
        "detect": detect_ended - detect_began,
        "masks": masked - ended,
        "rle": end - masked,
    }


def _tile_stages(
    spans: _Spans, start: int, decoded: int, ready: int, returned: int, masked: int, end: int
) -> dict[str, int]:
    """Same as `_stages`, of an engine that runs tiles: sums over these, and the rest is merging."""
    sums = {stage: sum(ended - began for began, ended in times) for stage, times in spans.items()}
    resized, network, detect, masks = (
        sums.get(stage, 0) for stage in ("preprocess", "network", "detect", "masks")
    )
    return {
        "decode": decoded - start,
        "preprocess": ready - decoded + resized,
        "network": network - detect,
        "detect": detect,
        "masks": masks + masked - returned,
        "rle": end - masked,
        "merge": returned - ready - resized - network - masks,
    }


@contextlib.contextmanager
def _timed_stages(engine: Engine) -> Iterator[_Spans]:
    """Note when the stages of one call begin and end, in nanoseconds of `perf_counter_ns`."""
    spans: _Spans = {}

    @contextlib.contextmanager
    def timer(stage: str) -> Iterator[None]:
        began = time.perf_counter_ns()
        yield
        spans.setdefault(stage, []).append((began, time.perf_counter_ns()))

    engine.stage_timer = timer
    try:
        yield spans
    finally:
        del engine.stage_timer


def _divided(host: Mapping[str, float], device: Mapping[str, float]) -> dict[str, float]:
    """The host's stages, with the time between them divided as the device's events report.

    Time that the events do not cover (launching, waiting) belongs to the network; if streams overlap, all
    device stages shrink by the same factor.
    """
    inner = {stage for stage in host if stage in ("network", "detect") or stage in device}
    spent, total = sum(host[stage] for stage in inner), sum(device.values())
    if total > spent:
        reported = {stage: taken * spent / total for stage, taken in device.items()}
    else:
        reported = {**device, "network": device.get("network", 0.0) + spent - total}
    both = {**{stage: taken for stage, taken in host.items() if stage not in inner}, **reported}
    return {stage: both[stage] for stage in in_order(both)}
