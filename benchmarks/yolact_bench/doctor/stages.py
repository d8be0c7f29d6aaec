"""All stages, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from yolact_bench.doctor.engines import engine_stages
from yolact_bench.doctor.facts import driver_outcome, probe_gpu
from yolact_bench.doctor.parts import part_stages
from yolact_bench.doctor.speed import speed_stages
from yolact_bench.doctor.stage import DRIVER, GPU, Context, Outcome, Stage
from yolact_bench.gpu_checks.stages import gpu_stages
from yolact_runtime.errors import UsageError
from yolact_runtime.typed import nearest


def all_stages(context: Context) -> list[Stage]:
    """Every stage; which can be run here is found out later."""
    driver = Stage(DRIVER, "gpu", _driver, (GPU,), "the NVIDIA driver starts and names its GPUs", 20)
    engines = engine_stages()
    # What is quick and what a GPU does first: no stage is begun after some minutes.
    first = [one for one in engines if one.quick]
    more = [one for one in engines if not one.quick]
    return [*part_stages(), *first, driver, *gpu_stages(context), *more, *speed_stages()]


def choose(stages: Sequence[Stage], only: Collection[str], quick: bool) -> list[Stage]:
    """The stages of a run.

    Args:
        stages: All of them.
        only: Names of stages and groups; empty for all.
        quick: Leave out the long ones, if `only` is empty.

    Raises:
        UsageError: a name that is neither of a stage nor of a group.
    """
    known = {one.name for one in stages} | {one.group for one in stages}
    for name in only:
        if name not in known:
            raise UsageError(f"--only {name}: no such stage; {nearest(name, known)}")
    if only:
        return [one for one in stages if {one.name, one.group} & set(only)]
    return [one for one in stages if one.quick or not quick]


def _driver(context: Context) -> Outcome:
    """What the driver says of its GPUs; a run, which has asked it, does not call this."""
    return driver_outcome(probe_gpu())
