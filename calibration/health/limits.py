"""Limits of windows, and the false-alarm rate that they promise (split conformal prediction)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import CalibrationError
from stategate.contract.health import MOST_IN_A_ROW, SUMS, Level, Statistic, chance_in_a_row
from stategate.runtime.memory.statistics import ROWS, Integers

Places = Sequence[tuple[int, Statistic]]
_LEAST_WINDOWS = 20  # that set limits; fewer say too little of how far a range has to be widened
# Fewer show no dependence although there is one: of autoregressive streams with correlation 0.98
# and 20 to 40 windows, false alarms were up to 100 times as frequent as several in a row allow.
_LEAST_TO_TELL = 60
_BLOCKS = 8  # neighbours go to the same part, because they are alike
_ONE_OF = 50  # one window of so many may lie outside: one odd window does not set the limits
_ONE_SIDED = 1.645  # of the normal distribution, at 5 %
_LONG = (16, 8, 4)  # short windows in a long one, the first that the recordings allow


@dataclass(frozen=True, slots=True)
class Chosen:
    """A level, and limits by statistic: limit, least and greatest of calibration, limit."""

    level: Level
    places: Places
    limits: Integers  # ``(places, 4)``

    @property
    def by_place(self) -> Iterator[tuple[tuple[int, Statistic], list[int]]]:
        """Limits with what they are of."""
        return zip(self.places, self.limits.tolist(), strict=True)


def check_length(steps: int) -> None:
    """Refuse recordings that have too few of even the shortest windows."""
    if steps < 2 * _LEAST_WINDOWS * ROWS:
        raise CalibrationError(
            "the episodes are too short to learn what is normal",
            found=f"{steps:,} steps, counted in windows of {ROWS}",
            expected=f"at least {2 * _LEAST_WINDOWS * ROWS:,} steps",
            remedy="record more, or repeat --episode with other recordings",
        )


def choose(base: Integers, places: Places, target: float) -> tuple[Chosen, Chosen | None]:
    """Short and long windows, each with half of the false alarms.

    Args:
        base: Statistics of the shortest windows, ``(windows, places)``.
        places: What they are of.
        target: Steps between two false alarms of both.
    """
    short = _short(base, places, 2 * target)
    sums = [k for k, (_, kind) in enumerate(places) if kind in SUMS]
    for several in _LONG:
        window = several * short.level.window
        if len(base) * ROWS // window < 2 * _LEAST_WINDOWS:
            continue
        of_sums = [places[k] for k in sums]
        long = _limits(_longer(base[:, sums], of_sums, window // ROWS), of_sums, window, 2 * target)
        if long.level.is_independent and long.level.steps_per_false_alarm >= 2 * target:
            return short, long
    return short, None


def _longer(base: Integers, places: Places, times: int) -> Integers:
    """Statistics of windows of so many of the shortest ones."""
    count = len(base) // times
    parts = base[: count * times].reshape(count, times, -1)
    by_kind = {
        "low": parts.min(axis=1),
        "high": parts.max(axis=1),
        "still": parts.max(axis=1),
        "size": parts[:, -1],
    }
    sums = parts.sum(axis=1)
    return np.stack([by_kind.get(kind, sums)[:, k] for k, (_, kind) in enumerate(places)], axis=1)


def _short(base: Integers, places: Places, target: float) -> Chosen:
    """Windows that are independent and half as long are so too, or else the rarest alarm."""
    best: Chosen | None = None
    was_independent = False
    times = 1
    while len(base) // times >= 2 * _LEAST_WINDOWS:
        parts = _longer(base, places, times), places, times * ROWS, target
        choice = _limits(*parts)
        is_independent = choice.level.is_independent
        if is_independent and not was_independent:
            # Tests see little of a weak dependence; in windows of twice the length it is weaker.
            choice = _limits(*parts, rate_of_one=True)
        elif is_independent and choice.level.steps_per_false_alarm >= target:
            return choice
        was_independent = is_independent
        if best is None or choice.level.steps_per_false_alarm > best.level.steps_per_false_alarm:
            best = choice
        times *= 2
    assert best is not None  # `check_length` has been called
    allowed = best.level.steps_per_false_alarm / 2
    if 2 * allowed < target:
        may_depend = " that depend on each other, or are too few to tell"
        depend = "" if best.level.is_independent else may_depend
        raise CalibrationError(
            "the episodes do not allow alarms that are false so rarely",
            found=f"one in {allowed:,.0f} steps, with windows of {best.level.window} steps{depend}",
            expected=f"one in {target / 2:,.0f} steps",
            remedy=f"record more, or give --false-alarm {math.floor(allowed)}",
        )
    return best


def _limits(
    vectors: Integers, places: Places, window: int, target: float, rate_of_one: bool = False
) -> Chosen:
    blocks = np.arange(len(vectors)) * _BLOCKS // len(vectors)
    shape, judged = vectors[blocks % 2 == 0], vectors[blocks % 2 == 1]
    grows = np.asarray([kind == "still" for _, kind in places])
    scaled = [_scaled(part, grows) for part in (shape, judged)]
    low, high = scaled[0].min(axis=0), scaled[0].max(axis=0)
    middle = np.where(grows, 0, (low + high) / 2)
    half = np.maximum(np.where(grows, high, (high - low) / 2), 2.0)
    scores = (np.abs(scaled[1] - middle) / half).max(axis=1)
    count = len(scores)
    outside = 1 + count // _ONE_OF
    width = max(1.0, float(np.sort(scores)[-outside]))
    independent = not rate_of_one and count >= _LEAST_TO_TELL and _is_independent(scores)
    rows = range(1, MOST_IN_A_ROW + 1)
    rates = [chance_in_a_row(outside, count, j if independent else 1) / window for j in rows]
    j = next((j for j, rate in zip(rows, rates, strict=True) if rate * target <= 1), len(rates))
    below, above = middle - width * half, middle + width * half
    limit_low = np.where(grows, 0, np.floor(below))
    # A little more than a whole number would be cut to the one below it.
    longest = np.floor(np.exp2(np.minimum(above, 40)) - 1 + 1e-6)
    limit_high = np.where(grows, longest, np.ceil(above))
    limits = np.stack([limit_low, vectors.min(axis=0), vectors.max(axis=0), limit_high], axis=1)
    level = Level(window, j, count, outside, math.floor(1 / rates[j - 1]), independent)
    return Chosen(level, places, limits.astype(np.int64))


def _scaled(vectors: Integers, grows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """As numbers whose spread is alike; how long something lies still spreads over decades."""
    return np.where(grows, np.log2(1.0 + np.where(grows, vectors, 0)), vectors.astype(np.float64))


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Their ranks around 0; equal values share theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(shared[places] - (len(values) - 1) / 2)


def _is_independent(scores: NDArray[np.float64]) -> bool:
    """Whether a window's score says nothing of the next one's, one-sided at 5 % for each of two.

    By rank over all windows; and by how often one of the highest fifth follows another, because
    what is far outside may stay there although all windows together look independent.
    """
    around = ranks(scores)
    before, after = around[:-1] - around[:-1].mean(), around[1:] - around[1:].mean()
    size = math.sqrt(float((before**2).sum() * (after**2).sum()))
    if size and float((before * after).sum()) / size * math.sqrt(len(before)) >= _ONE_SIDED:
        return False
    high = around + (len(around) - 1) / 2 >= 0.8 * len(around)
    pairs, expected = int((high[:-1] & high[1:]).sum()), 0.04 * len(before)
    return pairs < expected + _ONE_SIDED * math.sqrt(expected)
