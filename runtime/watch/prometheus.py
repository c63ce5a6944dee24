"""The metrics of sessions for Prometheus; needs the extra ``metrics``.

from prometheus_client import start_http_server
start_http_server(9100)
watch(session)
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

from stategate.contract.errors import MissingDependencyError
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.base.times import BOUNDS_NS, Histogram
from stategate.runtime.watch.live import health_of
from stategate.runtime.watch.watched import WatchedOwner

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as missing:
    raise MissingDependencyError("prometheus_client", "metrics") from missing

_WHO = ["session", "model"]
_LABELS = {"gate_openings": "gate", "state_bytes_written": "state"}
_TIMES = {
    "step": "Wall time of Session.step, from the call to the return.",
    "late": "How much later than due a tick of Session.every began.",
    "jitter": "How much that lateness changed from one tick to the next.",
}


def counter_helps() -> dict[str, str]:
    """What each counter of the ledger counts, as its documentation says it."""
    text = inspect.getdoc(Ledger) or ""  # empty under python -OO
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(line.split()) for name, line in entries}


class SessionCollector:
    """Reads ledgers when Prometheus asks; a step pays for its own time alone."""

    def __init__(self, sessions: Mapping[str, WatchedOwner]) -> None:
        self._sessions = {
            (name, session.manifest.model.name): session for name, session in sessions.items()
        }
        self._helps = counter_helps()
        for session in sessions.values():
            session.time_steps()

    def collect(self) -> Iterator[Metric]:
        """Counters of every ledger, then times, then what goes up and down."""
        yield from self._counters()
        for name, text in _TIMES.items():
            times = HistogramMetricFamily(f"stategate_{name}_seconds", text, labels=_WHO)
            for who, session in self._sessions.items():
                histogram: Histogram = getattr(session.time_steps(), name)
                sums = itertools.accumulate(histogram.counts)
                bounds = [*(f"{ns / 1e9:g}" for ns in BOUNDS_NS), "+Inf"]
                buckets = list(zip(bounds, sums, strict=True))
                times.add_metric(who, buckets, histogram.total_ns / 1e9)
            yield times
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        ledgers = {who: session.ledger for who, session in self._sessions.items()}
        for field in fields(Ledger):
            label = _LABELS.get(field.name)
            family = CounterMetricFamily(
                f"stategate_{field.name}",
                self._helps.get(field.name, field.name),
                labels=[*_WHO, *([label] if label else [])],
            )
            for who, ledger in ledgers.items():
                value = getattr(ledger, field.name)
                for key, count in value.items() if isinstance(value, dict) else [(None, value)]:
                    family.add_metric([*who, *([key] if key is not None else [])], count)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"stategate_{name}", text, labels=[*_WHO, *labels])

        states = family("state_bytes", "Bytes of all states together; they never grow.")
        rest = family(
            "budget_remaining_ratio",
            "What may be used at once of a budget, from 0 (nothing) to 1 (full).",
            "budget",
        )
        rates = family(
            "expected_write_rate_ratio", "Share of steps in which calibration saw a write.", "gate"
        )
        healthy = family(
            "healthy",
            "0 while there is a health alarm, else 1; from the first window that was judged on.",
        )
        departures = family(
            "health_departure_ratio",
            "How far a signal of the health envelope departs; above 1 is outside.",
            "signal",
        )
        problems = family(
            "snapshot_problem", "1 while something in the snapshot folder cannot be used, else 0."
        )
        for who, session in self._sessions.items():
            states.add_metric(who, session.manifest.state_bytes)
            problems.add_metric(who, session.snapshot_problem is not None)
            for gauge in session.gauges:
                rest.add_metric([*who, gauge.name], gauge.share)
            for gate in session.manifest.gates:
                if gate.expected_write_rate is not None:
                    rates.add_metric([*who, gate.name], gate.expected_write_rate)
            if (health := health_of(session)) is not None:
                if health["windows"]:  # before the first is judged nobody knows
                    healthy.add_metric(who, health["alarm"] is None)
                for signal, value in health["departures"].items():
                    departures.add_metric([*who, signal], float("nan") if value is None else value)
        yield from (states, rest, rates, healthy, departures, problems)
        yield GaugeMetricFamily(
            "stategate_resident_bytes", "Resident memory of the process.", value=rss_bytes()
        )


def watch(
    sessions: WatchedOwner | Mapping[str, WatchedOwner], registry: CollectorRegistry = REGISTRY
) -> SessionCollector:
    """Register one session, or all that a process steps, by name; their steps are timed.

    Args:
        sessions: A registry takes one collector, so give all of a process at once.
        registry: Where the collector goes.

    Returns:
        The collector; unregister it when its sessions are closed.
    """
    collector = SessionCollector(sessions if isinstance(sessions, Mapping) else {"": sessions})
    registry.register(collector)
    return collector
