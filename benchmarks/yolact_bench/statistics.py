"""What can be said of times that vary: intervals by resampling, and whether two samples differ.

Run times are skewed, have stray slow values and follow each other (a busy neighbour slows several runs in a
row). So intervals come from the bootstrap, which assumes no distribution, and resample blocks of
neighbouring runs where runs are alike (circular blocks; length after Carlstein's rule for an autoregressive
series, with the correlation of ranks, which stray values do not spoil).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
SEED = 0  # the same samples give the same interval every time


class Interval(NamedTuple):
    """An estimate and its interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of (n,) values in order of time, and its bootstrap interval."""
    return _interval(float(np.mean(values)), _resampled(values, np.mean, _generator(0)), confidence)


def paired_ratio(base: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval:
    """How many times faster `other` is than `base`, by medians, where both ran in the same rounds.

    Args:
        base: (n,) times by round.
        other: (m,) times by round; rounds that only one of them has are left out.
        confidence: Of the interval, 0..1.
    """
    n = min(len(base), len(other))
    base, other = np.asarray(base[:n], np.float64), np.asarray(other[:n], np.float64)
    length = max(block_length(base), block_length(other))
    rounds = _blocks(n, length, _generator(0))
    ratios = np.median(base[rounds], axis=1) / np.median(other[rounds], axis=1)
    return _interval(float(np.median(base) / np.median(other)), ratios, confidence)


def independent_ratio(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> Interval:
    """Median of `after` (m,) over the median of `before` (n,), taken at different times."""
    ratios = _resampled(after, np.median, _generator(1)) / _resampled(before, np.median, _generator(0))
    return _interval(float(np.median(after) / np.median(before)), ratios, confidence)


def mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value of the Mann-Whitney U test: that neither sample tends to be the larger.

    By the normal approximation with correction for ties and continuity; samples of 5 and more.

    Args:
        a: (n,) values.
        b: (m,) values.
    """
    n, m = len(a), len(b)
    ranks, ties = _ranks(np.concatenate([a, b]))
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:
        return 1.0  # all values are equal
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def block_length(values: np.ndarray) -> int:
    """How many neighbouring values to resample together: 1 where each stands for itself.

    Args:
        values: (n,) in order of time.
    """
    n = len(values)
    ranks, _ = _ranks(np.asarray(values))
    deviations = ranks - ranks.mean()
    square = float(deviations @ deviations)
    if n < 8 or square == 0:
        return 1
    correlation = min(0.97, float(deviations[:-1] @ deviations[1:]) / square)
    # Below twice its standard error it cannot be told from none.
    if correlation < 2 / math.sqrt(n):
        return 1
    length = (2 * correlation / (1 - correlation**2)) ** (2 / 3) * n ** (1 / 3)
    return max(1, min(math.ceil(length), n // 4))


def _generator(stream: int) -> np.random.Generator:
    return np.random.default_rng([SEED, stream])


def _resampled(
    values: np.ndarray, statistic: Callable[..., np.ndarray], random: np.random.Generator
) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return statistic(values[_blocks(len(values), block_length(values), random)], axis=1)


def _blocks(n: int, length: int, random: np.random.Generator) -> np.ndarray:
    """Indices (RESAMPLES, n) of values in circular blocks."""
    starts = random.integers(0, n, (RESAMPLES, -(-n // length), 1))
    return ((starts + np.arange(length)) % n).reshape(RESAMPLES, -1)[:, :n]


def _interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail]).tolist()
    # The median of few values can lie at the very end of what resampling gives.
    return Interval(value, min(low, value), max(high, value))


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 1, equal values sharing their mean rank; and how often each distinct value occurs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse], counts.astype(np.float64)
