"""The metrics of a session for Prometheus; needs the extra ``metrics``.

from prometheus_client import start_http_server
start_http_server(9100)
watch(session)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from stategate.contract.errors import MissingDependencyError
from stategate.runtime.ledger import Ledger
from stategate.runtime.process import rss_bytes
from stategate.runtime.session import Session

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError as missing:
    raise MissingDependencyError("prometheus_client", "metrics") from missing

_LABELS = {"gate_openings": "gate", "state_bytes_written": "state"}


class SessionCollector:
    """Reads a session's ledger when Prometheus asks; a step pays nothing for it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> Iterator[Metric]:
        """Counters of the ledger, then sizes."""
        model = self._session.manifest.model.name
        ledger = self._session.ledger
        for field in fields(Ledger):
            value = getattr(ledger, field.name)
            label = _LABELS.get(field.name)
            family = CounterMetricFamily(
                f"stategate_{field.name}",
                f"Ledger counter {field.name}",
                labels=["model", *([label] if label else [])],
            )
            for key, count in value.items() if isinstance(value, dict) else [(None, value)]:
                family.add_metric([model, *([key] if key is not None else [])], count)
            yield family
        for name, size in (
            ("state_bytes", self._session.manifest.state_bytes),
            ("resident_bytes", rss_bytes()),
        ):
            gauge = GaugeMetricFamily(
                f"stategate_{name}", f"{name} of the process", labels=["model"]
            )
            gauge.add_metric([model], size)
            yield gauge


def watch(session: Session, registry: CollectorRegistry = REGISTRY) -> SessionCollector:
    """Register a session; unregister the returned collector when the session is closed."""
    collector = SessionCollector(session)
    registry.register(collector)
    return collector
