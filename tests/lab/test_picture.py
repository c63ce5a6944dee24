from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lab.__main__ import main as lab
from lab.picture import Run, Timeline, draw_run, read_run
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
    plotted = runner.invoke(lab, ["plot", str(tmp_path / "ledger.json"), "--json"])
    assert all(Path(path).exists() for path in json.loads(plotted.output))


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for raw in (b"{}", b"\xff", b""):
        path.write_bytes(raw)
        with pytest.raises(EpisodeError, match="the ledger of a run cannot be read"):
            read_run(path)
