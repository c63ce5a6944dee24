from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stategate.contract.errors import SpecError
from stategate.runtime import Session
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.watch.prometheus import watch
from stategate.runtime.watch.telemetry import JsonLines, metrics

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


def test_metrics_are_flat_and_say_what_the_ledger_says(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        session.step(x=OPEN)
        session.step(x=-OPEN)
        report = metrics(session)
        again = session.metrics()
        assert again == report | {"rss_bytes": again["rss_bytes"]}
    assert (report["steps"], report["writes"], report["write_rate"]) == (2, 1, 0.5)
    assert report["gate_openings.gate"] == 1 and report["state_bytes_written.h"] == 16
    assert json.loads(json.dumps(report)) == report


def test_one_line_is_written_an_interval_and_never_a_burst(tiny_bundle: Path) -> None:
    clock, out = ManualClock(), io.StringIO()
    with Session.open(tiny_bundle) as session:
        lines = JsonLines(session, out, every_seconds=1.0, clock=clock)
        wrote = []
        for pause_ms in (400, 400, 400, 5000, 100, 900):
            clock.advance_ns(pause_ms * 1_000_000)
            session.step(x=OPEN)
            wrote.append(lines.tick())
    assert wrote == [False, False, True, True, False, True]
    parsed = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["steps"] for line in parsed] == [3, 4, 6]
    assert [line["elapsed_s"] for line in parsed] == [1.2, 6.2, 7.2]


def test_an_interval_must_be_positive(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session, pytest.raises(SpecError, match="positive"):
        JsonLines(session, io.StringIO(), every_seconds=0)


def test_prometheus_reads_what_the_ledgers_say(tiny_bundle: Path) -> None:
    registry = CollectorRegistry()
    with Session.open(tiny_bundle) as left, Session.open(tiny_bundle) as right:
        watch({"left": left, "right": right}, registry)
        for _ in range(3):
            left.step(x=OPEN)
        text = generate_latest(registry).decode()
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    who = ("model", "Tiny"), ("session", "left")
    assert samples[("stategate_steps_total", *who)] == 3
    assert samples["stategate_steps_total", who[0], ("session", "right")] == 0
    assert samples[("stategate_gate_openings_total", ("gate", "gate"), *who)] == 3
    assert samples[("stategate_state_bytes", *who)] == 20


def test_one_session_is_watched_without_a_name(tiny_bundle: Path) -> None:
    registry = CollectorRegistry()
    with Session.open(tiny_bundle) as session:
        watch(session, registry)
        session.step(x=OPEN)
        text = generate_latest(registry).decode()
    assert 'stategate_writes_total{model="Tiny",session=""} 1.0' in text


def test_a_loop_counts_its_misses_in_the_ledger(tiny_bundle: Path) -> None:
    clock = ManualClock()
    with Session.open(tiny_bundle, clock=clock) as session:
        for tick in session.every(hz=100, ticks=5):
            session.step(x=OPEN)
            clock.advance_ns(25_000_000 if tick.index == 0 else 1_000_000)
        assert session.ledger.steps == 5
        assert session.ledger.deadline_misses == 2
        for _ in session.every(hz=100, ticks=3):
            clock.advance_ns(-1_000_000_000)
        assert session.ledger.clock_faults >= 2
