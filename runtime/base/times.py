"""How long things took: counts in buckets of fixed bounds, so that they cost the same for ever."""

from __future__ import annotations

import math
from bisect import bisect_left

# From 1 us to 1 s.
BOUNDS_NS: tuple[int, ...] = (*(n * 10**e for e in range(3, 9) for n in (1, 2, 5)), 10**9)


class Histogram:
    """Durations by bucket; the last bucket takes what is longer than the last bound.

    Attributes:
        counts: Durations in each bucket.
        total_ns: Their sum.
    """

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration; a bound belongs to the bucket below it, as in Prometheus."""
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.total_ns += ns

    def above(self, share: float) -> float | None:
        """Bound in seconds that a share of all did not pass; None of none, infinite beyond all."""
        counts = self.counts.copy()
        rest = share * sum(counts)
        if not rest:
            return None
        for bound_ns, count in zip(BOUNDS_NS, counts, strict=False):
            rest -= count
            if rest <= 0:
                return bound_ns / 1e9
        return math.inf


class Times:
    """What is timed of one session.

    Attributes:
        step: `Session.step`, from the call to the return.
        late: How much later than due the ticks of its loops began.
        jitter: How much that changed from one tick to the next.
    """

    __slots__ = ("jitter", "late", "step")

    def __init__(self) -> None:
        self.step, self.late, self.jitter = Histogram(), Histogram(), Histogram()
