"""How times are taken: several tasks in one run, taking turns, so that all see the same machine.

A laptop that throttles, a neighbour's job or a cold cache then hits every task alike, and their ratio
stays meaningful where absolute times do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from yolact_runtime.errors import UsageError

T = TypeVar("T")

MIN_RUNS = 5  # even where one run takes longer than the whole time allowed
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Statistics of repeated runs; times in milliseconds, percentiles interpolated linearly.

    Attributes:
        runs: How many.
        median: The 50th percentile.
        p90: The 90th.
        p95: The 95th.
        p99: The 99th.
        mean: Arithmetic mean.
        std: Sample standard deviation; 0 for one run.
        min: The shortest.
        throughput: Images per second of the median run.
    """

    runs: int
    median: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    min: float
    throughput: float

    @staticmethod
    def of(seconds: np.ndarray, images: int = 1) -> Timing:
        """Statistics of run times (n,) in seconds, each for `images` images."""
        values = np.asarray(seconds, np.float64) * 1000
        median, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
        return Timing(
            runs=len(values),
            median=median,
            p90=p90,
            p95=p95,
            p99=p99,
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            min=float(values.min()),
            throughput=1000 * images / median if median > 0 else 0.0,
        )


def take_turns(
    tasks: Mapping[str, Callable[[], T]],
    seconds: float = 3.0,
    runs: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, np.ndarray], dict[str, list[T]]]:
    """Run tasks in rounds until each has had its share.

    Every task first runs `WARM_UP_RUNS` times uncounted. Then a round runs each once, starting with
    another one every time. A task leaves when it has spent `seconds` or made `runs` runs, whichever
    comes first, but makes `MIN_RUNS` in any case.

    Args:
        tasks: What to run, by name.
        seconds: Time for each task.
        runs: Most runs of each task.
        clock: In seconds.

    Returns:
        Run times (n,) float64 in seconds, and what the runs returned, by name.

    Raises:
        UsageError: no time or no runs.
    """
    if not seconds > 0 or runs < 1:
        raise UsageError(f"{seconds} seconds and {runs} runs: both must be greater than 0")
    times: dict[str, list[float]] = {name: [] for name in tasks}
    values: dict[str, list[T]] = {name: [] for name in tasks}
    for _ in range(WARM_UP_RUNS):
        for task in tasks.values():
            task()
    going, first = list(tasks), 0
    while going:
        first = (first + 1) % len(going)
        for name in going[first:] + going[:first]:
            start = clock()
            value = tasks[name]()
            times[name].append(clock() - start)
            values[name].append(value)
        going = [name for name in going if not _done(times[name], seconds, runs)]
    return {name: np.array(taken) for name, taken in times.items()}, values


def _done(times: list[float], seconds: float, runs: int) -> bool:
    return len(times) >= runs or (sum(times) >= seconds and len(times) >= MIN_RUNS)


def ratios(timings: Mapping[str, Timing]) -> dict[str, float]:
    """How many times faster than the first each one is, by medians."""
    first = next(iter(timings.values())).median
    return {name: first / timing.median if timing.median > 0 else 0.0 for name, timing in timings.items()}
