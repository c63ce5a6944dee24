"""Percentiles of step times."""

from __future__ import annotations

import numpy as np

from stategate.bench.record import Times
from stategate.common.statistics import Floats

BINS_PER_OCTAVE = 16


def times(us: Floats) -> Times | None:
    """Summary of step times in microseconds; None of none."""
    if not len(us):
        return None
    count = len(us)
    # Nearest rank: every figure is a step that happened.
    p50, p90, p99, p999 = np.quantile(us, (0.5, 0.9, 0.99, 0.999), method="inverted_cdf").tolist()
    bins = np.floor(np.log2(np.maximum(us, 1e-3)) * BINS_PER_OCTAVE).astype(int)
    labels, counts = np.unique(bins, return_counts=True)
    return Times(
        count=count,
        mean_us=float(us.mean()),
        p50_us=p50,
        p90_us=p90,
        p99_us=p99 if count >= 100 else None,
        p999_us=p999 if count >= 1000 else None,
        max_us=float(us.max()),
        bins=tuple(zip(labels.tolist(), counts.tolist(), strict=True)),
    )
