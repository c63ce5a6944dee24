"""The pages in a real browser: they draw their tables and plots, and complain of nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from stategate.bench.record import BenchResult, Energy
from stategate.bench.report.page import html, markdown
from stategate.calibration.drift.loop import drift
from stategate.calibration.drift.page import page as drift_page
from stategate.cli.main import main
from stategate.contract import Bundle

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, _NAMES) if path), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("STATEGATE_BROWSER") != "required",
    reason="no Chromium on this machine; Debian's package is called chromium",
)


def test_idle_gaps_in_which_the_clock_went_backwards_leave_a_page_without_a_figure(
    result: Callable[..., BenchResult],
) -> None:
    measured = result(30.0, seed=0)
    subject = msgspec.structs.replace(measured.subjects[0], idle_us=(), busy_us=())
    text = markdown(msgspec.structs.replace(measured, subjects=(subject,)))
    lines = text.splitlines()
    (head,) = (i for i, line in enumerate(lines) if "ms idle, us" in line)
    assert [cell.strip() for cell in lines[head + 2].split("|")[2:4]] == ["-", "-"]


def test_the_bytes_that_were_appended_and_folded_stand_in_both_pages(
    result: Callable[..., BenchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stategate.bench.report.plots.times_plots", lambda _: [])
    measured = result(30.0, seed=0)
    subject = msgspec.structs.replace(
        measured.subjects[0], appended_bytes=1_234_567, folded_bytes=76_543
    )
    measured = msgspec.structs.replace(measured, subjects=(subject,))
    rows = [[c.strip() for c in line.split("|")] for line in markdown(measured).splitlines()]
    (names,) = [row for row in rows if "of these appended" in row]
    (figures,) = [row for row in rows if len(row) == len(names) and "1,234,567" in row]
    shown = dict(zip(names, figures, strict=True))
    assert (shown["of these appended"], shown["and folded"]) == ("1,234,567", "76,543")
    assert "of these appended" in html(measured) and ">76,543<" in html(measured)


class Elements(HTMLParser):
    """How many elements of each kind a document has, and the texts of its heading cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1


# What a script in the page finds out: is anything wider than the window, and which colours rule.
PROBE = """<script>
addEventListener("load", () => {
  const seen = document.createElement("p"), root = document.documentElement;
  const small = [...document.querySelectorAll("svg")].filter(
    (svg) => svg.getBoundingClientRect().width < 200 || !svg.querySelector("path"));
  seen.id = "probe";
  seen.textContent = [root.scrollWidth <= root.clientWidth, small.length,
    getComputedStyle(document.body).backgroundColor].join(" ");
  document.body.append(seen);
});
</script></body>"""


def browse(page: str, folder: Path, *, width: int, dark: bool = False) -> tuple[str, list[str]]:
    """The page as the browser built it, and what its console said."""
    assert CHROMIUM is not None, "no Chromium on this machine; make browser installs one"
    path = folder / "page.html"
    path.write_text(page.replace("</body>", PROBE))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(folder)},
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def two(result: Callable[..., BenchResult]) -> BenchResult:
    """Two subjects, one with energy and a name that is no HTML."""
    one = result(30.0, 1)
    energy = Energy(joules=10.0, seconds=2.0, mj_per_step=0.1, net_mj_per_step=0.02)
    other = msgspec.structs.replace(
        one.subjects[0], name="<script>alert(1)</script>|", energy=energy
    )
    return msgspec.structs.replace(one, subjects=(*one.subjects, other))


@pytest.fixture(scope="module")
def drawn(two: BenchResult) -> str:
    """The page of both."""
    return html(two)


@needs_browser
@pytest.mark.parametrize(
    ("width", "dark", "paper"),
    [(1280, False, "rgb(255, 255, 255)"), (390, True, "rgb(22, 24, 27)")],
)
def test_the_page_of_a_bench_is_whole_in_a_browser(
    drawn: str, tmp_path: Path, width: int, dark: bool, paper: str
) -> None:
    seen, console = browse(drawn, tmp_path, width=width, dark=dark)
    assert console == []
    elements = Elements(seen).counts
    assert elements["svg"] == 5 and elements["table"] >= 7
    assert f'<p id="probe">true 0 {paper}</p>' in seen
    for heading in (
        "Step times",
        "Memory",
        "Write ledger",
        "Wear",
        "Energy",
        "Machine and options",
    ):
        assert f"<h2>{heading}</h2>" in seen


@pytest.mark.case("D12")
def test_a_drift_page_names_what_was_judged_and_how_much_of_each_limit_was_used(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    assert golden is not None
    report = drift(tiny_bundle, tiny_bundle, [("held <out>", golden)], 40)
    limits = msgspec.structs.replace(report.limits, mean_error=0.5)
    total = msgspec.structs.replace(report.total, output_error_mean=0.125)
    report = msgspec.structs.replace(report, limits=limits, total=total)
    page = drift_page(report)
    assert page.index(">passed<") < page.index("<table")
    digest = Bundle.open(tiny_bundle).digest[:12]
    assert page.count(digest) == 2 and ">float32<" in page and "held &lt;out&gt;" in page
    assert "<td>mean output error</td><td>0.125</td><td>0.5</td><td>25%</td>" in page
    assert "No decision differs." in page and page.count("<svg") == 1  # no plot of one flat line
    for name in ("small", "smaller"):
        (tmp_path / name).mkdir()
        report.save(tmp_path / name / "drift.json")
    files = [str(tmp_path / name / "drift.json") for name in ("small", "smaller")]
    out = tmp_path / "both.html"
    done = CliRunner().invoke(main, ["report", *files, "--out", str(out)])
    assert done.exit_code == 0, done.output
    both = out.read_text()
    assert both.index("smaller") < both.index("<section") and both.count("<section") == 2


@needs_browser
def test_a_wide_table_throws_a_shadow_on_a_phone(tiny_bundle: Path, tmp_path: Path) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    assert golden is not None
    page = drift_page(drift(tiny_bundle, tiny_bundle, [("e", golden)], 40))
    seen, console = browse(page, tmp_path, width=390)
    assert console == []
    assert '<p id="probe">true 0 ' in seen and Elements(seen).counts["table"] >= 4
    assert "scroll; }" in page  # what is hidden is hinted at


@needs_browser
def test_a_page_with_an_error_would_be_noticed(tmp_path: Path) -> None:
    broken = "<!doctype html><title>x</title><body><script>missing()</script></body>"
    _, console = browse(broken, tmp_path, width=800)
    assert any("missing" in line for line in console)


def test_names_cannot_smuggle_html_into_the_page_or_columns_into_markdown(
    two: BenchResult, drawn: str
) -> None:
    assert "<script>" not in drawn
    rows = [line for line in markdown(two).splitlines() if "alert(1)" in line]
    assert rows and all("\\|" in row for row in rows if row.startswith("|"))


def test_the_page_of_a_record_is_the_same_every_time(two: BenchResult, drawn: str) -> None:
    assert html(two) == drawn
