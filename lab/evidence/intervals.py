"""95 % intervals, Student's over trainings and Wilson's within one, and a test of two groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
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


def permuted(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided chance of means so far apart if the groups were drawn from one.

    Every way to deal the values to groups of these sizes is counted. Of ones and zeros, in groups
    of one size, this is Fisher's exact test.
    """
    values = [*one, *other]
    total, share = math.fsum(values), len(one) / len(values)

    def difference(of: Sequence[float]) -> float:
        return abs(math.fsum(of) - share * total)

    least = difference(one) - 1e-9 * max(1.0, abs(total))
    dealt = [difference(of) >= least for of in combinations(values, len(one))]
    return sum(dealt) / len(dealt)
