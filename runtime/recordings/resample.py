"""Values at the control rate, from messages that came at their own times; gaps are never filled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from stategate.contract.errors import EpisodeError
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import Way
from stategate.runtime.recordings.source import Batch, Block

_SLACK_NS = 2_000_000_000
"""How far topics may be out of order against one another in a file."""
_TICKS = 4096


class Rule(NamedTuple):
    """How one part is resampled."""

    name: str
    way: Way
    gap_ns: float  # a longer time between two values is a gap
    turn: float = np.inf  # of an angle, which a line must not go around the long way
    can_sort: bool = False  # whether the recording can be read in the order of its times

    @property
    def holds_on(self) -> bool:
        """Whether the last value is good for ever, such as that of a goal."""
        return self.way == "hold" and self.gap_ns == np.inf


class Piece(NamedTuple):
    """Steps that follow one another without a gap."""

    values: list[Array]  # of each part, (steps, ...)
    follows: bool  # whether they follow those of the piece before


@dataclass
class _Part:
    rule: Rule
    times: Array = field(default_factory=lambda: np.empty(0, np.int64))
    values: Array | None = None
    waiting: list[Batch] = field(default_factory=list)
    silent_until: int | None = None  # no message can come before this time any more
    newest: int | None = None

    def add(self, batch: Batch) -> None:
        steps = np.diff(batch.times, prepend=self.newest if self.newest is not None else 0)
        steps[0] = max(steps[0], 0) if self.newest is None else steps[0]
        if np.any(steps < 0):
            at = int(np.argmax(steps < 0))
            raise EpisodeError(
                f"the times of {self.rule.name} go backwards",
                found=f"by {-steps[at] / 1e9:.6f} s, to {batch.times[at] / 1e9:.6f} s",
                expected="times that never do; a clock that was set in between makes such ones",
                remedy="cut the recording there"
                + "; or, where messages of one file are only out of their order: --read order=sort"
                * self.rule.can_sort,
            )
        if self.silent_until is not None and batch.times[0] < self.silent_until:
            raise EpisodeError(
                f"messages of {self.rule.name} stand too far behind in the file",
                found=f"{(self.silent_until - batch.times[0]) / 1e9:.3f} s",
                expected=f"less than {_SLACK_NS / 1e9:g} s",
                remedy="--read order=sort" if self.rule.can_sort else None,
            )
        self.newest = int(batch.times[-1])
        self.waiting.append(batch)

    def gather(self) -> None:
        if self.waiting:
            before = [] if self.values is None else [self.values]
            self.values = np.concatenate([*before, *(b.values for b in self.waiting)])
            self.times = np.concatenate([self.times, *(b.times for b in self.waiting)])
            self.waiting = []

    def at(self, ticks: Array) -> tuple[Array, Array]:
        """Which ticks lie in no gap, and the values at those (anything elsewhere)."""
        assert self.values is not None
        times, last = self.times, len(self.times) - 1
        left = np.searchsorted(times, ticks, side="right") - 1
        i = np.clip(left, 0, last)
        right = np.minimum(i + 1, last)
        on = times[i] == ticks
        span = times[right] - times[i]
        bridged = on | ((right > i) & (span <= self.rule.gap_ns)) | self.rule.holds_on
        whole = (left >= 0) & bridged
        values = self.values[i]
        if self.rule.way == "linear":
            share = np.where(on | (span == 0), 0.0, (ticks - times[i]) / np.maximum(span, 1))
            share = share.reshape(-1, *[1] * (values.ndim - 1))
            low, high = values.astype(np.float64), self.values[right].astype(np.float64)
            jump = np.abs(high - low).reshape(len(low), -1).max(axis=1, initial=0.0)
            if np.any(whole & (jump > self.rule.turn / 2)):
                raise EpisodeError(
                    f"{self.rule.name} jumps by more than half a turn",
                    found=f"by {jump[whole].max():.4g}, at {times[i][np.argmax(jump)] / 1e9:.6f} s",
                    expected="an angle that does not wrap, because of resample=linear",
                    remedy='resample = "hold", or record it unwrapped',
                )
            mixed = low + share * (high - low)
            values = mixed.astype(values.dtype) if values.dtype.kind == "f" else mixed
        return whole, values

    def forget(self, before: int) -> None:
        if self.values is not None:
            keep = max(0, int(np.searchsorted(self.times, before, side="right")) - 1)
            self.times, self.values = self.times[keep:], self.values[keep:]


def resampled(blocks: Iterable[Block], rules: Sequence[Rule], rate_hz: float) -> Iterator[Piece]:
    """Every part at each tick of a clock of ``rate_hz`` that starts when all have a value.

    A tick lies in a gap where the values before and after it are further apart than ``gap_ns``, or
    where one of them is missing. Memory is that of the longest gap, or of two seconds.
    """
    parts = [_Part(rule) for rule in rules]
    clock = _Clock(parts, Fraction(10**9) / Fraction(rate_hz).limit_denominator(10**6))
    for block in blocks:
        for batch in block:
            parts[batch.part].add(batch)
        yield from clock.advance()
    yield from clock.advance(0)


class _Clock:
    def __init__(self, parts: list[_Part], period_ns: Fraction) -> None:
        self._parts, self._period = parts, period_ns
        self._start: int | None = None
        self._next, self._follows = 0, False

    def _tick(self, index: int) -> int:
        assert self._start is not None
        return self._start + round(index * self._period)

    def advance(self, slack_ns: int = _SLACK_NS) -> Iterator[Piece]:
        parts = self._parts
        for part in parts:
            part.gather()
        horizon = max((p.newest for p in parts if p.newest is not None), default=0) - slack_ns
        for part in parts:  # what has been silent for longer than a gap is waited for no longer
            silent = part.newest is None or horizon - part.newest > part.rule.gap_ns
            if silent or part.rule.holds_on:
                part.silent_until = max(horizon, part.silent_until or horizon)
        if any(part.newest is None for part in parts):
            for part in parts:
                part.forget(horizon)
            return
        if self._start is None:
            self._start = max(int(part.times[0]) for part in parts)
        until = min(max(part.newest or 0, part.silent_until or 0) for part in parts)
        end = int((until - self._start) / self._period) + 2
        while self._next < end:
            first = self._next = max(self._next, self._after_gaps())
            ticks = np.array([self._tick(i) for i in range(first, min(end, first + _TICKS))])
            ticks = ticks[ticks <= until]
            if not len(ticks):
                break
            self._next = first + len(ticks)
            yield from self._pieces(ticks)
        for part in parts:
            part.forget(self._tick(self._next))

    def _after_gaps(self) -> int:
        """The first tick that can be whole; a gap of years has more of them than one can try."""
        tick, index, start = self._tick(self._next), self._next, self._start or 0
        for part in self._parts:
            i = int(np.searchsorted(part.times, tick, side="right")) - 1
            between = 0 <= i < len(part.times) - 1 and part.times[i] != tick
            is_gap = between and part.times[i + 1] - part.times[i] > part.rule.gap_ns
            if is_gap and not part.rule.holds_on:
                index = max(index, int((int(part.times[i + 1]) - start) / self._period) - 1)
        self._follows &= index == self._next
        return index

    def _pieces(self, ticks: Array) -> Iterator[Piece]:
        looked = [part.at(ticks) for part in self._parts]
        whole = np.logical_and.reduce([w for w, _ in looked])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(np.int8)))
        for first, end in edges.reshape(-1, 2):
            follows = self._follows and first == 0
            yield Piece([values[first:end] for _, values in looked], follows)
        self._follows = bool(whole[-1])
