"""Statistics of a window of a stream, in integers: any order of adding gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stategate.contract.health import (
    CLIP,
    MOST_ELEMENTS,
    STATISTICS,
    Source,
    Statistic,
    is_watched,
    spread,
)
from stategate.runtime.base.buffers import Array, Buffers, Slot, StateBanks

Integers = NDArray[np.int64]
ROWS = 32
"""Steps that are looked at together; every window is a multiple of it."""


def whole(numbers: Array, scale: NDArray[np.float32] | np.float32) -> Integers:
    """Numbers times powers of two, without fractions, at most `CLIP`; NaN counts as that."""
    with np.errstate(over="ignore"):
        scaled = numbers * scale
    np.fmin(scaled, CLIP, out=scaled)  # in half of the time of clip
    np.maximum(scaled, -CLIP, out=scaled)
    return scaled.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Column:
    """A number of each step."""

    source: Source
    tensor: str
    element: int
    threshold: float | None = None  # of a hard gate


class Taps:
    """Where the watched numbers of a session lie.

    Attributes:
        columns: Numbers of each step.
        states: What is looked at at the end of a window.
        not_watched: What is not, in sentences.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.columns: list[Column] = []
        self._views: list[tuple[slice, Array]] = []
        self.not_watched: list[str] = []
        hard = {g.gate.name: g.gate.threshold for g in buffers.groups if g.gate is not None}
        kinds: tuple[tuple[Source, tuple[Slot, ...]], ...]
        kinds = (("input", buffers.inputs), ("gate", buffers.gates))
        for source, slots in kinds:
            for slot in slots:
                places = spread(slot.flat.size)
                start = len(self.columns)
                threshold = hard.get(slot.name)
                self.columns += [Column(source, slot.name, i, threshold) for i in places]
                step = places.step
                self._views.append((slice(start, len(self.columns)), slot.flat[::step]))
                if step > 1:
                    self.not_watched.append(
                        f"{source} {slot.name}: {len(places)} of {slot.flat.size:,} elements are "
                        "watched"
                    )
        self.states: list[StateBanks] = []
        for state in buffers.states:
            if not is_watched(state.spec):
                form = "a ring" if state.row is not None else "stored in float16"
                self.not_watched.append(f"state {state.spec.name}: {form}")
            else:
                self.states.append(state)
        self.rows = np.zeros((ROWS, len(self.columns)), np.float32)
        self._copies = [[(row[cut], view) for cut, view in self._views] for row in self.rows]

    def take(self, at: int) -> None:
        """Copy the numbers of a step into row ``at``."""
        for target, source in self._copies[at]:
            target[...] = source

    def state_numbers(self, live: dict[str, Array]) -> list[NDArray[np.float32]]:
        """The watched elements of each state."""
        flats = [live[state.spec.name].reshape(-1) for state in self.states]
        return [f[:: -(-f.size // MOST_ELEMENTS)].astype(np.float32) for f in flats]


class Statistics:
    """Of the present window, as a vector: by `STATISTICS` over the columns, then openings."""

    def __init__(
        self, columns: Sequence[Column], exponents: Sequence[int], pairs: Sequence[int]
    ) -> None:
        self._scale = np.exp2(np.asarray(exponents, np.float32)).astype(np.float32)
        self._pairs = np.asarray(pairs, np.intp)
        hard = [(i, c.threshold) for i, c in enumerate(columns) if c.threshold is not None]
        self._hard = [i for i, _ in hard]
        self._thresholds = np.asarray([t for _, t in hard], np.float32)
        self._before: Integers | None = None
        self._still = np.zeros(len(columns), np.int64)
        self.begin()

    def begin(self) -> None:
        """Begin a window; what lies still goes on lying still."""
        size = len(self._scale)
        self._sums = np.zeros((3, size), np.int64)  # mean, change, pair
        self._low, self._high = np.full(size, CLIP), np.full(size, -CLIP)
        self._longest = self._still.copy()
        self._writes = np.zeros(len(self._hard), np.int64)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in the numbers of steps, ``(steps, columns)`` float32."""
        numbers = whole(rows, self._scale)
        first = numbers[0] if self._before is None else self._before
        moved = np.empty_like(numbers)
        np.subtract(numbers[0], first, out=moved[0])
        np.subtract(numbers[1:], numbers[:-1], out=moved[1:])
        self._before = numbers[-1]
        self._sums[0] += numbers.sum(axis=0)
        self._sums[1] += np.abs(moved).sum(axis=0)
        self._sums[2] += (moved * moved[:, self._pairs]).sum(axis=0)
        np.minimum(self._low, numbers.min(axis=0), out=self._low)
        np.maximum(self._high, numbers.max(axis=0), out=self._high)
        if moved.all():  # as usual
            self._still = np.zeros_like(self._still)
        else:
            # Where a column last changed: in these rows, or so many steps before them.
            place = np.arange(len(rows))[:, None]
            last = np.where(moved != 0, place, -1 - self._still)
            still = place - np.maximum.accumulate(last, axis=0)
            self._still = still[-1]
            np.maximum(self._longest, still.max(axis=0), out=self._longest)
        self._writes += (rows[:, self._hard] > self._thresholds).sum(axis=0)

    def vector(self) -> Integers:
        """All statistics of the window so far."""
        mean, change, pair = self._sums
        parts = (mean, change, self._longest, self._low, self._high, pair, self._writes)
        return np.concatenate(parts)


def kinds(columns: Sequence[Column], states: int) -> list[tuple[int, Statistic]]:
    """What each place of a vector is: of which column or state (they follow), and which."""
    places = [(i, statistic) for statistic in STATISTICS for i in range(len(columns))]
    hard: list[tuple[int, Statistic]] = [
        (i, "writes") for i, c in enumerate(columns) if c.threshold is not None
    ]
    return [*places, *hard, *((len(columns) + i, "size") for i in range(states))]
