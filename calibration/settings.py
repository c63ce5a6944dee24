"""What calibrations and trainings are asked for, and their defaults; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stategate.contract.errors import CalibrationError

TOLERANCE = 0.0005
"""Accuracy that a threshold may give up for fewer writes."""
REFINEMENTS = 3  # rounds of a search between two thresholds


@dataclass(frozen=True, slots=True)
class Wish:
    """What the threshold is chosen for; at most one of the four, or none of them.

    Attributes:
        tolerance: For none of them: accuracy that may be given up for fewer writes.
        accuracy: The fewest writes with at least this accuracy.
        write_rate: The wanted share of elements that open.
        max_output_error: The fewest writes with at most this output error; beside ``costs``, the
            difference of outputs that makes a write needed, and no bound.
        costs: Price of a missed and of a needless write; the least price wins.
    """

    tolerance: float = TOLERANCE
    accuracy: float | None = None
    write_rate: float | None = None
    max_output_error: float | None = None
    costs: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse wishes that contradict each other, that are NaN, and prices that say nothing."""
        wished = (self.tolerance, self.accuracy, self.write_rate, self.max_output_error)
        if any(wish is not None and math.isnan(wish) for wish in wished):
            raise CalibrationError("NaN is nothing to choose a threshold by", expected="a number")
        bound = None if self.costs is not None else self.max_output_error
        rules = [w for w in (self.accuracy, self.write_rate, bound, self.costs) if w is not None]
        if len(rules) > 1:
            raise CalibrationError("a threshold is chosen by one rule", found=f"{len(rules)} rules")
        costs = (0.0, 1.0) if self.costs is None else self.costs
        if not all(math.isfinite(cost) and cost >= 0 for cost in costs) or not any(costs):
            raise CalibrationError("no such costs", found=costs, expected="0 or more, not both 0")

    @property
    def bounded(self) -> bool:
        """Whether the fewest writes are looked for that still meet a bound."""
        return self.costs is None and self.write_rate is None

    def rounds(self, *, proposed: bool) -> int:
        """Times that the episodes are rolled, at most.

        Args:
            proposed: Whether the thresholds to try come from the gate's own values.
        """
        if self.write_rate is not None:
            return proposed + 1 + REFINEMENTS
        if self.costs is not None:
            return proposed + 2
        return 3 if proposed else 1  # a bound is looked for more closely between proposals alone


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """Everything that decides a trained gate, apart from the model, its inputs and versions.

    Attributes:
        write_price: Price of writing in every step, in units of the error term.
        seed: Of weights, draws and where streams begin.
        iterations: Optimiser steps.
        streams: Parallel streams in a batch.
        chunk: Steps back-propagated through; memories are carried over, their gradient is not.
        learning_rate: Peak; cosine down to 3 %.
        ramp_share: First share, over which the price grows from zero.
        fresh_probability: Chance that a stream starts afresh, elsewhere, at a chunk's beginning.
    """

    write_price: float = 0.1
    seed: int = 0
    iterations: int = 300
    streams: int = 16
    chunk: int = 32
    learning_rate: float = 1e-2
    ramp_share: float = 0.3
    fresh_probability: float = 0.1


@dataclass(frozen=True, slots=True)
class RetentionRecipe:
    """Everything that decides trained gates, apart from the model, its inputs and versions.

    Attributes:
        capacity_price: Of retaining twice as many tokens as there are slots.
        seed: Of where windows begin.
        iterations: Optimiser steps.
        streams: Windows in a batch.
        window: Steps of one; longer than the memory, or nothing has to leave.
        learning_rate: Peak; cosine down to nothing.
    """

    capacity_price: float = 1.0
    seed: int = 0
    iterations: int = 200
    streams: int = 8
    window: int = 128
    learning_rate: float = 1e-2
