"""95 % intervals: Student's over trainings, Wilson's within one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from stategate.common.statistics import CONFIDENCE, student_t

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Mean and t interval over trainings; None of fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def wilson(right: int, judged: int) -> Interval:
    """Score interval of a share (Wilson 1927), which stays within 0 and 1.

    Args:
        right: Successes.
        judged: Trials, at least one.
    """
    share, z2 = right / judged, _Z * _Z
    middle = (share + z2 / (2 * judged)) / (1 + z2 / judged)
    half = _Z * math.sqrt(share * (1 - share) / judged + z2 / (4 * judged * judged))
    half /= 1 + z2 / judged
    return Interval(share, middle - half, middle + half)
