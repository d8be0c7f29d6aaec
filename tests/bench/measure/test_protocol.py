"""Taking turns and statistics, on a clock that the tasks move themselves."""

from __future__ import annotations

import gc
import itertools
import statistics

import cv2
import numpy as np
import pytest

from yolact_bench.measure.protocol import (
    MIN_RUNS,
    WARM_UP_LIMIT,
    WARM_UP_RUNS,
    Timing,
    cpu_threads,
    sample_in_turns,
    take_turns,
)
from yolact_runtime.errors import UsageError


class Clock:
    """In nanoseconds; stands still but for the tasks that take time on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> int:
        return round(self.now * 1e9)

    def task(self, name: str, seconds: float):
        def run() -> int:
            self.now += seconds
            self.log.append(name)
            return len(self.log)

        return run


def test_statistics() -> None:
    milliseconds = [5.0, 1.0, 2.0, 4.0, 3.0, 10.0, 7.0]
    timing = Timing.of(np.array(milliseconds) / 1000, images=4)
    assert timing.runs == 7
    assert timing.median == pytest.approx(statistics.median(milliseconds))
    assert timing.mean == pytest.approx(statistics.mean(milliseconds))
    assert timing.std == pytest.approx(statistics.stdev(milliseconds))
    assert timing.min == pytest.approx(1)
    assert timing.p90 == pytest.approx(statistics.quantiles(milliseconds, n=10, method="inclusive")[-1])
    hundredths = statistics.quantiles(milliseconds, n=100, method="inclusive")
    assert (timing.p95, timing.p99) == (pytest.approx(hundredths[94]), pytest.approx(hundredths[98]))
    assert timing.throughput == pytest.approx(4 / 0.004)


def test_one_run() -> None:
    timing = Timing.of(np.array([0.002]))
    assert (timing.median, timing.p99, timing.std) == (pytest.approx(2), pytest.approx(2), 0)


def test_tasks_alternate_and_take_turns_at_being_first() -> None:
    clock = Clock()
    tasks = {name: clock.task(name, 1.0) for name in "ab"}
    times, values = take_turns(tasks, seconds=100, runs=6, clock=clock)
    counted = clock.log[2 * WARM_UP_RUNS :]
    assert "".join(counted) in ("abba" * 3, "baab" * 3)
    assert {name: taken.tolist() for name, taken in times.items()} == {"a": [1.0] * 6, "b": [1.0] * 6}
    positions = sorted(values["a"] + values["b"])
    assert positions == list(range(2 * WARM_UP_RUNS + 1, 2 * WARM_UP_RUNS + 13))


def test_each_leaves_when_it_has_had_its_share() -> None:
    clock = Clock()
    tasks = {
        "slow": clock.task("slow", 7.0),
        "middle": clock.task("middle", 1.0),
        "fast": clock.task("fast", 0.01),
    }
    times, _ = take_turns(tasks, seconds=10, runs=50, clock=clock)
    assert {name: len(taken) for name, taken in times.items()} == {"slow": MIN_RUNS, "middle": 10, "fast": 50}


@pytest.mark.parametrize(("seconds", "runs"), [(0, 5), (-1, 5), (float("nan"), 5), (1, 0)])
def test_no_time_is_an_error(seconds: float, runs: int) -> None:
    with pytest.raises(UsageError, match="greater than 0"):
        take_turns({"a": lambda: None}, seconds, runs)


def test_warm_up_goes_on_until_times_settle() -> None:
    def warm_up(durations: list[float]) -> int:
        clock = Clock()
        turn = itertools.chain(durations, itertools.repeat(durations[-1]))

        def task() -> None:
            clock.now += next(turn)

        return sample_in_turns({"a": task}, seconds=100, runs=5, clock=clock)["a"].warm_up

    assert warm_up([1.0]) == WARM_UP_RUNS
    # The best before was 2; two in a row that are no quicker end it.
    assert warm_up([8, 4, 2, 1.99, 2.01]) == 5
    assert warm_up([2.0**-n for n in range(40)]) == WARM_UP_LIMIT
    assert warm_up([200.0, 100.0, 50.0]) == WARM_UP_RUNS  # longer than it is measured


def test_all_warm_up_equally_long() -> None:
    clock = Clock()
    falling = iter([8.0, 4.0, 2.0, *[2.0] * 20])

    def settling() -> None:
        clock.now += next(falling)
        clock.log.append("settling")

    tasks = {"settled": clock.task("settled", 1.0), "settling": settling}
    sampled = sample_in_turns(tasks, seconds=100, runs=5, clock=clock)
    assert {name: one.warm_up for name, one in sampled.items()} == {"settled": 5, "settling": 5}
    assert clock.log[:10] == ["settled", "settling"] * 5


def test_samples_belong_to_rounds() -> None:
    clock = Clock()
    tasks = {"slow": clock.task("slow", 2.0), "fast": clock.task("fast", 1.0)}
    sampled = sample_in_turns(tasks, seconds=100, runs=6, clock=clock)
    assert sampled["slow"].nanoseconds == [2_000_000_000] * 6
    begun = sorted(zip(sampled["slow"].starts, sampled["fast"].starts, strict=True))
    # Each round takes three seconds, whoever is first.
    assert [min(pair) - min(begun[0]) for pair in begun] == [i * 3_000_000_000 for i in range(6)]


def test_collector_rests_while_measuring() -> None:
    assert gc.isenabled()
    _, values = take_turns({"a": gc.isenabled}, seconds=1, runs=5)
    assert not any(values["a"])
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0

    def broken() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        take_turns({"a": broken})
    assert gc.isenabled()


def test_threads_are_given_and_put_back() -> None:
    before = cv2.getNumThreads()
    with cpu_threads(1):
        assert cv2.getNumThreads() == 1
    with cpu_threads(None):
        assert cv2.getNumThreads() == before
    assert cv2.getNumThreads() == before
