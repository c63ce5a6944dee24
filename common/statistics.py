"""The statistics of the house: intervals of rates, of ratios of times, and slopes.

Its own, because a device has no SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stategate.contract.calibration import Interval

Floats = NDArray[np.float64]

_DRAWS = 2000
_MOST_POINTS = 2000
_FEWEST_STEPS = 100_000  # that a figure per million steps is taken from
CONFIDENCE = 0.95


def rate_interval(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Interval | None:
    """The 95 % interval of a rate in [0, 1]; see `ratio_interval`."""
    interval = ratio_interval(counts.astype(np.float64), sizes.astype(np.float64))
    return interval and Interval(max(0.0, interval.low), min(1.0, interval.high))


def ratio_interval(sums: Floats, sizes: Floats) -> Interval | None:
    """The 95 % interval of a mean; None of fewer than two episodes.

    Steps of one episode depend on each other through the memory, so episodes and not steps are the
    sample. For r = sum(x) / sum(size) over k episodes the standard error is that of a ratio
    (Cochran, Sampling Techniques, 1977, section 6.4),

        se^2 = k / (k - 1) * sum((x_i - r size_i)^2) / sum(size)^2,

    and the interval is r +- t se with Student's t of k - 1 degrees of freedom.

    Args:
        sums: ``(episodes,)`` how often it happened, or the sum of a figure.
        sizes: ``(episodes,)`` how often it could have; episodes where it never could do not count.
    """
    used = sizes > 0
    sums, sizes = sums[used], sizes[used]
    k = len(sizes)
    if k < 2:
        return None
    total = float(sizes.sum())
    ratio = float(sums.sum()) / total
    spread = float(((sums - ratio * sizes) ** 2).sum())
    half = student_t(k - 1) * math.sqrt(k / (k - 1) * spread) / total
    return Interval(ratio - half, ratio + half)


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t, by bisection on `_within`."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cos2, odd = math.cos(angle) ** 2, freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(freedom // 2):
        total += term
        term *= cos2 * ((2 * i + 2) / (2 * i + 3) if odd else (2 * i + 1) / (2 * i + 2))
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    estimate: float
    low: float
    high: float


def block_draws(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices ``(draws, count)`` of bursts, drawn as blocks of neighbours that wrap around.

    Bursts that follow each other are alike, because a machine is slow for a while and fast for a
    while. Single draws would take them for so many independent witnesses; blocks of neighbours are
    drawn instead (Kuensch 1989), of the square root of their number each.
    """
    length = math.ceil(math.sqrt(count))
    starts = rng.integers(0, count, (_DRAWS, math.ceil(count / length)))
    drawn = (starts[:, :, None] + np.arange(length)) % count
    return drawn.reshape(_DRAWS, -1)[:, :count]


def _interval(estimate: float, drawn: Floats) -> Estimate:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(estimate, float(low), float(high))


def paired_ratio(above: Floats, below: Floats) -> Estimate:
    """Median of the ratio of two series that were measured beside each other."""
    ratios = above / below
    drawn = np.median(ratios[block_draws(len(ratios), np.random.default_rng(0))], axis=1)
    return _interval(float(np.median(ratios)), drawn)


def independent_ratio(above: Floats, below: Floats) -> Estimate:
    """Ratio of the medians of two series that were measured at different times."""
    rng = np.random.default_rng(0)
    drawn = [np.median(series[block_draws(len(series), rng)], axis=1) for series in (above, below)]
    return _interval(float(np.median(above) / np.median(below)), drawn[0] / drawn[1])


def slope(at: Floats, values: Floats) -> float:
    """Median of the slopes between pairs of points (Theil, Sen); 0 of fewer than two.

    Of more than ``_MOST_POINTS`` every n-th is taken: the pairs of a day would fill no memory.
    """
    every = math.ceil(len(at) / _MOST_POINTS) or 1
    at, values = at[::every], values[::every]
    if len(at) < 2:
        return 0.0
    first, second = np.triu_indices(len(at), 1)
    gaps = at[second] - at[first]
    return float(np.median((values[second] - values[first])[gaps > 0] / gaps[gaps > 0]))


def slope_per_million(steps: Floats, values: Floats) -> float | None:
    """Change of a figure over a million steps, or None where too few were seen to say.

    Resident memory moves by pages: one page more over a thousand steps would be called four
    million bytes.
    """
    if len(steps) < 2 or steps[-1] - steps[0] < _FEWEST_STEPS:
        return None
    return 1e6 * slope(steps, values)
