"""Checks all of a report that is compared, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yolact_bench.measure.candidate import KINDS
from yolact_runtime.untrusted import beyond, limit

_TEXTS = ("name", "backend", "config", "precision", "weights_sha256")
_MOST = 1000  # engines, batch sizes, warnings, settings: each is a line or more when two reports are compared
_LONGEST_RUN = 1e12  # microseconds


def report_problems(report: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a report: fields, and what they have to be. Each relies on those before it."""
    for name in ("machine", "settings", "conditions"):
        if not _few(report.get(name), dict):
            yield f"{name} is not an object of at most {_MOST} fields"
    if not _few(report["machine"].get("versions"), dict):
        yield "machine.versions is not an object"
    warnings: Any = report["conditions"].get("warnings")
    if not _few(warnings, list) or not all(isinstance(one, str) for one in warnings):
        yield "conditions.warnings is not a list of texts"
    engines: Any = report.get("engines")
    if not _few(engines, list) or not engines:
        yield f"engines is not a list of 1 to {_MOST}"
    names: set[str] = set()
    runs = 0
    for engine in engines:
        if not isinstance(engine, dict) or not all(isinstance(engine.get(key), str) for key in _TEXTS):
            yield f"an engine lacks one of the texts {', '.join(_TEXTS)}"
        if "input_size" not in engine or not _few(engine.get("batches"), list):
            yield f"engine {engine['name'][:40]!r} lacks batches or its input size"
        if engine["name"] in names:
            yield f"two engines are called {engine['name'][:40]!r}"
        names.add(engine["name"])
        yield from _batch_problems(engine)
        runs += sum(len(one[kind]["samples_us"]) for one in engine["batches"] for kind in KINDS.values())
        if runs > limit("runs"):
            yield f"it has more runs than {beyond('runs')}"


def _batch_problems(engine: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the batch sizes of an engine and their runs."""
    where = f"engine {engine['name'][:40]!r}"
    sizes: set[int] = set()
    for one in engine["batches"]:
        size: Any = one.get("batch") if isinstance(one, dict) else None
        if type(size) is not int or not 1 <= size < 2**31 or size in sizes:
            yield f"{where} has a batch size that is no whole number, or twice the same"
        sizes.add(size)
        for kind in KINDS.values():
            measured: Any = one.get(kind)
            samples: Any = measured.get("samples_us") if isinstance(measured, dict) else None
            if not isinstance(samples, list) or not samples:
                yield f"{where} lacks samples_us at batch {size}"
            if not all(type(run) in (int, float) and 0 <= run <= _LONGEST_RUN for run in samples):
                yield f"{where} has a run at batch {size} that is no number of microseconds"


def _few(value: Any, kind: type[Any]) -> bool:
    """Whether a value is an object or a list, without too many values."""
    return isinstance(value, kind) and len(value) <= _MOST
