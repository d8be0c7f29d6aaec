"""Runs stages one after the other, each in a child process, and turns whatever happens into an outcome."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolact_bench.doctor.child import call
from yolact_bench.doctor.facts import Gpu, Library, driver_outcome
from yolact_bench.doctor.stage import (
    BASE,
    DRIVER,
    FAILED,
    GPU,
    OK,
    SKIPPED,
    SMALLER,
    Context,
    Figure,
    Outcome,
    Stage,
)
from yolact_runtime.errors import YolactError, first_line, missing_extra
from yolact_runtime.packages import PACKAGES, import_failure, installed

# The function that returns all stages, called with the context in each child process.
SOURCE = "yolact_bench.doctor.stages:all_stages"
# A stage that has been begun may end so many seconds after the limit, and has at least so many.
_OVER, _LEAST = 60.0, 30.0
# A machine on which these take too long is slow, not broken.
_MEASURING = ("speed", "gpu-speed")


@dataclass(frozen=True)
class Checked:
    """A stage that has been run or left out; `output` is the end of what a failed one printed."""

    stage: Stage
    outcome: Outcome
    seconds: float = 0.0
    output: str = ""


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    libraries: Mapping[str, Library],
    gpu: Gpu,
    limit: float = math.inf,
    source: str = SOURCE,
) -> Iterator[Checked]:
    """Run stages, and yield each when it is done.

    Args:
        stages: In this order.
        context: What they are given.
        libraries: The states of libraries that were imported; a stage that needs a broken one fails.
        gpu: The GPUs; without one, stages that need it are skipped, and with a broken driver they fail.
        limit: After so many seconds no stage is begun, and soon after it those that run are stopped.
        source: `module:function` that returns the stages in child processes.
    """
    begun = time.monotonic()
    for stage in stages:
        outcome = driver_outcome(gpu) if stage.name == DRIVER else missing(stage, libraries, gpu)
        left = begun + limit - time.monotonic()
        if outcome is None and left < 0:
            reason = f"the other stages took more than {limit:.0f} s"
            outcome = Outcome(SKIPPED, {}, reason, f"yolact-doctor --only {stage.name}")
        most = min(stage.seconds, max(_LEAST, left + _OVER))
        yield Checked(stage, outcome) if outcome else _run(stage, context, source, most)


def missing(stage: Stage, libraries: Mapping[str, Library], gpu: Gpu) -> Outcome | None:
    """The outcome of a stage that cannot be run; None for one that can."""
    names = list(dict.fromkeys([*BASE, *(name for name in stage.needs if name != GPU)]))
    if GPU in stage.needs and gpu.state != OK:
        return Outcome(gpu.state, {}, gpu.reason, gpu.remedy)
    for name in names:
        found = libraries.get(name)
        if found is not None and found.state == FAILED:
            return Outcome(FAILED, {}, f"{found.distribution}: {found.reason}", found.remedy)
    if absent := [name for name in names if not installed(name)]:
        distributions = ", ".join(PACKAGES[name][0] if name in PACKAGES else name for name in absent)
        return Outcome(SKIPPED, {}, f"not installed: {distributions}", install_command(absent))
    return None


def install_command(names: Sequence[str]) -> str:
    """The one command that installs packages: with an extra that has all of them, or several extras."""
    extras: list[str] = []
    for name in names:
        known = PACKAGES[name][1] if name in PACKAGES else ("train",)
        if not set(known) & set(extras):
            shared = [
                extra for extra in known if all(extra in PACKAGES.get(one, ("", known))[1] for one in names)
            ]
            extras.append((shared or known)[0])
    return str(missing_extra("", ",".join(filter(None, extras)))).rpartition("run: ")[2]


def _run(stage: Stage, context: Context, source: str, most: float) -> Checked:
    """Run a stage in a child process, for so many seconds at most."""
    start = time.monotonic()
    words = source, stage.name, json.dumps({**asdict(context), "folder": str(context.folder)})
    ended = call("yolact_bench.doctor.run:run_here", *words, seconds=most, folder=context.folder)
    seconds = time.monotonic() - start
    outcome = _outcome(ended.value) if not ended.problem else None
    if ended.late and stage.group in _MEASURING:
        outcome = Outcome(SKIPPED, {}, f"too slow to measure here: {ended.problem}", SMALLER)
    elif ended.late and most < stage.seconds:
        reason = f"{ended.problem}, as the time of the whole run was up"
        outcome = Outcome(SKIPPED, {}, reason, f"yolact-doctor --only {stage.name}")
    if outcome is None:
        reason = ended.problem or "it returned no outcome"
        remedy = f"run it alone, and attach the report to a bug report: yolact-doctor --only {stage.name}"
        outcome = Outcome(FAILED, {}, reason, remedy)
    return Checked(stage, outcome, seconds, ended.output)


def run_here(source: str, name: str, words: str, report: Any = None) -> dict[str, Any]:
    """The child process: run a stage, and return its outcome as JSON has it."""
    values = json.loads(words)
    context = Context(**{**values, "folder": Path(values["folder"])})
    module, _, function = source.partition(":")
    stages = getattr(importlib.import_module(module), function)(context)
    stage = next(one for one in stages if one.name == name)
    return asdict(outcome_of(stage, context))


def outcome_of(stage: Stage, context: Context) -> Outcome:
    """The outcome of a stage, in this process; an exception is a failure."""
    try:
        return stage.run(context)
    except YolactError as error:
        return Outcome(FAILED, {}, str(error))
    except Exception as error:
        if failure := import_failure(error, stage.name):
            return Outcome(FAILED, {}, str(failure))
        where = _where(error)
        return Outcome(FAILED, {}, f"{type(error).__name__}: {first_line(error)}{where}")


def _where(error: BaseException) -> str:
    """The module and line of our own in which an exception was raised or passed last."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("yolact") and not module.startswith("yolact_bench.doctor.run"):
            found = f" (in {module}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found


def _outcome(value: Any) -> Outcome | None:
    """The outcome that a child process returned; None if it is none."""
    if not isinstance(value, dict) or value.get("state") not in (OK, FAILED, SKIPPED):
        return None
    figures: dict[str, Figure] = {
        str(name): one for name, one in dict(value.get("figures") or {}).items() if isinstance(one, Figure)
    }
    return Outcome(value["state"], figures, str(value.get("reason", "")), str(value.get("remedy", "")))
