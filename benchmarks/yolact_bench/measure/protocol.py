"""How times are taken: several tasks interleaved in one run, so that all meet the same conditions.

A laptop that throttles, a neighbour's job or a cold cache then affects all tasks equally, and their ratio
stays meaningful even if absolute times do not.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from yolact_runtime.errors import UsageError

T = TypeVar("T")

MIN_RUNS = 5  # even if one run takes longer than the whole time allowed
WARM_UP_RUNS = 3  # at least
WARM_UP_LIMIT = 20  # at most, if times do not settle
SETTLED = 0.95  # warm once two runs in a row both take at least this share of the best before them


@dataclass(frozen=True)
class Timing:
    """Statistics of repeated runs; times in milliseconds, percentiles interpolated linearly."""

    runs: int
    median: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float  # of the sample; 0 for one run
    min: float
    throughput: float  # images per second of the median run

    @staticmethod
    def of(seconds: np.ndarray, images: int = 1) -> Timing:
        """Statistics of run times (n,) in seconds, each for `images` images."""
        values = np.asarray(seconds, np.float64) * 1000
        median, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
        return Timing(
            *(len(values), median, p90, p95, p99, float(values.mean())),
            std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            min=float(values.min()),
            throughput=1000 * images / median if median > 0 else 0.0,
        )


@dataclass
class Sampled(Generic[T]):
    """The samples of one task. Its n-th sample belongs to the n-th round of all tasks."""

    warm_up: int  # runs before, not counted
    starts: list[int] = field(default_factory=list)  # when each run began, nanoseconds of the clock
    nanoseconds: list[int] = field(default_factory=list)  # how long it took
    values: list[T] = field(default_factory=list)  # what it returned

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each run, (n,) float64."""
        return np.array(self.nanoseconds, np.float64) / 1e9


def sample_in_turns(
    tasks: Mapping[str, Callable[[], T]],
    seconds: float = 3.0,
    runs: int = 200,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Sampled[T]]:
    """Run tasks in rounds until each has used up its time or its runs.

    Every task first warms up: `WARM_UP_RUNS` runs, then on until no times fall any more, at most
    `WARM_UP_LIMIT` runs or as long as the measurement; all tasks equally often, so that tasks that go through
    the same inputs stay in step. Then a round runs each once, starting with another one every time. A task
    leaves after `seconds` or `runs` runs, whichever comes first, but runs at least `MIN_RUNS` times.
    Python's garbage collector is off during all of this. The clock counts nanoseconds.

    Raises:
        UsageError: no time or no runs.
    """
    if not seconds > 0 or runs < 1:
        raise UsageError(f"{seconds} seconds and {runs} runs: both must be greater than 0")
    limit, least = seconds * 1e9, min(runs, MIN_RUNS)
    with _without_garbage_collection():
        warm_up = _warm_up(list(tasks.values()), limit, clock)
        sampled: dict[str, Sampled[T]] = {name: Sampled(warm_up) for name in tasks}
        going, first = list(tasks), 0
        while going:
            first = (first + 1) % len(going)
            for name in going[first:] + going[:first]:
                task, mine = tasks[name], sampled[name]
                start = clock()
                value = task()
                mine.nanoseconds.append(clock() - start)
                mine.starts.append(start)
                mine.values.append(value)
            spent = {name: sampled[name].nanoseconds for name in going}
            going = [one for one in going if len(spent[one]) < (runs if sum(spent[one]) < limit else least)]
    return sampled


def take_turns(
    tasks: Mapping[str, Callable[[], T]], *limits: Any, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, list[T]]]:
    """The run times (n,) float64 in seconds and the return values of `sample_in_turns`, by name."""
    sampled = sample_in_turns(tasks, *limits, **options)
    return {name: one.seconds for name, one in sampled.items()}, {n: one.values for n, one in sampled.items()}


def _warm_up(tasks: Sequence[Callable[[], object]], limit: float, clock: Callable[[], int]) -> int:
    """Run all tasks in rounds until they are warm; returns the number of rounds."""
    times: list[list[int]] = [[] for _ in tasks]
    rounds = 0
    while rounds < WARM_UP_RUNS or (
        rounds < WARM_UP_LIMIT
        and sum(map(sum, times)) < limit * len(tasks)
        and any(min(one[-2:]) < SETTLED * min(one[:-2]) for one in times)
    ):
        for task, one in zip(tasks, times, strict=True):
            start = clock()
            task()
            one.append(clock() - start)
        rounds += 1
    return rounds


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """No garbage collection inside."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Give OpenCV and a loaded PyTorch `count` threads each for a while; None leaves them as they are."""
    with contextlib.ExitStack() as stack:
        if count is not None:
            import cv2

            stack.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(count)
            if torch := sys.modules.get("torch"):
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(count)
        yield
