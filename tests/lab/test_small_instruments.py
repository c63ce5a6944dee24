from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.__main__ import main
from lab.overhead import measure_overhead


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
        "overhead",
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


@pytest.mark.slow
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
