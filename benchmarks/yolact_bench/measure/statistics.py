"""Intervals of run times by resampling, and whether two samples differ.

Run times are skewed, have slow outliers and are correlated in time (a busy neighbour slows several runs in a
row). So intervals come from the bootstrap, which assumes no distribution, and resample blocks of
neighbouring runs if these are correlated (circular blocks; length after Carlstein's rule for an
autoregressive series, with the rank correlation, which outliers do not distort). `scipy.stats.bootstrap` has
neither blocks nor the correction for few runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
INDICES = 4_000_000  # of values resampled at once: 100 MB
SEED = 0  # the same samples give the same interval every time


class Interval(NamedTuple):
    """An estimate with the lower and the upper end of its interval."""

    value: float
    low: float
    high: float


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of (n,) values in order of time, and its bootstrap interval."""
    values = _positive(values)
    length = block_length(values)
    means = np.concatenate([values[rows].mean(axis=1) for rows in _blocks(len(values), length)])
    return _interval(float(values.mean()), means, len(values) / length, confidence)


def paired_ratio(base: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval:
    """How many times faster `other` (m,) is than `base` (n,), by medians of the rounds that both ran in."""
    n = min(len(base), len(other))
    base, other = _positive(base[:n]), _positive(other[:n])
    length = max(block_length(base), block_length(other))
    ratios = np.concatenate(
        [np.median(base[rows], axis=1) / np.median(other[rows], axis=1) for rows in _blocks(n, length)]
    )
    return _interval(float(np.median(base) / np.median(other)), ratios, n / length, confidence)


def independent_ratio(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> Interval:
    """Median of `after` (m,) over the median of `before` (n,), measured at different times."""
    medians, counts = [], []
    before, after = _positive(before), _positive(after)
    for stream, values in enumerate((before, after)):
        length = block_length(values)
        blocks = _blocks(len(values), length, stream)
        medians.append(np.concatenate([np.median(values[rows], axis=1) for rows in blocks]))
        counts.append(len(values) / length)
    ratio = float(np.median(after) / np.median(before))
    return _interval(ratio, medians[1] / medians[0], min(counts), confidence)


def mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value of the Mann-Whitney U test of (n,) and (m,) values: neither tends to be larger."""
    from scipy.stats import mannwhitneyu

    if np.ptp([*a, *b]) == 0:
        return 1.0  # all values are equal, and scipy divides by their variance
    return float(mannwhitneyu(a, b, method="asymptotic").pvalue)


def block_length(values: np.ndarray) -> int:
    """How many neighbouring values (of n in order of time) to resample together: 1 if independent."""
    from scipy.stats import rankdata

    n = len(values)
    ranks = rankdata(values)
    deviations = ranks - ranks.mean()
    square = float(deviations @ deviations)
    if n < 8 or square == 0:
        return 1
    correlation = float(deviations[:-1] @ deviations[1:]) / square
    # The estimate is too low in short series (Marriott and Pope).
    correlation = min(0.97, correlation + (1 + 3 * correlation) / n)
    if correlation < 1 / math.sqrt(n):  # a standard error: as good as none
        return 1
    length = (2 * correlation / (1 - correlation**2)) ** (2 / 3) * n ** (1 / 3)
    return max(1, min(math.ceil(length), n // 4))


def _positive(times: np.ndarray) -> np.ndarray:
    """Times that a coarse clock reports as 0 become tiny ones, since ratios need that."""
    return np.maximum(np.asarray(times, np.float64), 1e-9)


def _blocks(n: int, length: int, stream: int = 0) -> Iterator[np.ndarray]:
    """Indices (m, n) of values in circular blocks, `RESAMPLES` in all and as many at once as memory is for.

    Streams differ in their random numbers.
    """
    random = np.random.default_rng([SEED, stream])
    most = max(1, INDICES // n)
    for first in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - first)
        starts = random.integers(0, n, (count, -(-n // length), 1))
        yield ((starts + np.arange(length)) % n).reshape(count, -1)[:, :n]


def _interval(value: float, resampled: np.ndarray, count: float, confidence: float) -> Interval:
    """Percentiles of positive resampled values, widened for a small `count` of independent runs or blocks.

    The bootstrap takes the spread of few runs for the true one; Student's t corrects that,
    here by the first term of its expansion around the normal distribution.
    """
    tail = (1 - confidence) / 2
    low, high = np.percentile(resampled, [100 * tail, 100 - 100 * tail]).tolist()
    free = max(1.0, count - 1)
    z = NormalDist().inv_cdf(1 - tail)
    wider = math.sqrt((free + 1) / free) * (1 + (z * z + 1) / (4 * free))
    # The median of few values can lie at the very end of the resampled ones.
    low, high = min(low, value), max(high, value)
    return Interval(value, value * (low / value) ** wider, value * (high / value) ** wider)
