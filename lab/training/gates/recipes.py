"""How gates of a frozen model are trained; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """Everything that decides a trained gate, apart from the model, its inputs and versions."""

    write_price: float = 0.1  # price of writing in every step, in units of the error term
    seed: int = 0  # of weights, draws and where streams begin
    iterations: int = 300  # optimiser steps
    streams: int = 16  # parallel streams in a batch
    # steps back-propagated through; memories are carried over, their gradient is not
    chunk: int = 32
    learning_rate: float = 1e-2  # peak; cosine down to 3 %
    ramp_share: float = 0.3  # first share, over which the price grows from zero
    # chance that a stream starts afresh, elsewhere, at a chunk's beginning
    fresh_probability: float = 0.1


@dataclass(frozen=True, slots=True)
class RetentionRecipe:
    """Everything that decides trained gates, apart from the model, its inputs and versions."""

    capacity_price: float = 1.0  # of retaining twice as many tokens as there are slots
    seed: int = 0  # of where windows begin
    iterations: int = 200  # optimiser steps
    streams: int = 8  # windows in a batch
    window: int = 128  # steps of one; longer than the memory, or nothing has to leave
    learning_rate: float = 1e-2  # peak; cosine down to nothing
