"""Limits of windows, and the false-alarm rate that they promise (split conformal prediction)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import CalibrationError
from stategate.contract.health import SUMS, Level, Statistic
from stategate.runtime.memory.statistics import ROWS, Integers

Places = Sequence[tuple[int, Statistic]]
_LEAST_WINDOWS = 20  # that set limits; fewer say too little of how far a range has to be widened
_BLOCKS = 8  # neighbours go to the same part, because they are alike
_MOST_IN_A_ROW = 8
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


def choose(
    base: Integers, places: Places, target: float, steps: int
) -> tuple[Chosen, Chosen | None]:
    """Short and long windows, each with half of the false alarms.

    Args:
        base: Statistics of the shortest windows, ``(windows, places)``.
        places: What they are of.
        target: Steps between two false alarms of both.
        steps: Of the recordings.
    """
    short = _short(base, places, 2 * target, steps)
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


def chance_in_a_row(outside: int, windows: int, in_a_row: int) -> float:
    """Chance that so many exchangeable windows in a row are all outside.

    Args:
        outside: Rank of the limit among the windows that set it, from the largest.
        windows: How many those are.
        in_a_row: How many windows of use.
    """
    return math.prod((outside + i) / (windows + 1 + i) for i in range(in_a_row))


def _short(base: Integers, places: Places, target: float, steps: int) -> Chosen:
    """Twice the shortest window whose successors do not depend on it, and limits for it."""
    best: Chosen | None = None
    good: Chosen | None = None
    times = 1
    while len(base) // times >= 2 * _LEAST_WINDOWS:
        choice = _limits(_longer(base, places, times), places, times * ROWS, target)
        is_good = choice.level.is_independent and choice.level.steps_per_false_alarm >= target
        if good is not None:
            # Tests see little of a weak dependence; in windows of twice the length it is weaker.
            return choice if is_good else good
        good = choice if is_good else None
        if best is None or choice.level.steps_per_false_alarm > best.level.steps_per_false_alarm:
            best = choice
        times *= 2
    if good is not None:
        return good
    if best is None:
        raise CalibrationError(
            "the episodes are too short to learn what is normal",
            found=f"{steps:,} steps, counted in windows of {ROWS}",
            expected=f"at least {2 * _LEAST_WINDOWS * ROWS:,} steps",
            remedy="record more, or repeat --episode with other recordings",
        )
    allowed = best.level.steps_per_false_alarm / 2
    if 2 * allowed < target:
        depend = "" if best.level.is_independent else " that depend on each other"
        raise CalibrationError(
            "the episodes do not allow alarms that are false so rarely",
            found=f"one in {allowed:,.0f} steps, with windows of {best.level.window} steps{depend}",
            expected=f"one in {target / 2:,.0f} steps",
            remedy=f"record more, or give --false-alarm {math.floor(allowed)}",
        )
    return best


def _limits(vectors: Integers, places: Places, window: int, target: float) -> Chosen:
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
    independent = _is_independent(scores)
    rows = range(1, _MOST_IN_A_ROW + 1)
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


def _is_independent(scores: NDArray[np.float64]) -> bool:
    """Whether a window's score says nothing of the next one's, one-sided at 5 % for each of two.

    By rank over all windows; and by how often one of the highest fifth follows another, because
    what is far outside may stay there although all windows together look independent.
    """
    ranks = np.argsort(np.argsort(scores)).astype(float)
    before, after = ranks[:-1] - ranks[:-1].mean(), ranks[1:] - ranks[1:].mean()
    size = math.sqrt(float((before**2).sum() * (after**2).sum()))
    if size and float((before * after).sum()) / size * math.sqrt(len(before)) >= _ONE_SIDED:
        return False
    high = ranks >= 0.8 * len(ranks)
    pairs, expected = int((high[:-1] & high[1:]).sum()), 0.04 * len(before)
    return pairs < expected + _ONE_SIDED * math.sqrt(expected)
