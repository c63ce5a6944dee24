"""What a tensor did, in constant memory, merged without loss.

A histogram of magnitudes has one bin for each of 16 equal parts of each octave of float32: the
upper bits of the number are its bin. Its edges never move, so that two histograms add up exactly,
and no magnitude is out of its reach. Counts of a merge are exact; mean and deviation follow Chan,
Golub and LeVeque (1979), within float64 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stategate.contract.precision import HorizonRange, Method

_SHIFT = 19  # leaves 8 bits of exponent and 4 of mantissa
BINS = 0x7F800000 >> _SHIFT
_EDGES = (np.arange(BINS + 1, dtype=np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
_LEVELS = 127  # of symmetric int8
_LINEAR_BINS = 512
PERCENTILE = 0.9999

Counts = NDArray[np.int64]


@dataclass(slots=True)
class Moments:
    """Count, extremes, mean and sum of squared deviations."""

    count: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Moments:
        """Of finite numbers, any shape, at least one."""
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        return cls(values.size, float(values.min()), float(values.max()), mean, squares)

    def merged(self, other: Moments) -> Moments:
        """Of both sets of numbers together."""
        count = self.count + other.count
        if count == 0:
            return Moments()
        delta = other.mean - self.mean
        return Moments(
            count,
            min(self.low, other.low),
            max(self.high, other.high),
            self.mean + delta * other.count / count,
            self.squares + other.squares + delta * delta * self.count * other.count / count,
        )


def decade_of(step: int) -> int:
    """Which decade a step of an episode lies in: 0 for steps 0 to 9, 1 for 10 to 99, and so on."""
    return max(len(str(step)) - 1, 0)


@dataclass(slots=True)
class Statistics:
    """One tensor over any number of episodes."""

    decades: dict[int, Moments] = field(default_factory=dict)  # moments by decade of steps
    # counts of magnitudes, ``(BINS,)``
    histogram: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[np.float32], first_step: int) -> None:
        """Take in steps of one episode.

        Args:
            values: Finite, ``(steps, ...)``; all of one decade.
            first_step: Number of the first of them within its episode.
        """
        decade = decade_of(first_step)
        moments = Moments.of(values.astype(np.float64))
        self.decades[decade] = self.decades.get(decade, Moments()).merged(moments)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
        self.histogram += np.bincount((bits >> _SHIFT).ravel(), minlength=BINS)

    def merged(self, other: Statistics) -> Statistics:
        """Of both together; counts are exact."""
        decades = {
            decade: self.decades.get(decade, Moments()).merged(other.decades.get(decade, Moments()))
            for decade in sorted({*self.decades, *other.decades})
        }
        return Statistics(decades, self.histogram + other.histogram)

    @property
    def all(self) -> Moments:
        """Moments over all decades."""
        total = Moments()
        for decade in sorted(self.decades):
            total = total.merged(self.decades[decade])
        return total

    @property
    def magnitude(self) -> float:
        """Largest magnitude."""
        total = self.all
        return max(-total.low, total.high)

    @property
    def constant(self) -> bool:
        """Whether it was one number all the time."""
        total = self.all
        return total.low == total.high

    def horizons(self) -> tuple[HorizonRange, ...]:
        """The same by decades, for the record."""
        return tuple(
            HorizonRange(
                0 if decade == 0 else 10**decade,
                10 ** (decade + 1),
                m.count,
                m.low,
                m.high,
                m.mean,
                float(np.sqrt(m.squares / m.count)),
            )
            for decade, m in sorted(self.decades.items())
        )

    def limits(self) -> dict[Method, float]:
        """Symmetric range by each method, all within the largest magnitude."""
        by_method: dict[Method, float] = {
            "minmax": self.magnitude,
            "percentile": self._percentile(),
            "entropy": self._entropy(),
            "mse": self._mse(),
        }
        return {method: min(limit, self.magnitude) for method, limit in by_method.items()}

    def _percentile(self) -> float:
        """The magnitude that 99.99 % of all do not exceed, linear within its bin."""
        filled = np.cumsum(self.histogram)
        rank = PERCENTILE * filled[-1]
        at = int(np.searchsorted(filled, rank))
        inside = (rank - (filled[at] - self.histogram[at])) / self.histogram[at]
        return float(_EDGES[at] + inside * (_EDGES[at + 1] - _EDGES[at]))

    def _mse(self) -> float:
        """The range with the least mean squared error of rounding and clipping together."""
        used = np.flatnonzero(self.histogram)
        parts = (np.arange(16) + 0.5) / 16
        widths = _EDGES[used + 1] - _EDGES[used]
        points = _EDGES[used][:, None] + parts * widths[:, None]
        weights = self.histogram[used][:, None] / parts.size
        tried = self.magnitude * np.arange(1, 101) / 100
        errors = []
        for limit in tried:
            scale = limit / _LEVELS
            stored = np.minimum(np.round(points / scale), _LEVELS) * scale
            errors.append(float((weights * np.square(points - stored)).sum()))
        return float(tried[int(np.argmin(errors))])

    def _entropy(self) -> float:
        """The range that loses least information, by ONNX Runtime's own search.

        The search wants equal bins on both sides of zero: each bin of the histogram is spread
        evenly over those that it covers.
        """
        from onnxruntime.quantization.calibrate import HistogramCollector

        top = self.magnitude
        edges = np.linspace(0.0, top, _LINEAR_BINS + 1)
        filled = np.concatenate([[0.0], np.cumsum(self.histogram, dtype=np.float64)])
        below = np.interp(np.minimum(edges, top), np.minimum(_EDGES, top), filled)
        # Rounded before the difference: a few numbers spread over many bins are still so many.
        half = np.diff(np.round(below)).astype(np.int64)
        both = np.concatenate([half[::-1], half])
        edges = np.linspace(-top, top, 2 * _LINEAR_BINS + 1).astype(np.float32)
        collector = HistogramCollector("entropy", True, both.size, 128, 99.99, "same")
        low = np.array(-top, np.float32)
        high = np.array(top, np.float32)
        limits = collector.get_entropy_threshold((both, edges, low, high, top), 128)
        return float(max(-limits[0], limits[1]))
