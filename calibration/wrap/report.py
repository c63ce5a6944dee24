"""What `stategate.wrap` found: a record, and its lines for a reader. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from stategate.contract.calibration import Interval
from stategate.contract.errors import ResultError
from stategate.contract.records import load_record, save_record

VERSION = 1


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one rule of writing does in closed loop on the held-out recordings."""

    # ``gate``, ``always``, ``never``, ``random`` or ``periodic``; the last two write as often as
    # the gate does. ``always`` is the better one of the memory before its gate was trained, and
    # afterwards
    rule: str
    write_rate: float  # share of steps that write
    # share of hard labels that are answered; None where actions are continuous
    accuracy: float | None
    # root mean square error at hard labels, in units of the action's spread; None where actions are
    # classes
    action_error: float | None
    # of the one of the two that is there, with 95 % confidence; None of fewer than two held-out
    # pieces
    interval: Interval | None
    threshold: float | None = None  # of the gate

    @property
    def score(self) -> float:
        """The accuracy, or the error."""
        score = self.accuracy if self.action_error is None else self.action_error
        assert score is not None
        return score


class WrapReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained, and what it does on recordings that nothing was trained on.

    A label is hard if a net without memory does not predict it. Accuracies and errors are those of
    hard labels; easy ones need no memory.
    """

    backbone: str  # where it comes from
    backbone_sha256: str  # digest of its weights or file; empty where it runs elsewhere
    features: int  # numbers that it gives
    actions: int  # classes, or numbers of a continuous action
    continuous: bool  # whether actions are numbers and not classes
    training_steps: int  # steps that were trained on
    held_out_steps: int  # steps that were judged on
    longest_stream: int  # steps of the longest held-out recording
    hard_rate: float  # share of steps whose label is hard
    hard_judged: int  # hard labels in the held-out steps
    # of the net without memory, at hard labels; None for continuous actions
    memoryless_accuracy: float | None
    memoryless_error: float | None  # the same, the error of continuous actions
    chunk: int  # steps back-propagated through
    price: float  # of a write
    iterations: int  # optimiser steps in all
    warm_iterations: int  # optimiser steps until the memory had learned
    threshold: float  # of the gate
    steps_per_write: float  # of the gate
    lost_points: float  # what the gate loses against writing always, as accuracy or error
    # upper end of its 95 % interval; None of fewer than two held-out pieces
    lost_bound: float | None
    rows: tuple[Row, ...]  # the rules side by side
    curve: tuple[Row, ...]  # the gate at every threshold that was tried
    state_bytes: int  # of the memory
    seconds: float  # Wall time
    warnings: tuple[str, ...] = ()  # what a reader should know before using it
    version: int = VERSION  # of this record

    def row(self, rule: str) -> Row:
        """What a rule does."""
        return next(row for row in self.rows if row.rule == rule)

    @property
    def accuracy(self) -> float | None:
        """Of the gate, at hard labels."""
        return self.row("gate").accuracy

    def save(self, path: str | Path) -> None:
        """Write it where `load` reads it."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | Path) -> WrapReport:
        """Read a report; `ResultError` where it cannot be, or is of another version."""
        return load_record(path, cls, ResultError, "the report of a wrapping", version=VERSION)

    def lines(self) -> Iterator[str]:
        """The report for a reader."""
        what = "error" if self.continuous else "accuracy"
        without = self.memoryless_error if self.continuous else self.memoryless_accuracy
        yield (
            f"{self.hard_rate:.1%} of the steps have a label that needs memory; "
            f"without one: {_figure(without, self.continuous)}"
        )
        yield f"{'writes':<22} {'of steps':>9} {what + ' at hard labels':>24}"
        for row in self.rows:
            name = row.rule if row.threshold is None else f"{row.rule} > {row.threshold:g}"
            interval = ""
            if row.interval is not None:
                ends = (row.interval.low, row.interval.high)
                interval = "  ({} to {})".format(*(_figure(end, self.continuous) for end in ends))
            score = _figure(row.score, self.continuous)
            yield f"{name:<22} {row.write_rate:>9.2%} {score:>24}{interval}"
        bound = "" if self.lost_bound is None else f", {self.lost_bound:.4f} at most"
        yield (
            f"{self.steps_per_write:.1f} times fewer writes than always, "
            f"{self.lost_points:.4f} lost{bound}"
        )
        for warning in self.warnings:
            yield f"warning: {warning}"


def _figure(score: float | None, continuous: bool) -> str:
    return "-" if score is None else f"{score:.4f}" if continuous else f"{score:.2%}"
