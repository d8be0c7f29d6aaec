"""What is measured of an engine, and the report of it.

Engine alone is `engine.detect` on a batch that is ready in memory. End to end is from image files to COCO
run lengths, and its parts are

    decode      image files to arrays
    preprocess  arrays to the network's input
    detect      the engine
    masks       masks at image size, as run lengths

A report is JSON of this form (times in milliseconds per run, that is per batch; `null` where unknown):

    {"schema": "yolact-bench/1",
     "created": "2026-01-31T12:00:00+00:00",
     "machine": {"cpu", "cores", "system", "python", "versions": {package: version}},
     "settings": {"batch", "seconds", "runs", "threads", "score_threshold", "top_k", "images"},
     "engines": [{"name", "backend", "config", "precision", "input_size",
                  "detections": mean per image,
                  "detect": TIMING, "detect_ratio": times as fast as the first engine,
                  "end_to_end": TIMING, "end_to_end_ratio",
                  "stages": {stage: TIMING},
                  "cold": {"import_ms", "load_ms", "first_ms", "peak_mib"} or null}]}

    TIMING = {"runs", "median", "p90", "p95", "p99", "mean", "std", "min", "throughput": images per second}

The schema's number grows when a field changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_bench.machine import describe_machine
from yolact_bench.protocol import Timing, ratios, take_turns
from yolact_runtime import Detections, Engine
from yolact_runtime.errors import UsageError
from yolact_runtime.files import atomic_path
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import read_image

SCHEMA = "yolact-bench/1"
STAGES = ("decode", "preprocess", "detect", "masks")
PREPARED = 8  # different batches that the engine alone is given in turn


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batch: Images per run.
        seconds: Time for each engine, and
        runs: most runs of it, whichever comes first; for the engine alone and end to end each.
        threads: CPU threads the engines were told to use; None where left to them.
        score_threshold: End to end, detections above it get masks.
        top_k: And at most so many of them; None for all that the engine keeps.
    """

    batch: int = 1
    seconds: float = 3.0
    runs: int = 200
    threads: int | None = None
    score_threshold: float = 0.0
    top_k: int | None = None


@dataclass(frozen=True)
class EngineReport:
    """The figures of one engine; see the module for the meaning."""

    name: str
    backend: str
    config: str
    precision: str
    input_size: int
    detections: float
    detect: Timing
    detect_ratio: float
    end_to_end: Timing
    end_to_end_ratio: float
    stages: dict[str, Timing]
    cold: dict[str, float | None] | None


@dataclass(frozen=True)
class Report:
    """Everything of one run; `to_json` gives the form documented in this module."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    engines: list[EngineReport]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and None."""
        return {"schema": SCHEMA, **asdict(self)}


def measure(
    engines: Mapping[str, Engine],
    images: Sequence[Path],
    settings: Settings = Settings(),
    cold: Mapping[str, dict[str, float | None] | None] | None = None,
) -> Report:
    """Measure engines against each other, taking turns.

    Args:
        engines: By the name they have in the report; the first one is what ratios refer to.
        images: Files; every engine gets the same ones in the same order, over and over.
        settings: How to measure.
        cold: Start-up costs taken before, by engine.

    Raises:
        UsageError: a batch that an engine does not take, or no images.
        YolactError: an image cannot be read, or an engine failed.
    """
    if not images:
        raise UsageError("no images to measure with")
    for name, engine in engines.items():
        low, high = engine.metadata.min_batch, engine.metadata.max_batch
        if not low <= settings.batch <= high:
            raise UsageError(f"{name} takes batches of {low} to {high} images, not {settings.batch}")
    detect_times, _ = take_turns(
        {name: _alone(engine, images, settings.batch) for name, engine in engines.items()},
        settings.seconds,
        settings.runs,
    )
    whole_times, runs = take_turns(
        {name: _end_to_end(engine, images, settings) for name, engine in engines.items()},
        settings.seconds,
        settings.runs,
    )
    detect = {name: Timing.of(times, settings.batch) for name, times in detect_times.items()}
    whole = {name: Timing.of(times, settings.batch) for name, times in whole_times.items()}
    detect_ratios, whole_ratios = ratios(detect), ratios(whole)
    reports = []
    for name, engine in engines.items():
        stages = np.array([run.seconds for run in runs[name]])  # (runs, stages)
        reports.append(
            EngineReport(
                name=name,
                backend=engine.name,
                config=engine.metadata.config,
                precision=engine.metadata.precision,
                input_size=engine.metadata.input_size,
                detections=float(np.mean([run.detections for run in runs[name]])) / settings.batch,
                detect=detect[name],
                detect_ratio=detect_ratios[name],
                end_to_end=whole[name],
                end_to_end_ratio=whole_ratios[name],
                stages={
                    stage: Timing.of(column, settings.batch)
                    for stage, column in zip(STAGES, stages.T, strict=True)
                },
                cold=(cold or {}).get(name),
            )
        )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(created, describe_machine(), {**asdict(settings), "images": len(images)}, reports)


@dataclass(frozen=True)
class _Run:
    """One end-to-end run: time of each stage in seconds, and how many instances were found."""

    seconds: tuple[float, ...]
    detections: int


class _Watched(Engine):
    """An engine that notes when its detection began and ended."""

    def __init__(self, engine: Engine) -> None:
        self.metadata = engine.metadata
        self.engine = engine
        self.began = self.ended = 0.0

    def detect(self, batch: np.ndarray) -> Detections:
        self.began = time.perf_counter()
        found = self.engine.detect(batch)
        self.ended = time.perf_counter()
        return found


def _batches(images: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """Endless batches over the images, in order, starting again at the end."""
    endless = itertools.cycle(images)
    while True:
        yield list(itertools.islice(endless, size))


def _alone(engine: Engine, images: Sequence[Path], size: int) -> Callable[[], object]:
    meta = engine.metadata
    different = min(PREPARED, -(-len(images) // size))
    prepared = [
        resize_batch([read_image(path) for path in batch], meta.input_size, meta.input_dtype)
        for batch in itertools.islice(_batches(images, size), different)
    ]
    turn = itertools.cycle(prepared)

    def run() -> None:
        engine.detect(next(turn))

    return run


def _end_to_end(engine: Engine, images: Sequence[Path], settings: Settings) -> Callable[[], _Run]:
    watched = _Watched(engine)
    batches = _batches(images, settings.batch)
    top_k = settings.top_k or engine.metadata.max_detections

    def run() -> _Run:
        paths = next(batches)
        start = time.perf_counter()
        pictures = [read_image(path) for path in paths]
        decoded = time.perf_counter()
        results = watched.predict(pictures, settings.score_threshold, top_k)
        count = sum(len(result.rles) for result in results)
        end = time.perf_counter()
        marks = (start, decoded, watched.began, watched.ended, end)
        return _Run(tuple(b - a for a, b in itertools.pairwise(marks)), count)

    return run


def made_image(path: Path, height: int = 480, width: int = 640) -> None:
    """Write a picture of coloured discs, the same one every time, for runs without images."""
    random = np.random.default_rng(0)
    picture = np.full((height, width, 3), 96, np.uint8)
    for _ in range(40):
        centre = random.integers(0, [width, height]).tolist()
        colour = random.integers(0, 256, 3).tolist()
        cv2.circle(picture, centre, int(random.integers(10, 90)), colour, -1, cv2.LINE_AA)
    _, data = cv2.imencode(path.suffix, picture)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
