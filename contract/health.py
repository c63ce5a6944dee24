"""The health envelope: what a memory met when it was calibrated, in integers.

An endless stream is cut into windows. In each, statistics of a few numbers of a step are compared
with the limits here, in integer arithmetic, so that Python and C decide the same to the last bit.
`docs/guides/health.md` says what the false-alarm rate promises, and what nothing here sees.
"""

from __future__ import annotations

from typing import Literal

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StepSpec

VERSION = 1
CLIP = 1 << 20  # larger numbers count as this; calibration's own are up to 1 << 15
MOST_ELEMENTS = 64
"""Watched elements of one tensor; of a larger one so many, evenly spread."""

Source = Literal["input", "gate", "state"]
Statistic = Literal["mean", "change", "still", "low", "high", "pair", "writes", "size"]
STATISTICS: tuple[Statistic, ...] = ("mean", "change", "still", "low", "high", "pair")
"""Of every watched number that each step has; gates have ``writes`` too, states ``size`` alone.

``mean`` is its sum over a window, ``change`` the sum of its differences from step to step,
``still`` the longest run of steps in which it did not change, also over many windows, ``low`` and
``high`` its extremes, ``pair`` the sum of its products with the number that it went with most in
calibration, ``writes`` the steps in which the gate was open, ``size`` the sum of a state's
magnitudes at the end.
"""


class Watched(Record, frozen=True):
    """One number of a step, or one state, and the limits of its statistics.

    Attributes:
        source: Of what.
        tensor: Its name in the graph.
        element: Place in the tensor; -1 is the largest of a gate's elements, or the sum over a
            state's.
        exponent: What is counted is the number times two to this power, without its fraction.
        limits: Lowest and highest good value by statistic.
        pair: The other number of ``pair``, by its place in `HealthEnvelope.watched`.
    """

    source: Source
    tensor: str
    element: int
    exponent: int
    limits: dict[Statistic, tuple[int, int]]
    pair: int = 0

    @property
    def words(self) -> str:
        """What a person calls it."""
        place = f" [{self.element}]" if self.element >= 0 else ""
        return f"{self.source} {self.tensor}{place}"


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


class HealthEnvelope(Record, frozen=True, kw_only=True):
    """What a memory met when it was calibrated.

    Attributes:
        version: Of the meaning of all this.
        window: Steps of a window.
        windows_in_a_row: How many windows in a row are outside before there is an alarm.
        windows: Windows of calibration that the limits were set by.
        outside: How many of those the limits leave outside, plus one.
        steps_per_false_alarm: Stated: at least so many steps on average between two false alarms,
            if windows of use come from where those of calibration came from.
        is_independent: Whether in calibration no window depended on the one before it, which the
            rate of several in a row rests on.
        watched: What is looked at; numbers of each step first, states last.
        episodes: Digests of the episodes that it was learned on.
        steps: Of those.
        warm_up: After a reset; None where it was not measured.
        not_watched: What is not looked at, and why, one sentence each.
    """

    version: int = VERSION
    window: int
    windows_in_a_row: int
    windows: int
    outside: int
    steps_per_false_alarm: float
    is_independent: bool
    watched: tuple[Watched, ...]
    episodes: tuple[str, ...]
    steps: int
    warm_up: WarmUp | None = None
    not_watched: tuple[str, ...] = ()

    def check(self, step: StepSpec) -> None:
        """Refuse an envelope that is not of this step, or of a later version."""
        sizes = {("input", t.name): t.shape for t in step.inputs}
        sizes |= {("gate", g.name): g.shape for g in step.gates}
        sizes |= {("state", s.name): s.shape for s in step.states}
        strangers = [w.words for w in self.watched if (w.source, w.tensor) not in sizes]
        if self.version != VERSION or strangers or min(self.window, self.windows_in_a_row) < 1:
            raise SpecError(
                "the health envelope does not fit the step",
                found=", ".join(strangers) or f"version {self.version}, window {self.window}",
                expected=f"version {VERSION}, and tensors of the step",
                remedy="learn it again: stategate model health BUNDLE --episode FILE --out NEW",
            )
