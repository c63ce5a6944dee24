"""Health: whether a stream is still one that the memory was calibrated for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stategate.contract import Manifest
from stategate.contract.errors import HealthWarning, SpecError
from stategate.contract.health import HealthEnvelope, places_of
from stategate.runtime.base.buffers import Buffers
from stategate.runtime.base.ledger import Counters
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.statistics import ROWS, Integers, Statistics, Taps, whole

HealthChoice: TypeAlias = "Literal['warn', 'count', 'off'] | bool"


@dataclass(frozen=True, slots=True)
class Health:
    """What the last windows say."""

    alarm: str | None  # what is wrong, in words; None while all is within
    # by signal, its distance from the middle of its limits in units of half their width: above 1
    # is outside. Of the last whole window; empty before there is one.
    departures: Mapping[str, float]
    windows: int = 0  # windows that were judged


class _Windows:
    """Judges the windows of one level."""

    def __init__(self, envelope: HealthEnvelope, level: int) -> None:
        self._envelope, self._level = envelope, level
        watched = envelope.watched
        self.spec = envelope.levels[level]
        self.places = places_of(watched, level)
        limits = [watched[i].limits_of(level)[kind] for i, kind in self.places]
        self._low = np.asarray([low for low, *_ in limits], np.int64)
        self._high = np.asarray([high for *_, high in limits], np.int64)
        low, high = self._low.astype(float), self._high.astype(float)
        self._middle, self._half = (low + high) / 2, np.maximum((high - low) / 2, 0.5)
        # What the memory has to do with, which is another after a reset.
        self._of_memory = np.asarray([watched[i].source != "input" for i, _ in self.places])
        is_still = np.asarray([kind == "still" for _, kind in self.places])
        self._middle[is_still], self._half[is_still] = 0, np.maximum(high[is_still], 1)
        # Of several, one that lies still is what a person has to know first.
        self._weights = np.where(is_still, 2.0**20, 1.0)
        self._streak = 0
        self._values: Integers | None = None
        self.worst: tuple[int, int] | None = None  # place and value, while there is an alarm

    def judge(self, values: Integers, warm: bool) -> None:
        """Take in the statistics of a window."""
        outside = (values < self._low) | (values > self._high)
        if not warm:
            outside &= ~self._of_memory
        self._values = values
        self._streak = self._streak + 1 if outside.any() else 0
        self.worst = None
        if self._streak >= self.spec.windows_in_a_row:
            k = int(np.argmax(np.where(outside, self._away(values) * self._weights, -1.0)))
            self.worst = k, int(values[k])

    def _away(self, values: Integers) -> NDArray[np.float64]:
        return np.asarray(np.abs(values - self._middle) / self._half)

    @property
    def alarm(self) -> str | None:
        """What is furthest outside, in words; made when it is asked for."""
        if self.worst is None:
            return None
        k, value = self.worst
        return self._envelope.sentence(self._level, *self.places[k], value)

    def departures(self) -> dict[str, float]:
        """By signal; see `Health`."""
        if self._values is None:
            return {}
        suffix = f" over {self.spec.window} steps" if self._level else ""
        away = self._away(self._values).tolist()
        return {
            f"{self._envelope.watched[i].words} {kind}{suffix}": distance
            for (i, kind), distance in zip(self.places, away, strict=True)
        }


class HealthMonitor:
    """Compares windows of a session's steps with the envelope of its bundle."""

    def __init__(
        self,
        envelope: HealthEnvelope,
        buffers: Buffers,
        memory: Memory,
        counters: Counters,
        warns: bool = True,
    ) -> None:
        self._memory, self._counters, self._warns = memory, counters, warns
        self._warm_steps = envelope.warm_steps
        self._taps = taps = Taps(buffers)
        watched, count = envelope.watched, len(taps.columns)
        self._scales = [np.float32(2.0**w.exponent) for w in watched[count:]]
        self._statistics = Statistics(
            taps.columns, [w.exponent for w in watched[:count]], [w.pair for w in watched[:count]]
        )
        self._windows = [_Windows(envelope, level) for level in range(len(envelope.levels))]
        places = self._windows[0].places
        self._sums = [places.index(place) for level in self._windows[1:] for place in level.places]
        self._long = np.zeros(len(self._sums), np.int64)
        self._at = self._done = self._judged = 0
        self._is_alarmed = self._is_paused = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Look at nothing until the end of a branch: what is only imagined is not met."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def take(self) -> None:
        """Take in the step that was just done."""
        if self._is_paused:
            return
        self._taps.take(self._at)
        self._at += 1
        if self._at == ROWS:
            self._at = 0
            self._statistics.add(self._taps.rows)
            self._done += ROWS
            if self._done % self._windows[0].spec.window == 0:
                self._judge()

    def _judge(self) -> None:
        memory = self._memory
        sizes = [
            np.abs(whole(numbers, scale)).sum()
            for numbers, scale in zip(
                self._taps.state_numbers(memory.live()), self._scales, strict=True
            )
        ]
        values = np.append(self._statistics.vector(), np.asarray(sizes, np.int64))
        self._statistics.begin()
        self._judged += 1
        age = memory.committed - memory.began
        short, *rest = self._windows
        short.judge(values, age >= self._warm_steps + short.spec.window)
        self._long += values[self._sums]
        for long in rest:
            if self._done % long.spec.window == 0:
                long.judge(self._long.copy(), age >= self._warm_steps + long.spec.window)
                self._long[:] = 0
        was, self._is_alarmed = self._is_alarmed, any(level.worst for level in self._windows)
        if self._is_alarmed and not was:
            self._counters.health_alarms += 1
            if self._warns:
                self._warns = False  # once: a log that fills up is a fault of its own
                warnings.warn(str(self.state().alarm), HealthWarning, stacklevel=4)

    def state(self) -> Health:
        """What is to be said now."""
        alarm = next((level.alarm for level in self._windows if level.worst), None)
        departures = {k: v for level in self._windows for k, v in level.departures().items()}
        return Health(alarm, departures, self._judged)


def monitor_for(
    manifest: Manifest, buffers: Buffers, memory: Memory, counters: Counters, choice: HealthChoice
) -> HealthMonitor | None:
    """What watches a session; None where the bundle has no envelope, or nobody wants it."""
    if choice not in (True, False, "warn", "count", "off"):
        raise SpecError("unknown health choice", found=choice, expected="warn, count, off")
    if manifest.health is None or choice in (False, "off"):
        return None
    return HealthMonitor(manifest.health, buffers, memory, counters, choice in (True, "warn"))
