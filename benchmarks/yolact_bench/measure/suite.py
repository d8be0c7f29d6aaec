"""What is measured of candidates, and the report of it.

"Network only" is the network, and the detection that belongs to it, on a batch that is ready in memory.
"End to end" is from image files to COCO RLE masks; its parts are the stages of `measure.stages`.

`Report.to_json` has the form that `report/schema.json` describes (times in milliseconds per run,
that is per batch). The schema's number grows when a field changes its meaning or goes away, not when one is
added.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from yolact_bench.measure.candidate import KINDS, Candidate, Run, batches, in_order
from yolact_bench.measure.checks import report_problems
from yolact_bench.measure.machine import describe_machine
from yolact_bench.measure.monitor import Conditions, Monitor
from yolact_bench.measure.protocol import Sampled, Timing, cpu_threads, sample_in_turns
from yolact_bench.measure.statistics import Interval, mean_interval, paired_ratio
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, read_json
from yolact_runtime.metadata import InputSize

log = logging.getLogger(__name__)

SCHEMA = "yolact-bench/2"
T = TypeVar("T")
_DESCRIPTION = ("name", "backend", "config", "precision", "input_size", "note", "weights_sha256", "licence")


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    batches: tuple[int, ...] = (1,)  # images per run, one size after the other
    seconds: float = 3.0  # for each candidate, batch size and kind of run
    runs: int = 200  # at most, within these seconds
    threads: int | None = None  # CPU threads of the engines, OpenCV and PyTorch; None for their choice
    score_threshold: float = 0.0  # end to end, detections above it get masks
    top_k: int | None = None  # at most this many of them; None for all that the engine keeps
    classes: tuple[str, ...] | None = None  # names or category ids of those to find; None for all
    tiles: dict[str, Any] | None = None  # how `tiled` cuts large images; None for whole images

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            sizes = ", ".join(map(str, self.batches))
            raise UsageError(f"batch sizes {sizes}: each must be 1 or more and given once")


@dataclass(frozen=True)
class Measured(Timing):
    """Statistics with the samples behind them: "measured" in `report/schema.json`."""

    warm_up: int
    mean_interval: tuple[float, float]
    ratio: Interval | None
    samples_us: list[int]
    starts_ms: list[int]


@dataclass(frozen=True)
class BatchReport:
    """One candidate at one batch size: "batch" in `report/schema.json`."""

    batch: int
    detections: float
    network_only: Measured
    end_to_end: Measured
    stages: dict[str, Timing]
    cpu_ms: float


@dataclass(frozen=True)
class EngineReport:
    """The figures of one candidate, whose attributes it repeats: "engine" in `report/schema.json`."""

    name: str
    backend: str
    config: str
    precision: str
    input_size: InputSize | None
    note: str
    weights_sha256: str
    batches: list[BatchReport]
    cold: dict[str, float | None] | None = None
    accuracy: dict[str, Any] | None = None
    pipeline: dict[str, Any] | None = None
    roofline: dict[str, Any] | None = None
    licence: str = ""
    agreement: dict[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """Everything of one run."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    conditions: Conditions
    engines: list[EngineReport]

    def rows(self, batch: int | None = None) -> list[tuple[EngineReport, BatchReport]]:
        """Every engine at one or every batch size that it takes, by batch size, then in the given order."""
        sizes = self.settings["batches"] if batch is None else [batch]
        every = [(engine, one) for engine in self.engines for one in engine.batches]
        return [(engine, one) for size in sizes for engine, one in every if one.batch == size]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and None."""

        def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
            pairs = ((KINDS.get(key, key), value) for key, value in fields)
            return {key: value._asdict() if isinstance(value, Interval) else value for key, value in pairs}

        return {"schema": SCHEMA, **asdict(self, dict_factory=plain)}

    def write_json(self, path: str | Path) -> None:
        """Write it as JSON, with lists of numbers on one line each."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        # Strings hold no bare line breaks, so this matches lists only.
        text = re.sub(r"\[\n[\s\d.,eE+nul-]*\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report that `yolact-bench --json` wrote.

    Raises:
        YolactError: it cannot be read, is not a report, or has values that no report has; names the field.
        UsageError: it has another version of the schema.
    """
    content = read_json(path, "report")
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or not schema.startswith("yolact-bench/"):
        raise YolactError(
            f"report {path} is not one of yolact-bench: its schema is {repr(schema)[:40]}, not {SCHEMA!r}"
        )
    if schema != SCHEMA:
        raise UsageError(
            f"report {path} has schema {schema[:40]!r}; this version reads {SCHEMA}: measure again"
        )
    for problem in report_problems(content):
        raise YolactError(f"report {path} is damaged: {problem}; measure again")
    return content


def measure(
    candidates: Sequence[Candidate], images: Sequence[Path], settings: Settings = Settings()
) -> Report:
    """Measure candidates, which have unique names, against each other, interleaved.

    All get the same images in the same order, over and over; ratios refer to the first candidate.

    Raises:
        UsageError: no images, two candidates with one name, or one that takes none of the batch sizes.
        YolactError: an image cannot be read, or a candidate failed.
    """
    if not images:
        raise UsageError("no images to measure with")
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} engines are called {name}; give them names: E:name=NAME")
    found: dict[str, list[BatchReport]] = {name: [] for name in names}
    refusals: dict[str, UsageError] = {}
    with cpu_threads(settings.threads), Monitor() as monitor:
        for batch in settings.batches:
            ready = []
            for candidate in candidates:
                try:
                    candidate.prepare(images, batch)
                    ready.append(candidate)
                except UsageError as error:
                    refusals[candidate.name] = error
                    if batch == settings.batches[-1] and not found[candidate.name]:
                        raise
            if ready:
                log.info("measuring %s at batch %d", ", ".join(one.name for one in ready), batch)
                measured = _measure_batch(ready, names[0], images, batch, settings, monitor.began_ns)
                for name, one in measured.items():
                    found[name].append(one)
    missing = [f"{refusal}; the report has no such figures of {name}" for name, refusal in refusals.items()]
    for warning in [*missing, *monitor.conditions.warnings]:
        log.warning("%s", warning)
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=describe_machine(),
        settings=_as_json(settings, len(images)),
        conditions=monitor.conditions,
        engines=[
            EngineReport(batches=found[one.name], **{key: getattr(one, key) for key in _DESCRIPTION})
            for one in candidates
        ],
    )


def _as_json(settings: Settings, images: int) -> dict[str, Any]:
    """The settings in the report; `classes` and `tiles` only if there are some."""
    values = {**asdict(settings), "batches": list(settings.batches), "images": images}
    del values["classes"], values["tiles"]
    chosen = {"classes": settings.classes and list(settings.classes), "tiles": settings.tiles}
    return values | {name: value for name, value in chosen.items() if value}


def _measure_batch(
    ready: Sequence[Candidate], first: str, images: Sequence[Path], batch: int, settings: Settings, began: int
) -> dict[str, BatchReport]:
    """The figures of one batch size, by name; `first` is the candidate that ratios refer to."""
    limits = settings.seconds, settings.runs
    network = sample_in_turns({one.name: one.network_only for one in ready}, *limits)
    whole = sample_in_turns({one.name: _end_to_end(one, images, batch) for one in ready}, *limits)
    return {
        name: BatchReport(
            batch=batch,
            detections=float(np.mean([run.detections for run in sampled.values])) / batch,
            network_only=_measured(network[name], network.get(first), batch, began),
            end_to_end=_measured(sampled, whole.get(first), batch, began),
            stages={
                stage: Timing.of(np.array([run.seconds.get(stage, 0.0) for run in sampled.values]), batch)
                for stage in in_order(stage for run in sampled.values for stage in run.seconds)
            },
            cpu_ms=Timing.of(np.array([run.cpu_seconds for run in sampled.values], np.float64)).median,
        )
        for name, sampled in whole.items()
    }


def _end_to_end(candidate: Candidate, images: Sequence[Path], batch: int) -> Callable[[], Run]:
    """A task that runs a candidate on the next batch of files, and notes the CPU time of this process."""
    turn = batches(images, batch)

    def task() -> Run:
        start = time.process_time()
        run = candidate.end_to_end(next(turn))
        return run if run.cpu_seconds is not None else replace(run, cpu_seconds=time.process_time() - start)

    return task


def _measured(sampled: Sampled[T], first: Sampled[T] | None, batch: int, began: int) -> Measured:
    """The statistics of one kind of run, and its ratio to the first candidate."""
    seconds = sampled.seconds
    return Measured(
        **asdict(Timing.of(seconds, batch)),
        warm_up=sampled.warm_up,
        mean_interval=mean_interval(1000 * seconds)[1:],
        ratio=None if first is None else paired_ratio(first.seconds, seconds),
        samples_us=[round(value / 1000) for value in sampled.nanoseconds],
        starts_ms=[round((value - began) / 1e6) for value in sampled.starts],
    )


def with_extras(report: Report, extras: Mapping[str, Mapping[str, Any]]) -> Report:
    """The report with `cold`, `accuracy`, `pipeline`, `roofline` or `agreement` of engines, by name."""
    engines = [replace(engine, **extras.get(engine.name, {})) for engine in report.engines]
    return replace(report, engines=engines)
