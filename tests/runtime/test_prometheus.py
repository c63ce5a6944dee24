"""Metrics as Prometheus itself reads them: times as histograms, rules, and the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from stategate.contract import Budget
from stategate.runtime import Session
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.memory.health import Health
from stategate.runtime.watch.prometheus import watch

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no Prometheus on this machine; make prometheus installs Debian's",
)
# What a model without hard gates, calibration, budget or envelope has no series of.
SOMETIMES = {"stategate_healthy", "stategate_health_departure_ratio"}
SOMETIMES |= {"stategate_expected_write_rate_ratio"}


def expressions() -> list[str]:
    """What dashboard and alert rules ask for."""
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    texts = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = (GRAFANA / "alerts.yml").read_text()
    return [*texts, *re.findall(r"expr: (?:\|\n)?((?:.|\n {10})*)", rules)]


@pytest.mark.case("D15")
def test_times_are_histograms_and_every_metric_says_what_it_is(tiny_bundle: Path) -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    budget = Budget(writes_per_1000_steps=10, deadline_ms=1)
    with Session.open(tiny_bundle, clock=clock, budget=budget) as session:
        watch({"left": session}, registry)
        for tick in session.every(hz=100, ticks=4):
            session.step(x=OPEN)
            clock.advance_ns(25_000_000 if tick.index == 0 else 1_000_000)
        text = generate_latest(registry).decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name, family in families.items():
        words = family.documentation
        assert len(words.split()) > 1 and words.endswith("."), name
    for name, count in (("step", 4), ("late", 4), ("jitter", 3)):
        family = families[f"stategate_{name}_seconds"]
        assert family.type == "histogram"
        values = {(s.name.rpartition("_")[2], s.labels.get("le")): s.value for s in family.samples}
        assert values["count", None] == count == values["bucket", "+Inf"]
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
    rest = {
        s.labels["budget"]: s.value for s in families["stategate_budget_remaining_ratio"].samples
    }
    assert rest["writes_per_1000_steps"] == pytest.approx(0.603)  # 4 of 10 used, 3 steps earned
    assert rest["deadline_ms"] == pytest.approx(0.999, abs=0.01)


def test_a_memory_that_is_not_healthy_is_0(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    health = Health(alarm="the write rate", departures={"writes": 1.5}, windows=3)
    monkeypatch.setattr(Session, "health", property(lambda self: health))
    with Session.open(tiny_bundle) as session:
        watch(session, registry)
        text = generate_latest(registry).decode()
    assert 'stategate_healthy{model="Tiny",session=""} 0.0' in text
    assert 'stategate_health_departure_ratio{model="Tiny",session="",signal="writes"} 1.5' in text


def test_dashboard_and_rules_ask_for_what_there_is(tiny_bundle: Path) -> None:
    registry = CollectorRegistry()
    with Session.open(tiny_bundle, budget=Budget(deadline_ms=1)) as session:
        watch(session, registry)
        names = set(re.findall(r"^(stategate_\w+)", generate_latest(registry).decode(), re.M))
    metrics = {name for text in expressions() for name in re.findall(r"stategate_\w+", text)}
    assert metrics and metrics <= names | SOMETIMES


@needs_prometheus
def test_prometheus_takes_the_rules_and_each_alert_fires_where_it_should() -> None:
    for command in (
        ["check", "config", str(GRAFANA / "prometheus.yml")],
        ["test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_prometheus
def test_a_real_prometheus_scrapes_a_session_and_answers_the_dashboard(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    with Session.open(tiny_bundle, budget=Budget(deadline_ms=100)) as session:
        watch({"robot": session}, registry)
        server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = (GRAFANA / "prometheus.yml").read_text()
        config = config.replace("localhost:9100", f"127.0.0.1:{server.server_port}")
        (tmp_path / "prometheus.yml").write_text(config.replace("5s", "1s"))
        shutil.copy(GRAFANA / "alerts.yml", tmp_path)
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answer(expression: str) -> list[dict[str, object]]:
            url = f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': expression})}"
            body = json.load(urlopen(url))
            assert body["status"] == "success", body
            result: list[dict[str, object]] = body["data"]["result"]
            return result

        try:
            until = time.monotonic() + 60
            steps: list[dict[str, object]] = []
            while time.monotonic() < until:
                session.step(x=OPEN)
                time.sleep(0.2)
                try:
                    steps = answer('rate(stategate_step_seconds_count{session="robot"}[30s]) > 0')
                except OSError:  # it is not listening yet
                    continue
                if steps:
                    break
            assert steps
            assert answer("histogram_quantile(0.99, rate(stategate_step_seconds_bucket[30s]))")
            for expression in expressions():
                answer(expression.replace("$model", ".*").replace("$session", ".*"))
        finally:
            prometheus.terminate()
            prometheus.wait(timeout=20)
            server.shutdown()
            server.server_close()
