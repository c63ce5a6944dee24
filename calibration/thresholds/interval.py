"""Confidence in a rate, from its spread over episodes.

Steps of one episode depend on each other through the memory, so episodes and not steps are the
sample. For a rate r = sum(count) / sum(size) over k episodes the standard error is that of a ratio
(Cochran, Sampling Techniques, 1977, section 6.4),

    se^2 = k / (k - 1) * sum((count_i - r size_i)^2) / sum(size)^2,

and the interval is r +- t se with Student's t of k - 1 degrees of freedom.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stategate.contract.calibration import Interval

CONFIDENCE = 0.95


def rate_interval(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Interval | None:
    """The 95 % interval of a rate in [0, 1]; None where fewer than two episodes tell.

    Args:
        counts: ``(episodes,)`` how often it happened.
        sizes: ``(episodes,)`` how often it could have.
    """
    used = sizes > 0
    counts, sizes = counts[used], sizes[used]
    k = len(sizes)
    if k < 2:
        return None
    total = float(sizes.sum())
    rate = float(counts.sum()) / total
    spread = float(((counts - rate * sizes) ** 2).sum())
    half = student_t(k - 1) * math.sqrt(k / (k - 1) * spread) / total
    return Interval(max(0.0, rate - half), min(1.0, rate + half))


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
