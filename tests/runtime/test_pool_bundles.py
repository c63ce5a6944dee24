from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Budget, Bundle, FileRef, sha256, write_bundle
from stategate.contract.errors import BundleError, EngineError, SpecError
from stategate.runtime import Pool, Session
from stategate.runtime.check.gaps import Gaps
from stategate.runtime.check.golden import replay

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
CLOSED = np.array([[-1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


def test_a_bundle_for_one_session_is_a_pool_of_one_row(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session, Pool.open(tiny_bundle) as pool:
        assert (pool.capacity, pool.join()) == (1, 0)
        for value in (OPEN, CLOSED, OPEN):
            ours, theirs = pool.step(x=value), session.step(x=value)
            assert ours["y"].tobytes() == theirs["y"].tobytes()
        assert pool.state(0, "h").tobytes() == session.state("h").tobytes()
        assert pool.ledger(0) == session.ledger


def test_a_session_refuses_a_pool_bundle_and_names_the_pool(tiny_pool_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"4 sessions[\s\S]*Pool\.open"):
        Session.open(tiny_pool_bundle)


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_run_says_that_a_bundle_is_for_a_pool(tiny_pool_bundle: Path) -> None:
    shown = invoke("run", tiny_pool_bundle, "--steps", 5, code=2)
    assert "pool bundle" in shown and "Pool.open" in shown


def test_inspect_shows_how_many_sessions_a_bundle_serves(
    tiny_pool_bundle: Path, tiny_bundle: Path
) -> None:
    assert "4 in one step, 20 bytes each" in invoke("inspect", tiny_pool_bundle)
    assert json.loads(invoke("inspect", tiny_pool_bundle, "--json"))["sessions"] == 4
    assert "sessions" not in invoke("inspect", tiny_bundle)


def test_verify_replays_every_row_of_a_pool(tiny_pool_bundle: Path, tmp_path: Path) -> None:
    assert json.loads(invoke("verify", tiny_pool_bundle, "--json"))["passed"] is True
    result = replay(tiny_pool_bundle)
    assert result is not None and result.steps == 40 and result.gate_flips == 0


def test_a_small_error_of_a_quiet_row_is_not_hidden_by_a_loud_one() -> None:
    theirs = np.array([[1000.0], [1.0]])
    ours = theirs + [[0.0], [0.5]]
    for sessions, expected in ((1, 0.0005), (2, 0.5)):
        gaps = Gaps(sessions)
        gaps.add({"y": ours}, {"y": theirs})
        assert gaps.worst() == expected
    short = Gaps(2)
    short.add({"y": ours[:1]}, {"y": theirs})
    assert short.worst() == float("inf")


def test_an_initial_state_of_the_wrong_size_is_refused(
    tiny_pool_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_pool_bundle)
    files = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    files["initial/0.bin"] = files["initial/0.bin"][:16]  # one row instead of four
    listed = tuple(FileRef(f.path, sha256(files[f.path])) for f in bundle.manifest.files)
    manifest = msgspec.structs.replace(bundle.manifest, files=listed)
    with pytest.raises(EngineError, match="16 bytes"):
        Pool.open(write_bundle(tmp_path / "b", manifest, files).path)


def test_a_pool_refuses_a_budget_that_it_does_not_keep(
    tiny_pool_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_pool_bundle)
    files = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    manifest = msgspec.structs.replace(bundle.manifest, budget=Budget(writes_per_1000_steps=5))
    with pytest.raises(SpecError, match="writes_per_1000_steps"):
        Pool.open(write_bundle(tmp_path / "b", manifest, files).path)
