"""What is measured of contenders, and the report of it.

A contender alone is the network, and the detection that goes with it, on a batch that is ready in memory.
End to end is from image files to COCO run lengths; its parts are the stages of `yolact_bench.stages`.

`Report.to_json` has the form that `report/schema.json` describes (times in milliseconds per run,
that is per batch). The schema's number grows when a field changes its meaning or goes away, not when one is
added.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from yolact_bench.contender import Contender, Run
from yolact_bench.machine import describe_machine
from yolact_bench.monitor import Conditions, Monitor
from yolact_bench.protocol import Sampled, Timing, cpu_threads, sample_in_turns
from yolact_bench.stages import STAGES, batches
from yolact_bench.statistics import Interval, mean_interval, paired_ratio
from yolact_runtime.errors import UsageError

log = logging.getLogger(__name__)

SCHEMA = "yolact-bench/2"
KINDS = ("alone", "end_to_end")
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batches: Images per run, one size after the other.
        seconds: Time for each contender, and
        runs: most runs of it, whichever comes first; for each batch size, alone and end to end each.
        threads: CPU threads the engines, OpenCV and PyTorch were told to use; None where left to them.
        score_threshold: End to end, detections above it get masks.
        top_k: And at most so many of them; None for all that the engine keeps.
    """

    batches: tuple[int, ...] = (1,)
    seconds: float = 3.0
    runs: int = 200
    threads: int | None = None
    score_threshold: float = 0.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UsageError(
                f"batch sizes {', '.join(map(str, self.batches))}: each must be 1 or more and given once"
            )


@dataclass(frozen=True)
class Measured(Timing):
    """Statistics with what they are made of.

    Attributes:
        warm_up: Runs before, not counted.
        mean_interval: 95% interval of the mean, in milliseconds.
        ratio: How many times faster than the first contender by medians of the rounds that both ran in, with
            its 95% interval; None where the first one did not take this batch.
        samples_us: Every run in order, in microseconds.
        starts_ms: When each began, in milliseconds since the measuring began.
    """

    warm_up: int
    mean_interval: tuple[float, float]
    ratio: Interval | None
    samples_us: list[int]
    starts_ms: list[int]


@dataclass(frozen=True)
class BatchReport:
    """One contender at one batch size.

    Attributes:
        batch: Images per run.
        detections: Mean of instances found in an image.
        alone: The network with detection.
        end_to_end: From files to run lengths.
        stages: Its parts.
    """

    batch: int
    detections: float
    alone: Measured
    end_to_end: Measured
    stages: dict[str, Timing]


@dataclass(frozen=True)
class EngineReport:
    """The figures of one contender.

    Attributes:
        name: Unique in the report.
        backend: What runs it.
        config: The model.
        precision: Really delivered.
        input_size: In pixels; None where it varies.
        note: What a reader must know to compare fairly.
        weights_sha256: Of its weights; empty where unknown.
        batches: One for each batch size that it takes.
        cold: What `yolact_bench.cold` prints; None where not taken.
        accuracy: What `yolact_bench.accuracy` returns; None where not taken.
        pipeline: What `yolact_bench.pipeline_throughput` returns; None where not taken.
        roofline: FLOPs, bytes, measured ceilings and the share reached; None where not taken.
        licence: Of its code; empty for what is ours.
        agreement: What `yolact_bench.agreement.agree` returns, and "with", the name of the contender whose
            instances it was to find again; None where not taken.
    """

    name: str
    backend: str
    config: str
    precision: str
    input_size: int | None
    note: str
    weights_sha256: str
    batches: list[BatchReport]
    cold: dict[str, float | None] | None = None
    accuracy: dict[str, Any] | None = None
    pipeline: dict[str, Any] | None = None
    roofline: dict[str, Any] | None = None
    licence: str = ""
    agreement: dict[str, Any] | None = None

    def at(self, batch: int) -> BatchReport | None:
        """Its figures at a batch size; None where it does not take it."""
        return next((one for one in self.batches if one.batch == batch), None)


@dataclass(frozen=True)
class Report:
    """Everything of one run."""

    created: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    conditions: Conditions
    engines: list[EngineReport]

    def rows(self) -> list[tuple[EngineReport, BatchReport]]:
        """Every engine at every batch size that it takes, by batch size, then as the engines were given."""
        return [
            (engine, one)
            for batch in self.settings["batches"]
            for engine in self.engines
            if (one := engine.at(batch))
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and None."""
        content = {"schema": SCHEMA, **asdict(self)}
        for engine in content["engines"]:
            for batch in engine["batches"]:
                for kind in KINDS:
                    ratio = batch[kind]["ratio"]
                    batch[kind]["ratio"] = ratio and Interval(*ratio)._asdict()
        return content


def measure(
    contenders: Sequence[Contender], images: Sequence[Path], settings: Settings = Settings()
) -> Report:
    """Measure contenders against each other, taking turns.

    Args:
        contenders: With different names; the first one is what ratios refer to.
        images: Files; all get the same ones in the same order, over and over.
        settings: How to measure.

    Raises:
        UsageError: no images, two contenders with one name, or one that takes none of the batch sizes.
        YolactError: an image cannot be read, or a contender failed.
    """
    if not images:
        raise UsageError("no images to measure with")
    names = [contender.name for contender in contenders]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} engines are called {name}; give them names: E:name=NAME")
    found: dict[str, list[BatchReport]] = {contender.name: [] for contender in contenders}
    refusals: dict[str, UsageError] = {}
    with cpu_threads(settings.threads), Monitor() as monitor:
        for batch in settings.batches:
            takers = []
            for contender in contenders:
                try:
                    contender.prepare(images, batch)
                    takers.append(contender)
                except UsageError as error:
                    refusals[contender.name] = error
                    if batch == settings.batches[-1] and not found[contender.name]:
                        raise
            for name, one in _at(takers, contenders[0], images, batch, settings, monitor.began_ns).items():
                found[name].append(one)
    for name, refusal in refusals.items():
        log.warning("%s; %s has no figures for that", refusal, name)
    for warning in monitor.conditions.warnings:
        log.warning("%s", warning)
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=describe_machine(),
        settings={**asdict(settings), "batches": list(settings.batches), "images": len(images)},
        conditions=monitor.conditions,
        engines=[_engine_report(contender, found[contender.name]) for contender in contenders],
    )


def _at(
    takers: Sequence[Contender],
    first: Contender,
    images: Sequence[Path],
    batch: int,
    settings: Settings,
    began: int,
) -> dict[str, BatchReport]:
    """Everything of one batch size, by name."""
    if not takers:
        return {}
    log.info("measuring %s at batch %d", ", ".join(one.name for one in takers), batch)
    alone = sample_in_turns({one.name: one.alone for one in takers}, settings.seconds, settings.runs)
    whole = sample_in_turns(
        {one.name: _end_to_end(one, images, batch) for one in takers}, settings.seconds, settings.runs
    )
    reports = {}
    for one in takers:
        runs: list[Run] = whole[one.name].values
        stages = [stage for stage in STAGES if any(stage in run.seconds for run in runs)]
        stages += [stage for stage in runs[0].seconds if stage not in stages]
        reports[one.name] = BatchReport(
            batch=batch,
            detections=float(np.mean([run.detections for run in runs])) / batch,
            alone=_measured(alone[one.name], alone.get(first.name), batch, began),
            end_to_end=_measured(whole[one.name], whole.get(first.name), batch, began),
            stages={
                stage: Timing.of(np.array([run.seconds.get(stage, 0.0) for run in runs]), batch)
                for stage in stages
            },
        )
    return reports


def _end_to_end(contender: Contender, images: Sequence[Path], batch: int) -> Callable[[], Run]:
    turn = batches(images, batch)
    return lambda: contender.end_to_end(next(turn))


def _measured(sampled: Sampled[T], first: Sampled[T] | None, batch: int, began: int) -> Measured:
    seconds = sampled.seconds
    mean = mean_interval(1000 * seconds)
    return Measured(
        **asdict(Timing.of(seconds, batch)),
        warm_up=sampled.warm_up,
        mean_interval=(mean.low, mean.high),
        ratio=None if first is None else paired_ratio(first.seconds, seconds),
        samples_us=[round(value / 1000) for value in sampled.nanoseconds],
        starts_ms=[round((value - began) / 1e6) for value in sampled.starts],
    )


def _engine_report(contender: Contender, found: list[BatchReport]) -> EngineReport:
    return EngineReport(
        name=contender.name,
        backend=contender.backend,
        config=contender.config,
        precision=contender.precision,
        input_size=contender.input_size,
        note=contender.note,
        weights_sha256=getattr(contender, "weights_sha256", ""),
        batches=found,
        licence=contender.licence,
    )


def with_extras(report: Report, extras: Mapping[str, Mapping[str, Any]]) -> Report:
    """The report with `cold`, `accuracy`, `pipeline`, `roofline` or `agreement` of engines, by name."""
    return replace(
        report, engines=[replace(engine, **extras.get(engine.name, {})) for engine in report.engines]
    )
