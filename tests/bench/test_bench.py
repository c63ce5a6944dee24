from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from stategate.bench.measure.turns import measure_overhead
from stategate.bench.report.plots import Run, Timeline, draw_run, read_run
from stategate.cli.main import main
from stategate.contract.errors import EpisodeError

RUN = Run("aura", 1000, 125, 4224, 8.0, 256, 60.6, Timeline((0, 500, 1000), (0, 60, 125)))


def test_a_run_becomes_a_png_and_an_svg_that_say_what_happened(tmp_path: Path) -> None:
    png, svg = draw_run(RUN, tmp_path / "memory")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_the_same_run_gives_the_same_svg(tmp_path: Path) -> None:
    first = draw_run(RUN, tmp_path / "a")[1].read_bytes()
    assert draw_run(RUN, tmp_path / "b")[1].read_bytes() == first


def test_a_model_that_replaces_no_cache_is_drawn_without_one(tmp_path: Path) -> None:
    plain = Run("gru", 10, 10, 64, 1.0, None, None, Timeline((0, 10), (0, 10)))
    assert draw_run(plain, tmp_path / "memory")[0].exists()


def test_run_and_plot_fit_together(tiny_bundle: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    run = ["run", str(tiny_bundle), "--steps", "50", "--out", str(tmp_path)]
    assert runner.invoke(main, run).exit_code == 0
    plotted = runner.invoke(main, ["plot", str(tmp_path / "ledger.json"), "--json"])
    assert all(Path(path).exists() for path in json.loads(plotted.output))


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for raw in (b"{}", b"\xff", b""):
        path.write_bytes(raw)
        with pytest.raises(EpisodeError, match="the ledger of a run cannot be read"):
            read_run(path)


def test_every_option_is_timed_beside_the_engine_in_one_run(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    result = measure_overhead(tiny_bundle, rounds=2, burst=10)
    p50 = {way.name: way.p50_us for way in result.ways}
    assert sum(name.startswith("session") for name in p50) == 5
    assert all(us > 0 for us in p50.values())
    fastest = min(us for name, us in p50.items() if "bound" in name)
    assert result.ratio == p50["session: + write budget"] / fastest
    assert result.guard_quiet_us > 0 and result.guard_write_us > 0
    arguments = [
        "bench-overhead",
        str(tiny_bundle),
        "--rounds",
        "1",
        "--burst",
        "5",
        "--out",
        str(tmp_path),
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert json.loads((tmp_path / "overhead.json").read_text())["rounds"] == 1


@pytest.mark.case("D14")
def test_a_soak_reports_growth_beside_what_the_engine_alone_grows(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    arguments = ["soak", str(tiny_bundle), "--steps", "40000", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["steps"] == 40_000
    assert report["rss_slope_bytes_per_million_steps"] is None  # of 5,000 steps after warming up
    assert "per million" not in result.output
    assert report["python_growth_bytes"] < 1000
    assert {"rss_growth_bytes", "engine_rss_growth_bytes", "p99_last_us"} <= set(report)
    few = CliRunner().invoke(main, ["soak", str(tiny_bundle), "--steps", "10"])
    assert few.exit_code == 2
