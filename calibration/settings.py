"""What calibrations and trainings are asked for, and their defaults; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from stategate.contract.errors import CalibrationError

TOLERANCE = 0.0005
"""Accuracy that a threshold may give up for fewer writes."""
REFINEMENTS = 3  # rounds of a search between two thresholds


@dataclass(frozen=True, slots=True)
class Wish:
    """What the threshold is chosen for; at most one of three rules, or none."""

    tolerance: float = TOLERANCE  # for none of them: accuracy that may be given up for fewer writes
    accuracy: float | None = None  # the fewest writes with at least this accuracy
    write_rate: float | None = None  # the wanted share of elements that open
    max_output_error: float | None = None  # the fewest writes with at most this output error

    def __post_init__(self) -> None:
        """Refuse wishes that contradict each other, and NaN."""
        wished = (self.tolerance, self.accuracy, self.write_rate, self.max_output_error)
        if any(wish is not None and math.isnan(wish) for wish in wished):
            raise CalibrationError("NaN is nothing to choose a threshold by", expected="a number")
        rules = [wish for wish in wished[1:] if wish is not None]
        if len(rules) > 1:
            raise CalibrationError("a threshold is chosen by one rule", found=f"{len(rules)} rules")

    def rounds(self, *, proposed: bool) -> int:
        """Times that the episodes are rolled, at most."""
        if self.write_rate is not None:
            return proposed + 1 + REFINEMENTS
        return 3 if proposed else 1  # a bound is looked for more closely between proposals alone


Place: TypeAlias = Literal["auto", "inside", "apart"]
"""Where a frozen backbone goes: into the step of the bundle, or beside it."""


def check_place(place: Place, *, is_file: bool, is_missing: bool) -> None:
    """Refuse a place that a backbone cannot have."""
    if place not in get_args(Place):
        raise CalibrationError("no such place", found=place, expected=", ".join(get_args(Place)))
    if place == "inside" and is_file:
        raise CalibrationError(
            "an ONNX file cannot be put into a step that is traced from torch",
            found="a file, inside",
            expected="a torch module, inside; or a file, apart",
            remedy="leave --backbone out",
        )
    if place != "auto" and is_missing:
        raise CalibrationError("there is no backbone to place", remedy="leave --backbone out")


@dataclass(frozen=True, slots=True)
class WrapRecipe:
    """How a memory behind a frozen backbone is trained; the defaults are those that were tried."""

    iterations: int = 1500  # optimiser steps, a prolonged beginning not counted
    seed: int = 0  # of weights, draws and where rows begin
    holdout: float = 0.25  # share of the recordings that nothing is trained on
    # nats, or squared spreads of a continuous action, that one write must save; None: 0.1, and a
    # third of it where the gate closes for ever
    price: float | None = None
    chunk: int | None = None  # steps back-propagated through; None: by how rare hard labels are
    rows: int = 32  # places in the recordings that are walked through side by side
    jump: float = 0.02  # chance that a row goes elsewhere at a chunk's beginning
    noise: float = 0.3  # on features in training, in units of their spread
    easy_weight: float = 0.1  # of labels that need no memory, in the loss
    learning_rate: float = 4e-3  # peak; cosine down to 3 %
    warm_share: float = 0.2  # first share: every step writes, nothing is priced
    ramp_share: float = 0.2  # next share, over which the price grows from zero
    settle_share: float = 0.15  # last share: the gate is frozen and hard
    ungated: int = 8  # one row in so many is written always, so that the cell goes on learning
    probe_iterations: int = 300  # of the net without memory that tells hard labels from easy ones
    least_steps: int = 8000  # in all recordings

    def __post_init__(self) -> None:
        """Refuse what no training can be done with."""
        for name, low, high in (
            ("iterations", 20, 1_000_000),
            ("holdout", 0.01, 0.9),
            ("price", 1e-6, 100.0),
            ("chunk", 8, 4096),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise CalibrationError(
                    f"{name} is out of its range", found=value, expected=f"{low:,} to {high:,}"
                )
