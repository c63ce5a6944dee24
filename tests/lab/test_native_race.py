from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.__main__ import main


@pytest.mark.slow
def test_the_figures_hold_every_key_and_say_which_peers_failed(
    native_bundle: Path, tmp_path: Path
) -> None:
    envs = tmp_path / "envs"
    (envs / "mnn").mkdir(parents=True)
    (envs / "mnn" / "error.txt").write_text("ERROR: no such wheel\n")
    # The floor's environment is this one; nobody else has any.
    python = envs / "floor" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words = ["bench-native", str(native_bundle), "--rounds", "1", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        result = CliRunner().invoke(main, [*words, "--envs", str(envs)])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "native.json").read_text())
    assert figures["library_bytes"] < 200_000 and figures["cold_start_ms"] > 0.0
    for key in ("c_over_floor", "quiet_over_write"):
        assert figures[key] > 0.0
    assert figures["speedup_vs_ort_run"] is None and figures["speedup_vs_best_peer"] is None
    assert figures["best_peer"] is None and figures["best_peer_over_ours"] is None
    assert figures["ours"] in ("stategate, native", "stategate, onnxruntime")
    assert "no such wheel" in figures["not_measured"]["mnn"]
    assert "no environment" in figures["not_measured"]["litert"]
    rows = {row["name"]: row for row in figures["race"]["rows"]}
    assert (
        rows["stategate, native"]["best_p50_us"]
        == figures["best_burst_p50_us"]["stategate, native"]
    )
    assert figures["race"]["facts"] and figures["native"]["compiler"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no/such/bundle"], "not a bundle"),
        (["BUNDLE", "--rounds", "0"], "rounds"),
        (["BUNDLE", "--envs", "no/folder"], "does not exist"),
        (["BUNDLE", "--burst", "0"], "burst"),
        (["BUNDLE", "--tolerance", "0"], "tolerance"),
        (["BUNDLE", "--float", "no/folder"], "does not exist"),
    ],
)
def test_wrong_use_is_reported(native_bundle: Path, words: list[str], says: str) -> None:
    words = [str(native_bundle) if word == "BUNDLE" else word for word in words]
    result = CliRunner().invoke(main, ["bench-native", *words])
    assert result.exit_code == 2
    assert says in result.output


def test_a_bundle_without_source_shows_how_to_get_it(aura_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["bench-native", str(aura_bundle)])
    assert result.exit_code == 2
    assert "--engines onnxruntime,native" in result.output
