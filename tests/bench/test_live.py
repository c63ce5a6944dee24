"""The page that is alive, in a real browser: both widths, both themes, names that are no names."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate import learn_health
from stategate.bench.live.recorded import RecordedSource
from stategate.bench.live.remote import RemoteSource
from stategate.bench.live.terminal import show_in_terminal
from stategate.cli.main import main
from stategate.contract import Budget, Bundle, Episode, write_bundle
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session
from stategate.runtime.watch.server import Server
from tests.bench.test_page import CHROMIUM, needs_browser

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script> \u05e9\u05dc\u05d5\u05dd "
    + "W" * 3000
)
OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
PICTURES = os.environ.get("WATCH_PICTURES")
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
EPISODE = Episode({"x": np.stack([OPEN, -OPEN, -OPEN, -OPEN] * 40)})


@pytest.fixture
def hostile(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose model is called what a page must not run."""
    bundle = Bundle.open(tiny_bundle)
    old = bundle.manifest
    model = msgspec.structs.replace(old.model, name=HOSTILE, kv_bytes_per_step=64)
    files = {file.path: bundle.read(file) for file in old.all_files}
    write_bundle(tmp_path / "hostile", msgspec.structs.replace(old, model=model), files)
    return tmp_path / "hostile"


@pytest.fixture
def recording(hostile: Path, tmp_path: Path) -> Path:
    with Session.open(hostile, black_box=tmp_path / "robot.rec") as session:
        for inputs in EPISODE:
            session.step(**inputs)
    return tmp_path / "robot.rec"


@pytest.fixture
def url(hostile: Path) -> Iterator[str]:
    """The page of a session that is stepped meanwhile."""
    ended = threading.Event()
    budget = Budget(writes_per_1000_steps=200, deadline_ms=50)
    with Session.open(hostile, budget=budget) as session:

        def drive() -> None:
            for _, inputs in zip(session.every(hz=100), itertools.cycle(EPISODE), strict=False):
                if ended.is_set():
                    return
                session.step(**inputs)

        thread = threading.Thread(target=drive)
        thread.start()
        yield session.watch().url
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def look(browser: Any, url: str, width: int, theme: str, name: str) -> None:
    """Open a page, click a write, and hold what must be so of every page."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda problem: complaints.append(str(problem)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.get_by_role("button", name="write").first.click(timeout=20_000)
    page.locator("#moment-tables table").nth(3).wait_for()  # the page forbids to evaluate a text
    assert page.inner_text("#moment-note") == "It wrote."
    assert "elements changed" in page.inner_text("#moment-tables")
    assert page.text_content("#model") == HOSTILE
    assert page.evaluate("document.querySelectorAll('#live img').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (theme == "dark")
    ink = """id => { const c = document.getElementById(id), d = c.getContext("2d");
      return new Set(d.getImageData(0, 0, c.width, c.height).data).size }"""
    assert all(page.evaluate(ink, plot) > 3 for plot in ("gate", "memory"))
    assert complaints == []
    assert all(each.startswith(url.partition("?")[0]) for each in requests), "it asked elsewhere"
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}-{width}-{theme}.png", full_page=True)
    page.close()


@pytest.mark.slow
@needs_browser
def test_a_live_session_is_whole_in_a_browser(url: str, browser: Any) -> None:
    for width, theme in SIZES:
        look(browser, url, width, theme, "live")


@pytest.mark.slow
@needs_browser
def test_health_of_a_sensor_that_is_stuck_is_whole_in_a_browser(
    tiny_bundle: Path, tmp_path: Path, browser: Any
) -> None:
    x = np.random.default_rng(1).standard_normal((8_000, 1, 4)).astype(np.float32)
    bundle = learn_health(
        tiny_bundle, Episode({"x": x}), tmp_path / "watched", steps_per_false_alarm=20_000
    )
    with Session.open(bundle, health="count") as session:
        url = session.watch().url
        for width, theme in SIZES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            page.goto(url)
            page.locator("#health").wait_for()
            if width == 1280 and theme == "light":
                page.get_by_text("No window has been judged").wait_for()
            x[:, :, 2] = 0.5
            for row in x[:1_000]:
                session.step(x=row)
            page.get_by_text("Health alarm: input x[2] has not moved").wait_for()
            rows = page.locator("#departures tr")
            assert rows.count() == 13
            assert rows.nth(1).inner_text().startswith(("input x[2]", "input x"))
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if PICTURES:
                page.screenshot(path=f"{PICTURES}/health-{width}-{theme}.png", full_page=True)
            page.close()


@pytest.mark.slow
@needs_browser
def test_a_recording_is_whole_in_a_browser(
    recording: Path, hostile: Path, browser: Any, tmp_path: Path
) -> None:
    source = RecordedSource(recording, hostile)
    with Server(source) as server:
        look(browser, server.url, 390, "dark", "recording")
    source.close()
    out = tmp_path / "report.html"
    done = CliRunner().invoke(
        main, ["report", str(recording), "--bundle", str(hostile), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    for width, theme in SIZES:
        look(browser, out.as_uri(), width, theme, "report")


def test_a_recording_says_of_each_step_what_it_was(recording: Path, hostile: Path) -> None:
    source = RecordedSource(recording, hostile)
    rows, count = source.since(0)
    assert count == EPISODE.steps and [row[0] for row in rows] == list(range(1, count + 1))
    with Session.open(hostile) as session:  # the oracle: the same steps, taken here
        for row, inputs in zip(rows, EPISODE, strict=True):
            before, writes = session.state("h"), session.ledger.writes
            session.step(**inputs)
            assert row[2] == session.ledger.writes - writes
            assert row[3] == pytest.approx(float(session.gates["gate"].max()), rel=1e-6)
            if row[0] in (1, 90, count):
                moment = source.moment(row[0])
                assert moment is not None
                assert moment["inputs"]["x"]["values"] == pytest.approx(
                    inputs["x"].ravel().tolist()
                )
                changed = int((before != session.state("h")).sum())
                assert moment["states"]["h"]["changed"] == changed
    assert source.moment(0) is None and source.moment(count + 1) is None
    source.close()


@pytest.mark.slow
def test_another_process_is_watched_by_the_address_that_it_printed(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(tiny_bundle) as session:
        url = session.watch(bind="0.0.0.0").url
        source = RemoteSource(url)
        assert source.about()["model"] == "Tiny"
        session.step(x=OPEN)
        turns = iter(range(20))
        show_in_terminal(
            source, lambda: source.status()["ledger"]["steps"] == 1 or next(turns) > 18
        )
        assert "steps 1, writes 1, suppressed_writes 0, faults 0" in capsys.readouterr().out
        with pytest.raises(EpisodeError, match="token"):
            RemoteSource(url.partition("?")[0])
    with pytest.raises(EpisodeError, match="nothing that can be watched answers"):
        RemoteSource("127.0.0.1:9")


def test_wrong_files_of_a_page_are_refused_in_a_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "ledger.json").write_text("{}")
    out = ["--out", str(tmp_path / "report.html")]
    for verb, words in (
        (["report", str(tmp_path / "empty"), *out], "holds nothing that a page"),
        (["report", str(tmp_path / "notes.txt"), *out], "nothing that a page"),
        (["report", str(tmp_path / "ledger.json"), *out], "no ledger of a run"),
        (["report", str(tiny_bundle), str(tiny_bundle), *out], "on its own page"),
        (["watch", str(tmp_path / "missing.rec")], "no black box and no host"),
        (["watch", "missing.rec"], "no black box and no host"),
        (["watch", str(tmp_path / "notes.txt")], "--bundle BUNDLE"),
        (["watch", str(tmp_path / "notes.txt"), "--bundle", str(tiny_bundle)], "no black box"),
        (["watch", "localhost:9"], "nothing that can be watched answers"),
    ):
        done = CliRunner().invoke(main, verb)
        assert done.exit_code != 0 and words in " ".join(done.output.split()), done.output
