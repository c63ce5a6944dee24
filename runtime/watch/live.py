"""A session as a page sees it: what it is, how it stands, its latest steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stategate.contract import Manifest
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.watch.gauges import record
from stategate.runtime.watch.tap import Tap, number

if TYPE_CHECKING:
    from stategate.runtime.watch.watched import WatchedOwner

_OF_A_GATE = ("name", "kind", "threshold", "expected_write_rate")


def about(manifest: Manifest, digest: str, engine: str, **more: Any) -> dict[str, Any]:
    """What does not change while a bundle is stepped."""
    observation = manifest.observation
    return {
        "model": manifest.model.name,
        "family": manifest.model.family,
        "digest": digest,
        "engine": engine,
        "precision": manifest.step_graph.precision,
        "state_bytes": manifest.state_bytes,
        "kv_bytes_per_step": manifest.model.kv_bytes_per_step,
        "gates": [{name: getattr(gate, name) for name in _OF_A_GATE} for gate in manifest.gates],
        "states": {s.name: {"bytes": s.bytes, "gate": s.gate} for s in manifest.states},
        "rate_hz": observation.rate_hz if observation is not None else None,
        "deadline_ms": manifest.budget.deadline_ms,
        "is_recording": False,
        **more,
    }


def health_of(session: WatchedOwner) -> dict[str, Any] | None:
    """What a session says of its memory's health; None where its bundle knows no envelope."""
    health = session.health
    if health is None:
        return None
    departures = {name: number(value) for name, value in health.departures.items()}
    return {"alarm": health.alarm, "departures": departures, "windows": health.windows}


def status(session: WatchedOwner) -> dict[str, Any]:
    """How a session stands now."""
    steps = session.time_steps().step
    return {
        "ledger": asdict(session.ledger),
        "rss_bytes": rss_bytes(),
        "gauges": [record(gauge) for gauge in session.gauges],
        "thresholds": {name: number(value) for name, value in session.thresholds.items()},
        "p50_s": number(steps.above(0.5) or 0.0),
        "p99_s": number(steps.above(0.99) or 0.0),
        "health": health_of(session),
        "snapshot_problem": session.snapshot_problem,
    }


class LiveSource:
    """A session that is stepped by another thread."""

    def __init__(self, session: WatchedOwner, tap: Tap) -> None:
        self._session, self._tap = session, tap
        self.since, self.moment = tap.since, tap.moment  # see `Source`
        self.more: dict[str, Any] = {}  # said on the page besides

    def about(self) -> dict[str, Any]:
        """See `Source`."""
        session = self._session
        facts = about(session.manifest, session.bundle_digest, session.engine_name)
        return facts | {"deadline_ms": session.budget.deadline_ms} | self.more

    def status(self) -> dict[str, Any]:
        """See `Source`."""
        return status(self._session)

    def look(self, viewers: int) -> None:
        """See `Source`."""
        self._tap.viewers += viewers
