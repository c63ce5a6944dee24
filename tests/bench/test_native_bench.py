from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from stategate.runtime.cli import main


@pytest.fixture
def same_cores() -> Iterator[None]:
    """The measurement pins this process to one core."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("same_cores")
def test_the_figures_hold_every_key_and_say_which_peers_failed(
    native_bundle: Path, tmp_path: Path
) -> None:
    # A python that has none of the peers.
    words = ["bench-native", str(native_bundle), "--rounds", "1", "--out", str(tmp_path)]
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\necho 'no such runtime here' >&2\nexit 1\n")
    empty.chmod(0o755)
    result = CliRunner().invoke(main, [*words, "--peers", str(empty)])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "native.json").read_text())
    assert figures["library_bytes"] < 200_000
    for key in ("speedup_vs_ort_run", "speedup_vs_best_peer", "c_over_floor", "quiet_over_write"):
        assert figures[key] > 0.0
    assert set(figures["peers_failed"]) == {"mnn", "openvino", "litert"}
    assert "no such runtime here" in figures["peers_failed"]["mnn"]
    assert figures["machine"]["cpu"] and figures["native"]["compiler"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no/such/bundle"], "not a bundle"),
        (["BUNDLE", "--rounds", "0"], "rounds"),
        (["BUNDLE", "--peers", "no/python"], "does not exist"),
    ],
)
def test_wrong_use_is_told(native_bundle: Path, words: list[str], says: str) -> None:
    words = [str(native_bundle) if word == "BUNDLE" else word for word in words]
    result = CliRunner().invoke(main, ["bench-native", *words])
    assert result.exit_code == 2
    assert says in result.output


def test_a_bundle_without_source_is_told_how_to_get_it(aura_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["bench-native", str(aura_bundle)])
    assert result.exit_code == 2
    assert "--engines onnxruntime,native" in result.output
