"""Health: whether a stream is still one that the memory was calibrated for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """What the last windows say.

    Attributes:
        alarm: What is wrong, in words; None while all is within.
        departures: By signal, its distance from the middle of its limits in units of half their
            width: above 1 is outside. Of the last whole window; empty before there is one.
        windows: Windows that were judged.
    """

    alarm: str | None
    departures: Mapping[str, float]
    windows: int = 0
