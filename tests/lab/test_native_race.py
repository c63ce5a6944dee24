from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lab.__main__ import main
from lab.native_race import lines, shape_rows
from lab.peers.entries import Entry, Shape
from lab.peers.in_c import instruction_sets
from lab.peers.race import BARE, Row


@pytest.mark.slow
def test_the_figures_hold_every_key_and_say_which_peers_failed(
    native_bundle: Path, tmp_path: Path
) -> None:
    envs, folder = tmp_path / "envs", tmp_path / "race"
    (envs / "mnn").mkdir(parents=True)
    (envs / "mnn" / "error.txt").write_text("ERROR: no such wheel\n")
    (folder / "silero").mkdir(parents=True)
    (folder / "silero" / "error.txt").write_text("GraphError: the file cannot be read\n")
    (folder / "aura").symlink_to(native_bundle)
    out = tmp_path / "native.json"
    out.write_text(json.dumps({"shapes": [{"name": "gru-64, armv8-a"}, {"name": "silero"}]}))
    words = ["bench-native", str(folder), "--rounds", "1", "--out", str(tmp_path)]
    words += ["--only", "aura", "--only", "silero", "--envs", str(envs), "--strict"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 1 and "mnn" in result.output, result.output
    figures = json.loads(out.read_text())
    assert figures["library_bytes"] < 200_000 and figures["cold_start_ms"] > 0.0
    for key in ("c_over_floor", "quiet_over_write"):
        assert figures[key] > 0.0
    assert figures["speedup_vs_ort_run"] is None and figures["speedup_vs_best_peer"] is None
    assert figures["best_peer"] is None and figures["best_peer_over_ours"] is None
    assert figures["ours"] in ("stategate, native", "stategate, onnxruntime")
    assert "no such wheel" in figures["not_measured"]["mnn"]
    assert "no environment" in figures["not_measured"]["litert"]
    assert figures["race"]["facts"] and figures["native"]["compiler"]
    # Rows of other shapes stay, those of a shape that is raced again do not.
    rows = {row["name"]: row for row in figures["shapes"]}
    assert "gru-64, armv8-a" in rows and len(rows) == len(figures["shapes"])
    assert "cannot be read" in rows["silero"]["missed"][0]
    best = instruction_sets()[0]
    quiet = rows[f"aura, quiet, {best}"]
    assert quiet["best_peer"] == f"C by hand, quiet, {best}" and quiet["ours_us"] > 0.0
    assert rows["aura"]["best_peer"] is None and rows["aura"]["peers"]["numpy"] > 0.0


def row(name: str, us: float | None = None, error: str | None = None) -> Row:
    return Row(name, best_p50_us=us, error=error)


def test_a_row_names_the_best_peer_and_every_bar_that_is_missed() -> None:
    peers = (
        Entry("C generated", "", group="v3", is_generated=True),
        Entry("C Eigen", "", group="v3"),
        Entry("fast", "", is_runtime=True),
        Entry("slow", "", is_runtime=True),
        Entry("dead", "", is_runtime=True),
        Entry("by hand", ""),
    )
    rows = [row(BARE, 3.0), row("C generated", 1.0), row("C Eigen", 1.0), row("fast", 6.0)]
    rows += [row("slow", 9.0), row("by hand", 1.0), row("dead", error="it died")]
    shape = Shape(peers, bars={"C": 0.9, "": 0.4}, cannot={"lame": "has no legs"})
    in_c, called = shape_rows("net", shape, SimpleNamespace(rows=rows), peers)
    assert (in_c["name"], in_c["best_peer"]) == ("net, v3", "C Eigen")
    assert in_c["missed"] == ["1.00 of C Eigen, at most 0.90 was the aim"]
    assert (called["name"], called["ours_us"]) == ("net", 3.0)
    # Who is written by hand is in the table and is nobody's runtime.
    assert called["best_peer"] == "fast" and called["peers"]["by hand"] == 1.0
    assert called["missed"] == ["0.50 of fast, at most 0.40 was the aim"]
    assert called["not_measured"] == {"dead": "it died", "lame": "has no legs"}
    assert "lame: has no legs" in "\n".join(lines([in_c, called]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no/such/folder"], "does not exist"),
        (["FOLDER", "--rounds", "0"], "rounds"),
        (["FOLDER", "--envs", "no/folder"], "does not exist"),
        (["FOLDER", "--only", "lstm-65"], "lstm-64"),
    ],
)
def test_wrong_use_is_reported(tmp_path: Path, words: list[str], says: str) -> None:
    words = [str(tmp_path) if word == "FOLDER" else word for word in words]
    result = CliRunner().invoke(main, ["bench-native", *words])
    assert result.exit_code == 2
    assert says in result.output


def test_a_bundle_that_was_not_made_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench-native", str(tmp_path), "--only", "gtcrn"])
    assert result.exit_code == 0
    assert "its bundle was not made" in result.output
