"""Is it slower than before, or was the machine: two results of ``stategate bench``.

Each burst is divided by the pace of the core just before it, a fixed piece of Python, so that a
core that ran slower all the while is not taken for a slower model. Of what is left the ratio of
medians is given an interval by drawing blocks of neighbouring bursts, and it counts only if the
whole interval lies beyond a margin: two processes of the same program differ by a few per cent
anyway, because memory lies elsewhere in each, and no interval from within one process knows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stategate.bench.record import BenchResult, Rounds, Subject
from stategate.common.statistics import Floats, independent_ratio
from stategate.contract.errors import ResultError

MARGIN = 0.05
FEWEST_ROUNDS = 20
_SAME_MACHINE = ("machine", "board", "cpu", "cores", "power_mode")

Verdict = Literal["slower", "faster", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one subject, before and after."""

    subject: str  # its name
    figure: str  # ``p50`` or ``p99`` of a burst, median over the bursts
    before_us: float  # as measured, the pace left in
    after_us: float  # the same
    ratio: float  # after over before, the pace taken out
    low: float  # lower end of its 95 % interval
    high: float  # upper end
    verdict: Verdict  # what that means


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was compared."""

    changes: tuple[Change, ...]  # one entry for each figure
    notes: tuple[str, ...]  # what else differs between the two measurements

    @property
    def regressed(self) -> bool:
        """Whether anything became slower."""
        return any(change.verdict == "slower" for change in self.changes)


def compare(before: BenchResult, after: BenchResult, margin: float = MARGIN) -> Comparison:
    """Compare the subjects that both results have."""
    pairs = _pairs(before, after)
    changes = []
    for old, new in pairs:
        for subject in (old, new):
            count = len(subject.rounds.at_s)
            if count < FEWEST_ROUNDS:
                raise ResultError(
                    f"{subject.name} has too few bursts to tell a change from noise",
                    found=count,
                    expected=f"{FEWEST_ROUNDS} or more",
                    remedy="measure longer: leave --quick out",
                )
        for figure in ("p50", "p99"):
            changes.append(_change(old, new, figure, margin))
    return Comparison(tuple(changes), _notes(before, after, pairs))


def _pairs(before: BenchResult, after: BenchResult) -> list[tuple[Subject, Subject]]:
    """Subjects of the same name; two lonely ones belong together whatever they are called."""
    if len(before.subjects) == len(after.subjects) == 1:
        return [(before.subjects[0], after.subjects[0])]
    old = {subject.name: subject for subject in before.subjects}
    pairs = [(old[new.name], new) for new in after.subjects if new.name in old]
    if not pairs:
        raise ResultError(
            "the two results have no subject in common",
            found=", ".join(subject.name for subject in after.subjects),
            expected=", ".join(old),
        )
    return pairs


def _change(old: Subject, new: Subject, figure: str, margin: float) -> Change:
    before, after = _paced(old.rounds, figure), _paced(new.rounds, figure)
    ratio = independent_ratio(after, before)
    verdict: Verdict = "no difference shown"
    if ratio.low > 1 + margin:
        verdict = "slower"
    elif ratio.high < 1 / (1 + margin):
        verdict = "faster"
    return Change(
        subject=new.name,
        figure=figure,
        before_us=float(np.median(_series(old.rounds, figure))),
        after_us=float(np.median(_series(new.rounds, figure))),
        ratio=ratio.estimate,
        low=ratio.low,
        high=ratio.high,
        verdict=verdict,
    )


def _series(rounds: Rounds, figure: str) -> Floats:
    return np.array(rounds.p50_us if figure == "p50" else rounds.p99_us, np.float64)


def _paced(rounds: Rounds, figure: str) -> Floats:
    return _series(rounds, figure) / np.array(rounds.pace_us, np.float64)


def _notes(
    before: BenchResult, after: BenchResult, pairs: list[tuple[Subject, Subject]]
) -> tuple[str, ...]:
    notes = []
    facts = before.machine.facts, after.machine.facts
    differing = [n for n in _SAME_MACHINE if facts[0].get(n) != facts[1].get(n)]
    if differing:
        notes.append(f"measured on different machines ({', '.join(differing)}): of little use")
    for old, new in pairs:
        for fact in ("engine", "precision", "digest", "state_bytes"):
            values = getattr(old, fact), getattr(new, fact)
            if values[0] != values[1]:
                notes.append(f"{new.name}: {fact} {values[0]} before, {values[1]} after")
    compared = {new.name for _, new in pairs}
    missing = [s.name for s in after.subjects if s.name not in compared]
    if missing:
        notes.append(f"not compared: {', '.join(missing)}")
    return tuple(notes)
