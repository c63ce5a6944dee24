"""What a session reports: a plain dict, one JSON line an interval, and gauges for Prometheus."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import IO, TYPE_CHECKING

from stategate.contract.errors import SpecError
from stategate.runtime.base.clock import Clock, MonotonicClock
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.process import rss_bytes

if TYPE_CHECKING:
    from stategate.runtime.watch.watched import WatchedOwner


def metrics(session: WatchedOwner) -> dict[str, float | int | str]:
    """Everything that is worth watching, flat: counters, rates, sizes, and who reports.

    A write rate that leaves the calibrated one is the first sign that a robot sees something new.
    """
    ledger = session.ledger
    report: dict[str, float | int | str] = {
        "model": session.manifest.model.name,
        "bundle_sha256": session.bundle_digest,
        "engine": session.engine_name,
        "state_bytes": session.manifest.state_bytes,
        "rss_bytes": rss_bytes(),
    }
    for field in fields(Ledger):
        value = getattr(ledger, field.name)
        if isinstance(value, dict):
            report |= {f"{field.name}.{key}": count for key, count in value.items()}
        else:
            report[field.name] = value
    if ledger.steps:
        report["write_rate"] = ledger.writes / ledger.steps
    if session.snapshot_problem is not None:
        report["snapshot_problem"] = session.snapshot_problem
    for gate in session.manifest.gates:
        if gate.expected_write_rate is not None:
            report[f"expected_write_rate.{gate.name}"] = gate.expected_write_rate
    return report


class JsonLines:
    """Writes the metrics of a session as one JSON line an interval.

    Call `tick` after each step; it looks at the clock and does nothing most of the time.
    """

    def __init__(
        self, session: WatchedOwner, out: IO[str], every_seconds: float, clock: Clock | None = None
    ) -> None:
        """Start an interval of ``every_seconds``; every line in ``out`` is flushed."""
        if not every_seconds > 0:
            raise SpecError("the interval must be positive", found=every_seconds)
        self._session, self._out = session, out
        self._clock = clock or MonotonicClock()
        self._every_ns = int(every_seconds * 1e9)
        self._start_ns = self._next_ns = self._clock.now_ns()
        self._next_ns += self._every_ns

    def tick(self) -> bool:
        """Write a line if it is time; returns whether it was."""
        now_ns = self._clock.now_ns()
        if now_ns < self._next_ns:
            return False
        # From now on and not from when it was due: a late line is not followed by a burst.
        self._next_ns = now_ns + self._every_ns
        line = {"elapsed_s": (now_ns - self._start_ns) / 1e9, **metrics(self._session)}
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()
        return True
