"""What can be said of times that vary: intervals by resampling, and whether two samples differ.

Run times are skewed, have stray slow values and follow each other (a busy neighbour slows several runs in a
row). So intervals come from the bootstrap, which assumes no distribution, and resample blocks of
neighbouring runs where runs are alike (circular blocks; length after Carlstein's rule for an autoregressive
series, with the correlation of ranks, which stray values do not spoil).
"""

from __future__ import annotations

import math
from statistics import NormalDist
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
    values = _positive(values)
    length = block_length(values)
    means = values[_blocks(len(values), length, _generator(0))].mean(axis=1)
    return _interval(float(values.mean()), means, len(values) / length, confidence)


def paired_ratio(base: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval:
    """How many times faster `other` is than `base`, by medians, where both ran in the same rounds.

    Args:
        base: (n,) times by round.
        other: (m,) times by round; rounds that only one of them has are left out.
        confidence: Of the interval, 0..1.
    """
    n = min(len(base), len(other))
    base, other = _positive(base[:n]), _positive(other[:n])
    length = max(block_length(base), block_length(other))
    rounds = _blocks(n, length, _generator(0))
    ratios = np.median(base[rounds], axis=1) / np.median(other[rounds], axis=1)
    return _interval(float(np.median(base) / np.median(other)), ratios, n / length, confidence)


def independent_ratio(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> Interval:
    """Median of `after` (m,) over the median of `before` (n,), taken at different times."""
    medians, pieces = [], []
    before, after = _positive(before), _positive(after)
    for stream, values in enumerate((before, after)):
        length = block_length(values)
        medians.append(np.median(values[_blocks(len(values), length, _generator(stream))], axis=1))
        pieces.append(len(values) / length)
    ratio = float(np.median(after) / np.median(before))
    return _interval(ratio, medians[1] / medians[0], min(pieces), confidence)


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
    correlation = float(deviations[:-1] @ deviations[1:]) / square
    # The estimate is too low in short series (Marriott and Pope).
    correlation = min(0.97, correlation + (1 + 3 * correlation) / n)
    if correlation < 1 / math.sqrt(n):  # a standard error: as good as none
        return 1
    length = (2 * correlation / (1 - correlation**2)) ** (2 / 3) * n ** (1 / 3)
    return max(1, min(math.ceil(length), n // 4))


def _positive(times: np.ndarray) -> np.ndarray:
    """What a coarse clock calls nothing took a little: ratios need that."""
    return np.maximum(np.asarray(times, np.float64), 1e-9)


def _generator(stream: int) -> np.random.Generator:
    return np.random.default_rng([SEED, stream])


def _blocks(n: int, length: int, random: np.random.Generator) -> np.ndarray:
    """Indices (RESAMPLES, n) of values in circular blocks."""
    starts = random.integers(0, n, (RESAMPLES, -(-n // length), 1))
    return ((starts + np.arange(length)) % n).reshape(RESAMPLES, -1)[:, :n]


def _interval(value: float, resampled: np.ndarray, pieces: float, confidence: float) -> Interval:
    """Percentiles of positive resampled values, widened for few independent `pieces` (runs or blocks).

    The bootstrap takes the spread of few pieces for the true one; Student's t says how much that misses,
    here by the first term of its expansion around the normal distribution.
    """
    tail = (1 - confidence) / 2
    low, high = np.percentile(resampled, [100 * tail, 100 - 100 * tail]).tolist()
    free = max(1.0, pieces - 1)
    z = NormalDist().inv_cdf(1 - tail)
    wider = math.sqrt((free + 1) / free) * (1 + (z * z + 1) / (4 * free))
    # The median of few values can lie at the very end of what resampling gives.
    low, high = min(low, value), max(high, value)
    return Interval(value, value * (low / value) ** wider, value * (high / value) ** wider)


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 1, equal values sharing their mean rank; and how often each distinct value occurs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse], counts.astype(np.float64)
