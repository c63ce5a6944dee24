"""A session holds its caller against what the policy was trained on, and keeps its reset rules."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle, Episode, write_bundle
from stategate.contract.claims import declared
from stategate.contract.errors import RateWarning, SpecError, StateFault
from stategate.runtime import Pool, Session
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.check.faults import inject
from stategate.runtime.episodes.recorder import Recorder
from stategate.runtime.episodes.run import run_episode

NAMES = ["hip", "knee", "ankle", "roll"]
OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


@pytest.fixture
def bundle_with(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny bundle with an observation contract."""

    def make(name: str = "bundle", **contract: Any) -> Path:
        opened = Bundle.open(tiny_bundle)
        observation = declared(contract, ("x",)) if contract else None
        manifest = msgspec.structs.replace(opened.manifest, observation=observation)
        content = {f.path: opened.read(f) for f in manifest.all_files}
        return write_bundle(tmp_path / name, manifest, content).path

    return make


def test_a_swapped_joint_a_missing_name_and_a_wrong_rate_are_refused_at_opening(
    bundle_with: Callable[..., Path], tmp_path: Path
) -> None:
    path = bundle_with(inputs={"x": NAMES}, rate_hz=50)
    with Session.open(path, observes=NAMES, rate_hz=50) as session:
        session.step(x=OPEN)
    with pytest.raises(SpecError, match="has 'knee' at index 1, and the caller gives 'ankle'"):
        Session.open(path, observes=["hip", "ankle", "knee", "roll"])
    with pytest.raises(SpecError, match="'roll' at index 3, and the caller gives nothing"):
        Session.open(path, observes={"x": NAMES[:3]})
    with pytest.raises(SpecError, match="runs at 50 Hz, and the caller's loop at 100 Hz"):
        Session.open(path, rate_hz=100)
    with pytest.raises(SpecError, match="at index 0"):
        Pool.open(path, observes=NAMES[::-1])
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"x": NAMES}))
    Pool.open(path, observes=file, rate_hz=50).close()
    with pytest.raises(SpecError, match="no observation contract"):
        Session.open(path, observes={"y": NAMES})


def test_a_bundle_that_says_nothing_cannot_be_compared(tiny_bundle: Path) -> None:
    with pytest.raises(SpecError, match="does not say what input 'x' consists of"):
        Session.open(tiny_bundle, observes=NAMES)
    with pytest.raises(SpecError, match="does not say its control rate"):
        Session.open(tiny_bundle, rate_hz=50)


def test_a_loop_at_another_rate_is_warned_of_or_refused(bundle_with: Callable[..., Path]) -> None:
    with Session.open(bundle_with(rate_hz=50), clock=ManualClock()) as session:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.every(50)
        with pytest.warns(RateWarning, match="runs at 50 Hz, and the caller's loop at 100 Hz"):
            session.every(100)
        with pytest.raises(SpecError, match="100 Hz"):
            session.every(100, on_rate="raise")
        with pytest.raises(SpecError, match="unknown policy"):
            session.every(100, on_rate="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["onnxruntime"])
def test_a_memory_that_was_idle_too_long_begins_anew(
    bundle_with: Callable[..., Path], engine: Any
) -> None:
    clock = ManualClock()
    path = bundle_with(resets={"idle_seconds": 0.5})
    with Session.open(path, clock=clock, engine=engine) as session, Session.open(path) as fresh:
        session.step(x=OPEN)
        clock.advance_ns(500_000_000)
        session.step(x=OPEN)
        assert session.ledger.resets == 0
        clock.advance_ns(500_000_001)
        after = session.step(x=OPEN)
        right = fresh.step(x=OPEN)
        assert {k: v.tobytes() for k, v in after.items()} == {
            k: v.tobytes() for k, v in right.items()
        }
        assert session.ledger.resets == 1
        clock.advance_ns(600_000_000)
        session.prefill(x=OPEN[None].repeat(3, 0))
        assert session.ledger.resets == 2 and session.ledger.steps == 6
        clock.advance_ns(-10)
        session.step(x=OPEN)
        assert (session.ledger.resets, session.ledger.clock_faults) == (2, 1)


def test_a_row_of_a_pool_that_was_idle_too_long_begins_anew_alone(
    bundle_with: Callable[..., Path],
) -> None:
    clock = ManualClock()
    with Pool.open(bundle_with(resets={"idle_seconds": 1}), clock=clock) as pool:
        row = pool.join()
        pool.step(x=OPEN)
        clock.advance_ns(2_000_000_000)
        pool.step(x=OPEN)
        assert pool.ledger(row).resets == 1 and pool.ledger(row).steps == 2
        clock.advance_ns(2_000_000_000)
        pool.leave(row)
        assert pool.join() == row
        pool.step(x=OPEN)
        assert pool.ledger(row).resets == 0  # another session, which was never idle
        clock.advance_ns(-1)
        pool.step(x=OPEN)
        assert pool.ledger(row).clock_faults == 1


@pytest.mark.parametrize("rule", [False, True])
def test_after_a_fault_the_memory_begins_anew_by_the_bundles_rule(
    bundle_with: Callable[..., Path], rule: bool
) -> None:
    path = bundle_with(resets={"on_fault": rule})
    with pytest.raises(SpecError, match="resets its memory" if rule else "no rings"):
        Session.open(path, on_fault="rewind")
    with Session.open(path) as session:
        initial = session.state("h").tobytes()
        session.step(x=OPEN)
        written = session.state("h").tobytes()
        assert written != initial
        inject(session, {1: "state"})
        with pytest.raises(StateFault, match="initial value" if rule else "the state before"):
            session.step(x=OPEN)
        assert session.ledger.resets == rule
        assert (session.state("h").tobytes() == initial) == rule


def test_what_was_restored_begins_anew_by_rule_and_keeps_its_counters(
    bundle_with: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(path: Path, folder: str) -> tuple[str, Session]:
        with Session.open(path, snapshots=tmp_path / folder) as session:
            session.restore()
            initial = session.state("h").tobytes()
            result = session.restore()
            assert result is not None and session.ledger.steps == 2
            assert (session.state("h").tobytes() == first) == bool(result.fresh)
            assert initial == session.state("h").tobytes()
            return result.fresh, session

    rules = {
        "plain": {},
        "each": {"on_restore": True},
        "switch": {"on_switch": True},
        "idle": {"idle_seconds": 5},
    }
    paths = {name: bundle_with(name, resets=rule) for name, rule in rules.items()}
    other = bundle_with("other", resets={"on_switch": True}, rate_hz=20)
    with Session.open(paths["plain"]) as session:
        first = session.state("h").tobytes()
    for name, path in paths.items():
        with Session.open(path, snapshots=tmp_path / f"{name}-folder") as session:
            session.step(x=OPEN)
            session.step(x=OPEN)
            session.save()
    assert restored(paths["plain"], "plain-folder")[0] == ""
    assert restored(paths["each"], "each-folder")[0] == "on_restore"
    assert restored(paths["switch"], "switch-folder")[0] == ""
    assert restored(other, "switch-folder")[0] == "on_switch"
    assert restored(other, "plain-folder")[0] == "on_switch"  # nobody knows which bundle it was
    assert restored(paths["idle"], "idle-folder")[0] == ""
    import time

    now = time.time()
    for later in (7, -60):
        monkeypatch.setattr("stategate.runtime.keep.snapshot.time.time", lambda s=later: now + s)
        assert restored(paths["idle"], "idle-folder")[0] == "idle_seconds"
    with Pool.open(paths["each"]) as pool:
        row = pool.join()
        result = pool.restore(row, tmp_path / "each-folder")
        assert result is not None and result.fresh == "on_restore"
        assert pool.state(row, "h").tobytes() == first and pool.ledger(row).steps == 2


def test_a_run_begins_each_repetition_anew_and_recordings_know_their_rate(
    bundle_with: Callable[..., Path], tmp_path: Path
) -> None:
    path = bundle_with(resets={"each_episode": True}, rate_hz=50)
    episode = Episode({"x": OPEN[None].repeat(4, 0)})
    with Session.open(path) as session:
        assert run_episode(session, episode, 10).ledger.resets == 2
    with Session.open(path) as session, Recorder(session, tmp_path / "r") as recorder:
        recorder.step(x=OPEN)
    assert Episode.load(tmp_path / "r" / "part-000000.npz").rate_hz == 50
    with Session.open(path) as session, pytest.warns(RateWarning, match="25 Hz"):
        Recorder(session, tmp_path / "s", rate_hz=25).close()


def test_inspect_prints_what_a_bundle_observes(bundle_with: Callable[..., Path]) -> None:
    path = bundle_with(
        inputs={"x": {"elements": NAMES, "scale": 0.25, "units": "rad", "normaliser": "in-graph"}},
        joints={"names": NAMES, "stiffness": [1, 2, 3, 4]},
        sim_dt=0.005,
        decimation=4,
        resets={"on_fault": True, "idle_seconds": 0.5},
    )
    out = CliRunner().invoke(main, ["inspect", str(path)]).output
    for line in (
        "observes     x: hip, knee, ankle, roll; scale 0.25; in rad; normalised in-graph",
        "joints       hip, knee, ankle, roll; with stiffness",
        "rate         50 Hz, 4 steps of 0.005 s",
        "resets       on_fault, after 0.5 s without a step",
    ):
        assert line in out
