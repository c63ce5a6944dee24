"""What remains of each budget, as a share of what there is when it is full."""

from __future__ import annotations

from typing import Any

import msgspec

from stategate.contract import Budget
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.base.times import Histogram
from stategate.runtime.keep.keeper import Keeper
from stategate.runtime.memory.governor import Governor

_WRITES = (
    ("writes_per_1000_steps", "writes by steps"),
    ("writes_per_second", "writes by time"),
    ("appended_bytes_per_1000_steps", "bytes to append"),
    ("folded_bytes_per_1000_steps", "bytes to fold"),
)


class Gauge(msgspec.Struct, frozen=True):
    """A budget as a tank of fuel."""

    name: str  # field of `Budget` that sets the limit
    label: str  # what is used up, for a reader
    remaining: float  # what may be used at once
    full: float  # most that can remain
    unit: str = ""  # of both

    @property
    def share(self) -> float:
        """What remains, from 0 to 1."""
        return min(1.0, max(0.0, self.remaining / self.full)) if self.full > 0 else 0.0


def gauges(
    budget: Budget, governor: Governor | None, keeper: Keeper | None, step_times: Histogram
) -> list[Gauge]:
    """One gauge for each limit in force, in the order of `Budget`."""
    entries = []
    if governor is not None:
        for (name, label), remaining, full in zip(
            _WRITES, governor.balance, governor.full, strict=True
        ):
            if getattr(budget, name) is not None:
                unit = "bytes" if "bytes" in name else "writes"
                entries.append(Gauge(name, label, remaining, full, unit))
    if keeper is not None and keeper.allowance.is_limited:
        remaining, full = keeper.allowance.tokens, keeper.allowance.capacity
        entries.append(Gauge("persisted_bytes_per_day", "bytes to flash", remaining, full, "bytes"))
    if (peak := budget.peak_resident_bytes) is not None:
        entries.append(
            Gauge("peak_resident_bytes", "resident memory", peak - rss_bytes(), peak, "bytes")
        )
    if (deadline_ms := budget.deadline_ms) is not None:
        slow = step_times.above(0.99)
        remaining = deadline_ms - 1000 * (slow or 0.0)
        entries.append(Gauge("deadline_ms", "time of a step, p99", remaining, deadline_ms, "ms"))
    return entries


def record(gauge: Gauge) -> dict[str, Any]:
    """A gauge for JSON."""
    return {
        **msgspec.structs.asdict(gauge),
        "share": gauge.share,
        "remaining": max(0.0, gauge.remaining),
    }
