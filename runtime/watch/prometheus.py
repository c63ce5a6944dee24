"""The metrics of sessions for Prometheus; needs the extra ``metrics``.

from prometheus_client import start_http_server
start_http_server(9100)
watch(session)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from stategate.contract.errors import MissingDependencyError
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.watch.telemetry import Reporting

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError as missing:
    raise MissingDependencyError("prometheus_client", "metrics") from missing

_LABELS = {"gate_openings": "gate", "state_bytes_written": "state"}


class SessionCollector:
    """Reads ledgers when Prometheus asks; a step pays nothing for it."""

    def __init__(self, sessions: Mapping[str, Reporting]) -> None:
        self._sessions = dict(sessions)

    def collect(self) -> Iterator[Metric]:
        """Counters of every ledger, then sizes."""
        ledgers = {name: session.ledger for name, session in self._sessions.items()}
        for field in fields(Ledger):
            label = _LABELS.get(field.name)
            family = CounterMetricFamily(
                f"stategate_{field.name}",
                f"Ledger counter {field.name}",
                labels=["session", "model", *([label] if label else [])],
            )
            for name, ledger in ledgers.items():
                who = [name, self._sessions[name].manifest.model.name]
                value = getattr(ledger, field.name)
                for key, count in value.items() if isinstance(value, dict) else [(None, value)]:
                    family.add_metric([*who, *([key] if key is not None else [])], count)
            yield family
        states = GaugeMetricFamily(
            "stategate_state_bytes", "Bytes of the state", labels=["session", "model"]
        )
        for name, session in self._sessions.items():
            manifest = session.manifest
            states.add_metric([name, manifest.model.name], manifest.state_bytes)
        yield states
        yield GaugeMetricFamily(
            "stategate_resident_bytes", "Resident memory of the process", value=rss_bytes()
        )


def watch(
    sessions: Reporting | Mapping[str, Reporting], registry: CollectorRegistry = REGISTRY
) -> SessionCollector:
    """Register one session, or all that a process steps, by name.

    Args:
        sessions: A registry takes one collector, so give all of a process at once.
        registry: Where the collector goes.

    Returns:
        The collector; unregister it when its sessions are closed.
    """
    collector = SessionCollector(sessions if isinstance(sessions, Mapping) else {"": sessions})
    registry.register(collector)
    return collector
