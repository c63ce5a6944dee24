"""Percentiles of steps, and what two series of bursts say about each other.

Bursts that follow each other are alike, because a machine is slow for a while and fast for a
while. A bootstrap that drew single bursts would take them for so many independent witnesses;
blocks of neighbours are drawn instead (Kuensch 1989), of the square root of their number each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stategate.bench.record import Times

Floats = NDArray[np.float64]

BINS_PER_OCTAVE = 16
DRAWS = 2000
MOST_POINTS = 2000
FEWEST_STEPS = 100_000  # that a figure per million steps is taken from


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


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float


def block_draws(count: int, rng: np.random.Generator, draws: int = DRAWS) -> NDArray[np.int64]:
    """Indices ``(draws, count)`` of bursts, drawn as blocks of neighbours that wrap around."""
    length = math.ceil(math.sqrt(count))
    starts = rng.integers(0, count, (draws, math.ceil(count / length)))
    drawn = (starts[:, :, None] + np.arange(length)) % count
    return drawn.reshape(draws, -1)[:, :count]


def _interval(estimate: float, drawn: Floats) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(estimate, float(low), float(high))


def paired_ratio(above: Floats, below: Floats, seed: int = 0) -> Interval:
    """Median of the ratio of two series that were measured beside each other."""
    ratios = above / below
    drawn = np.median(ratios[block_draws(len(ratios), np.random.default_rng(seed))], axis=1)
    return _interval(float(np.median(ratios)), drawn)


def independent_ratio(above: Floats, below: Floats, seed: int = 0) -> Interval:
    """Ratio of the medians of two series that were measured at different times."""
    rng = np.random.default_rng(seed)
    drawn = [np.median(series[block_draws(len(series), rng)], axis=1) for series in (above, below)]
    return _interval(float(np.median(above) / np.median(below)), drawn[0] / drawn[1])


def slope(at: Floats, values: Floats) -> float:
    """Median of the slopes between pairs of points (Theil, Sen); 0 of fewer than two.

    Of more than ``MOST_POINTS`` every n-th is taken: the pairs of a day would fill no memory.
    """
    every = math.ceil(len(at) / MOST_POINTS) or 1
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

    Args:
        steps: Steps done at each sample, ascending.
        values: The figure at each of them.
    """
    if len(steps) < 2 or steps[-1] - steps[0] < FEWEST_STEPS:
        return None
    return 1e6 * slope(steps, values)
