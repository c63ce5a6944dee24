"""The health envelope: what a memory met when it was calibrated, in integers.

An endless stream is cut into windows. In each, statistics of a few numbers of a step are compared
with the limits here, in integer arithmetic, so that Python and C decide the same to the last bit.
`docs/guides/health.md` says what the false-alarm rate promises, and what nothing here sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StateSpec, StepSpec

VERSION = 1
CLIP = 1 << 20  # larger numbers count as this; calibration's own are up to 1 << 15
MOST_ELEMENTS = 64
"""Watched elements of one tensor; of a larger one so many, evenly spread."""

_ROUNDED = 1 + 1e-9  # a rate that is worked out in another order
MOST_IN_A_ROW = 8
"""Windows in a row that an alarm may ask for."""

Source = Literal["input", "gate", "state"]
Statistic = Literal["mean", "change", "still", "low", "high", "pair", "writes", "size"]
STATISTICS: tuple[Statistic, ...] = ("mean", "change", "still", "low", "high", "pair")
"""Of every watched number that each step has; gates have ``writes`` too, states ``size`` alone.

``mean`` is its sum over a window, ``change`` the sum of its differences from step to step,
``still`` the longest run of steps in which it did not change, also over many windows, ``low`` and
``high`` its extremes, ``pair`` the sum of the products of its differences and those of the number
that it moved with most in calibration, ``writes`` the steps in which the gate was open, ``size``
the sum of a state's magnitudes at the end.
"""
REST: tuple[Statistic, ...] = ("writes", "size")
SUMS: tuple[Statistic, ...] = ("mean", "change", "pair", "writes")
"""Statistics of a long window that are sums of those of its short ones."""
Limits: TypeAlias = dict[Statistic, tuple[int, int, int, int]]


def spread(size: int) -> range:
    """Places of the elements that are watched of a tensor: all, or evenly spread ones."""
    return range(0, size, -(-size // MOST_ELEMENTS))


def is_watched(state: StateSpec) -> bool:
    """Whether the size of a state is looked at: not of a ring, and not of one in float16."""
    return state.cursor is None and state.dtype != "float16"


def chance_in_a_row(outside: int, windows: int, in_a_row: int) -> float:
    """Chance that so many exchangeable windows in a row are all outside.

    Args:
        outside: Rank of the limit among the windows that set it, from the largest.
        windows: How many those are.
        in_a_row: How many windows of use.
    """
    return math.prod((outside + i) / (windows + 1 + i) for i in range(in_a_row))


class Watched(Record, frozen=True):
    """One number of a step, or one state, and the limits of its statistics.

    Attributes:
        source: Of what.
        tensor: Its name in the graph.
        element: Place in the tensor; -1 is the largest of a gate's elements, or the sum over a
            state's.
        exponent: What is counted is the number times two to this power, without its fraction.
        limits: By statistic, in integers: lowest good value, least and greatest of calibration,
            highest good value.
        pair: The other number of ``pair``, by its place in `HealthEnvelope.watched`.
        name: What the observation contract calls it, or nothing.
        long_limits: Those of long windows.
    """

    source: Source
    tensor: str
    element: int
    exponent: int
    limits: Limits
    pair: int = 0
    name: str = ""
    long_limits: Limits = {}

    def limits_of(self, level: int) -> Limits:
        """Those of a level."""
        return self.long_limits if level else self.limits

    @property
    def words(self) -> str:
        """What a person calls it."""
        place = f"[{self.element}]" if self.element >= 0 else ""
        return f"{self.source} {self.name or self.tensor + place}"


class WarmUp(Record, frozen=True):
    """Steps after a reset until every decision is that of a memory with a history.

    Attributes:
        cuts: Places in the episodes at which a memory was begun anew beside the one that went on.
        median: Steps of half of them, at most; None where half of them needed longer than was
            looked.
        worst: Steps of all; None where one needed longer.
        steps: How far was looked.
        tolerance: How far outputs may differ, in units of their largest magnitude.
    """

    cuts: int
    median: int | None
    worst: int | None
    steps: int
    tolerance: float

    @property
    def words(self) -> str:
        """One line for a person."""
        longer = f"more than {self.steps:,}"
        median, worst = (longer if n is None else f"{n:,}" for n in (self.median, self.worst))
        return f"warm-up: {median} steps in half of {self.cuts} cuts, {worst} in all"


class Level(Record, frozen=True):
    """Windows of one length.

    Attributes:
        window: Their steps.
        windows_in_a_row: How many in a row are outside before there is an alarm.
        windows: Windows of calibration that set the limits.
        outside: How many of those may lie outside, and one more.
        steps_per_false_alarm: At least so many steps, on average, between two false alarms.
        is_independent: Whether there were enough windows in calibration to tell that none depended
            on the one before it, which the rate of several in a row rests on.
    """

    window: int
    windows_in_a_row: int
    windows: int
    outside: int
    steps_per_false_alarm: float
    is_independent: bool

    @property
    def is_true(self) -> bool:
        """Whether it promises no more than its windows allow."""
        in_a_row = self.windows_in_a_row
        if not (1 <= in_a_row <= MOST_IN_A_ROW and 1 <= self.outside <= self.windows):
            return False
        chance = chance_in_a_row(self.outside, self.windows, in_a_row if self.is_independent else 1)
        return 0 < self.steps_per_false_alarm <= self.window / chance * _ROUNDED


class HealthEnvelope(Record, frozen=True, kw_only=True):
    """What a memory met when it was calibrated.

    Attributes:
        version: Of the meaning of all this.
        levels: Short windows, and perhaps long ones of some of them, for `SUMS` alone.
        steps_per_false_alarm: Stated: at least so many steps, on average, between two false
            alarms of any level, if windows of use come from where those of calibration came from.
        watched: What is looked at; numbers of each step first, states last.
        episodes: Digests of the episodes that it was learned on.
        steps: Of those.
        warm_up: After a reset; None where it was not measured.
        not_watched: What is not looked at, and why, one sentence each.
    """

    version: int = VERSION
    levels: tuple[Level, ...]
    steps_per_false_alarm: float
    watched: tuple[Watched, ...]
    episodes: tuple[str, ...]
    steps: int
    warm_up: WarmUp | None = None
    not_watched: tuple[str, ...] = ()

    def check(self, step: StepSpec) -> None:
        """Refuse an envelope that is not of this step, or of a later version."""
        tensors: list[tuple[Source, str, tuple[int, ...]]]
        tensors = [("input", t.name, t.shape) for t in step.inputs]
        tensors += [("gate", g.name, g.shape) for g in step.gates]
        right = [(kind, name, i) for kind, name, shape in tensors for i in spread(math.prod(shape))]
        right += [("state", s.name, -1) for s in step.states if is_watched(s)]
        own = [(w.source, w.tensor, w.element) for w in self.watched]
        odd = [w.words for w in self.watched if not self._is_whole(w, step.thresholds)]
        levels = self.levels
        whole = (
            len(levels) in (1, 2)
            and 0 < levels[0].window <= levels[-1].window <= self.steps
            and levels[0].window % 32 == levels[-1].window % levels[0].window == 0
            and all(level.is_true for level in levels)
            and self.steps_per_false_alarm > 0
            and self.steps_per_false_alarm * sum(1 / n.steps_per_false_alarm for n in levels)
            <= _ROUNDED
            and 0 <= self.warm_steps <= self.steps
        )
        if self.version != VERSION or own != right or odd or not whole:
            raise SpecError(
                "the health envelope does not fit the step",
                found=", ".join(odd[:3])
                or f"version {self.version}, {len(own)} numbers watched"
                + ("" if whole else "; windows or a rate of false alarms that nobody learned"),
                expected=f"version {VERSION}, {len(right)} numbers, and all limits of each",
                remedy="learn it again: stategate model health BUNDLE --episode FILE --out NEW",
            )

    def _is_whole(self, watched: Watched, thresholds: Mapping[str, float]) -> bool:
        """Whether it has all limits, and numbers that can be counted with."""
        expected: set[Statistic] = {"size"} if watched.source == "state" else set(STATISTICS)
        if watched.source == "gate" and watched.tensor in thresholds:
            expected.add("writes")
        numbers = sum(one.source != "state" for one in self.watched)
        limits = [
            n for four in (*watched.limits.values(), *watched.long_limits.values()) for n in four
        ]
        return (
            set(watched.limits) == expected
            and set(watched.long_limits) <= expected & {*SUMS}
            and (len(self.levels) > 1 or not watched.long_limits)
            and 0 <= watched.pair < numbers
            and abs(watched.exponent) <= 100
            and all(abs(n) <= 1 << 62 for n in limits)
            and all(
                four[0] <= four[3]
                for four in (*watched.limits.values(), *watched.long_limits.values())
            )
        )

    def sentence(self, level: int, place: int, statistic: Statistic, value: int) -> str:
        """What a statistic that is outside says, for a person.

        Args:
            level: Of its window.
            place: In `watched`.
            statistic: Which.
            value: Of it.
        """
        watched, window = self.watched[place], self.levels[level].window
        _, least, greatest, _ = watched.limits_of(level)[statistic]
        what = watched.words
        if statistic == "still":
            return f"{what} has not moved for {value:,} steps; in calibration at most {greatest:,}"
        unit = 2.0**-watched.exponent
        if statistic in ("mean", "change", "pair"):
            unit /= window
        if statistic == "pair":
            unit *= 2.0 ** -self.watched[watched.pair].exponent
        if statistic == "writes":
            unit = 1.0
        now, low, high = (f"{number * unit:.4g}" for number in (value, least, greatest))
        steps = f"{window:,} steps"
        say = {
            "mean": f"the mean of {what} over {steps} is {now}",
            "change": f"{what} changes by {now} a step",
            "low": f"the lowest {what} of {steps} is {now}",
            "high": f"the highest {what} of {steps} is {now}",
            "pair": f"{what} and {self.watched[watched.pair].words} move together by {now}",
            "writes": f"{what} was open in {now} of {steps}",
            "size": f"the size of {what} is {now}",
        }[statistic]
        return f"{say}; in calibration {low} to {high}"

    def lines(self) -> list[str]:
        """What it promises, for a person."""
        lines = [
            f"windows: {n.window:,} steps; {n.windows_in_a_row} outside in a row are an alarm"
            + ("" if n.is_independent else "; they may depend on the one before")
            for n in self.levels
        ]
        lines += [
            f"false alarms: at most one in {self.steps_per_false_alarm:,.0f} steps on average, if "
            "the stream comes from where the recordings came from",
            f"learned on: {self.steps:,} steps of {len(self.episodes)} episode(s), "
            f"{len(self.watched)} numbers",
        ]
        if self.warm_up is not None:
            lines.append(self.warm_up.words)
        return lines + [f"not watched: {sentence}" for sentence in self.not_watched]

    @property
    def warm_steps(self) -> int:
        """Steps that a memory takes to be warm after a reset."""
        warm_up = self.warm_up
        if warm_up is None:
            return 0
        return warm_up.steps if warm_up.worst is None else warm_up.worst


def places_of(watched: Sequence[Watched], level: int = 0) -> list[tuple[int, Statistic]]:
    """The statistics of a window in their order: place in ``watched``, and which."""
    kinds = (*STATISTICS, *REST)
    return [(i, s) for s in kinds for i, w in enumerate(watched) if s in w.limits_of(level)]
