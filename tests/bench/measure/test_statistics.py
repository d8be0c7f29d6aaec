"""Intervals and tests of times: what holds for all samples, and how often they are wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from yolact_bench.measure.statistics import (
    block_length,
    independent_ratio,
    mann_whitney,
    mean_interval,
    paired_ratio,
)

times = arrays(np.float64, st.integers(5, 40), elements=st.floats(0.001, 1000))
REPEATS = 150


def series(seed: int, n: int, correlation: float = 0.0) -> np.ndarray:
    """Times around 1, skewed, each one like the one before as far as `correlation` says."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=n)
    for i in range(1, n):
        steps[i] = correlation * steps[i - 1] + np.sqrt(1 - correlation**2) * steps[i]
    return np.exp(0.05 * steps)


@given(times, times, st.floats(0.01, 100))
def test_ratio_intervals(a: np.ndarray, b: np.ndarray, factor: float) -> None:
    found = independent_ratio(a, b)
    assert found.value == pytest.approx(np.median(b) / np.median(a))
    assert found.low <= found.value <= found.high
    # Another unit of time for B scales everything alike.
    assert independent_ratio(a, b * factor) == pytest.approx([factor * end for end in found])
    paired = paired_ratio(a, b)
    n = min(len(a), len(b))
    assert paired.value == pytest.approx(np.median(a[:n]) / np.median(b[:n]))
    assert paired.low <= paired.value <= paired.high
    assert paired_ratio(a, a) == pytest.approx((1, 1, 1))


@given(times)
def test_mean_interval(a: np.ndarray) -> None:
    value, low, high = mean_interval(a)
    assert value == pytest.approx(a.mean())
    assert low <= value <= high
    # More certainty needs more room.
    _, wider_low, wider_high = mean_interval(a, 0.99)
    assert wider_low <= low * (1 + 1e-9)
    assert wider_high >= high * (1 - 1e-9)


def test_rounds_that_both_ran_in_make_the_pairs() -> None:
    # A neighbour slows every round by another factor; both alike.
    slow = np.exp(np.random.default_rng(0).normal(0, 0.5, 60))
    paired = paired_ratio(3 * slow, slow)
    assert paired == pytest.approx((3, 3, 3))
    apart = independent_ratio(slow, 3 * slow)
    assert apart.high - apart.low > 0.5


def exact_p(a: list[int], b: list[int]) -> float:
    """The share of all ways to deal the values out that lie at least as far from the middle."""
    values = [*a, *b]

    def statistic(chosen: tuple[int, ...]) -> float:
        mine = [values[i] for i in chosen]
        others = [value for i, value in enumerate(values) if i not in chosen]
        return sum((x > y) + 0.5 * (x == y) for x in mine for y in others)

    middle = len(a) * len(b) / 2
    seen = abs(statistic(tuple(range(len(a)))) - middle)
    ways = [abs(statistic(way) - middle) for way in itertools.combinations(range(len(values)), len(a))]
    return sum(way >= seen - 1e-9 for way in ways) / len(ways)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]),
        ([1, 4, 6, 7, 9, 12], [2, 3, 5, 8, 10, 11]),
        ([1, 2, 2, 3, 5, 5], [3, 4, 5, 6, 7, 9]),
        ([1, 2, 3, 4, 5, 13], [6, 7, 8, 9, 10, 11]),
    ],
)
def test_mann_whitney_is_near_the_exact_test(a: list[int], b: list[int]) -> None:
    found = mann_whitney(np.array(a), np.array(b))
    assert found == pytest.approx(exact_p(a, b), abs=0.03)
    assert found == pytest.approx(mann_whitney(np.array(b), np.array(a)))


def test_mann_whitney_of_equal_values() -> None:
    assert mann_whitney(np.ones(9), np.ones(7)) == 1
    assert mann_whitney(np.arange(50), np.arange(50)) == 1


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_false_alarms_are_as_rare_as_stated(correlation: float) -> None:
    alarms = 0
    for seed in range(REPEATS):
        found = independent_ratio(
            series(2 * seed, 80, correlation), series(2 * seed + 1, 80, correlation), 0.9
        )
        alarms += found.low > 1 or found.high < 1
    # 10% are stated; chance alone keeps the share of 150 tries between 3% and 17%.
    assert alarms / REPEATS >= 0.02
    assert alarms / REPEATS <= 0.17


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_a_shift_is_found(correlation: float) -> None:
    found = 0
    for seed in range(20):
        before, after = (series(2 * seed + i, 100, correlation) for i in (0, 1))
        interval = independent_ratio(before, 1.1 * after)
        found += interval.low > 1 and mann_whitney(before, 1.1 * after) < 0.05
    assert found >= 18


def test_blocks_where_runs_are_alike() -> None:
    alone = [block_length(series(seed, 200)) for seed in range(20)]
    alike = [block_length(series(seed, 200, 0.8)) for seed in range(20)]
    assert np.median(alone) <= 2
    assert min(alike) >= 6
    assert max(alike) <= 50
    assert block_length(np.ones(50)) == 1
