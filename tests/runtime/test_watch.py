"""The page that is alive, without a browser: who may ask, what is answered, what a step pays."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from stategate.contract import Budget
from stategate.contract.errors import RuntimeFault, SpecError
from stategate.runtime import Session
from stategate.runtime.base.times import Histogram
from stategate.runtime.watch.server import Server, encoded
from stategate.runtime.watch.tap import FAULT, WROTE, thinned

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


def events(stream: Any) -> dict[str, Any]:
    """The next event that says something."""
    for line in stream:
        if line.startswith(b"data: "):
            news: dict[str, Any] = json.loads(line[6:])
            return news
    raise AssertionError("the stream ended")


def status_of(server: Server, path: str, host: str = "localhost", method: str = "GET") -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={"Host": host})
    return connection.getresponse().status


def test_who_looks_sees_each_step_and_what_a_write_changed(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, budget=Budget(writes_per_1000_steps=500)) as session:
        url = session.watch().url
        session.step(x=OPEN)  # nobody looks yet
        with urlopen(f"{url}events") as stream:
            assert events(stream)["rows"] == []
            before = session.state("h").copy()
            session.step(x=-OPEN)
            session.step(x=OPEN)
            rows: list[Any] = []
            while len(rows) < 2:
                rows += (news := events(stream))["rows"]
        assert [(row[0], row[2]) for row in rows] == [(2, 0), (3, WROTE)]
        assert rows[1][3] == pytest.approx(float(session.gates["gate"].max()), rel=1e-6)
        assert (news["status"]["ledger"]["writes"], news["status"]["ledger"]["steps"]) == (2, 3)
        (gauge,) = news["status"]["gauges"]
        assert (
            gauge["remaining"] == 499.0
        )  # two of 500 taken, half a write earned in each of two steps
        moment = json.load(urlopen(f"{url}moment?step=3"))
        after = session.state("h")
        change = moment["states"]["h"]
        assert change["changed"] == int((before != after).sum())
        assert change["largest_change"] == pytest.approx(float(abs(after - before).max()), rel=1e-5)
        assert moment["inputs"]["x"]["values"] == pytest.approx(OPEN.reshape(-1).tolist())
        assert json.load(urlopen(f"{url}moment?step=1")) is None
        about = json.load(urlopen(f"{url}about"))
        assert about["model"] == "Tiny" and about["state_bytes"] == session.manifest.state_bytes


def test_a_session_that_nobody_watches_has_nothing_to_call(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        assert session._deadline is None and session._server is None
        session.step(x=OPEN)
        assert sum(session._times.step.counts) == 0


def test_the_page_ends_with_its_session_and_no_closed_one_is_watched(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        server = session.watch()
        with pytest.raises(SpecError, match="watched already"):
            session.watch()
    with pytest.raises(OSError):
        status_of(server, "/about")
    with pytest.raises(RuntimeFault, match="closed"):
        session.watch()


def test_only_this_machine_asks_and_nobody_changes_anything(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        server = session.watch()
        assert status_of(server, "/about") == 200
        # A page elsewhere whose name was made to lead to this machine.
        assert status_of(server, "/about", host="attacker.example") == 403
        assert status_of(server, "/about", host="attacker.example:80") == 403
        for method in ("POST", "PUT", "DELETE"):
            assert status_of(server, "/", method=method) == 501
        assert status_of(server, "/../../etc/passwd") == 404
        for step in ("", "-1", "x", "9" * 30, "%00"):
            assert status_of(server, f"/moment?step={step}") == 200


def test_an_address_that_others_reach_asks_for_its_token(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        server = session.watch(bind="0.0.0.0")
        token = server.url.partition("?token=")[2]
        assert len(token) >= 32
        for path in ("/", "/about", "/events", "/moment?step=1"):
            assert status_of(server, path, host="robot") == 403
        assert status_of(server, f"/about?token={token}", host="robot") == 200
        assert status_of(server, f"/about?token={token[:-1]}", host="robot") == 403
        assert status_of(server, "/about?token=%C3%A9", host="robot") == 403


def test_where_nothing_can_listen_the_remedy_is_another_place(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        for bind, port in (("192.0.2.1", 0), ("127.0.0.1", 70_000), ("no such host", 0)):
            with pytest.raises(SpecError, match="--bind 127.0.0.1 --port 0"):
                session.watch(port, bind)
        session.watch()


def test_thinned_rows_keep_what_happened() -> None:
    rows = [[i, 1, FAULT if i == 777 else WROTE if i % 100 == 0 else 0] for i in range(10_000)]
    chosen = thinned(rows, 500)
    assert len(chosen) == 500 and chosen == sorted(chosen)
    assert {row[0] for row in rows if row[2]} <= {row[0] for row in chosen}
    assert len(thinned(rows, 50)) == 50


def test_a_histogram_has_a_bound_in_the_bucket_below_it() -> None:
    histogram = Histogram()
    for ns in (1000, 1001, 2000, 5 * 10**9):
        histogram.add(ns)
    assert histogram.counts[:2] == [1, 2] and histogram.counts[-1] == 1
    assert histogram.above(0.5) == 2e-6 and histogram.above(1.0) == float("inf")


def test_nothing_in_the_data_of_a_page_ends_its_script() -> None:
    assert "</script" not in encoded({"name": "</script><script>alert(1)</script>"})
