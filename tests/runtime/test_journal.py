"""A journal: commits between snapshots, and what a restart makes of them."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stategate.contract import Budget
from stategate.contract.errors import SnapshotError, SnapshotWarning, SpecError
from stategate.runtime import Pool, Session, SnapshotPolicy
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.keep import journal as journals
from stategate.runtime.keep.records import BLOCK_BYTES

GATES = (1.0, -1.0, 1.0)


@pytest.fixture(autouse=True)
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_MOST_BLOCKS", 24)


def row(t: int) -> np.ndarray:
    return np.array([[GATES[t % 3], np.sin(t), np.cos(t), 0.3]], np.float32)


def killed(folder: Path, to: Path) -> Path:
    """The folder as a process leaves it that is killed now."""
    return Path(shutil.copytree(folder, to))


def states_of(session: Session) -> dict[str, bytes]:
    return {s.name: session.state(s.name).tobytes() for s in session.manifest.states}


def test_going_on_from_a_journal_equals_never_having_stopped(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    policy = SnapshotPolicy(tmp_path / "a", journal=True)
    with Session.open(tiny_bundle, snapshots=policy) as session:
        for t in range(60):
            if t == 20:
                session.reset()
            if t == 31:
                session.load_state({s.name: session.state(s.name) for s in session.manifest.states})
            session.step(x=row(t))
        # The last step opened a gate, so everything until now is committed.
        assert session.ledger.snapshots > 1
        place = killed(tmp_path / "a", tmp_path / "b")
        with Session.open(tiny_bundle, snapshots=SnapshotPolicy(place, journal=True)) as other:
            restored = other.restore()
            assert restored is not None and "commits of the journal" in restored.reason
            assert restored.steps == 60 or GATES[59 % 3] < 0
            for t in range(restored.steps, 60):
                other.step(x=row(t))
            for t in range(60, 80):
                one, two = session.step(x=row(t)), other.step(x=row(t))
                assert all(one[name].tobytes() == two[name].tobytes() for name in one)
            assert states_of(session) == states_of(other)
            both = [asdict(s.ledger) for s in (session, other)]
            for ledger in both:  # each saves at its own moments from here on
                for name in ("restores", "persisted_bytes", "snapshots"):
                    ledger.pop(name)
            assert both[0] == both[1]


def commits_of(bundle: Path, folder: Path, steps: int, **options: Any) -> list[dict[str, bytes]]:
    """Step a session that is then dropped; the states after each commit."""
    committed = []
    policy = SnapshotPolicy(folder, journal=True, **options)
    with Session.open(bundle, snapshots=policy) as session:
        session.restore()
        for t in range(steps):
            before = session.ledger.writes
            session.step(x=row(t))
            if session.ledger.writes > before:
                committed.append(states_of(session))
    return committed


@pytest.mark.parametrize(
    ("block", "commits", "report"),
    [(4, 3, "a gap after 3 commits"), (7, 6, "the block after 6 commits .* is damaged")],
)
def test_a_block_that_breaks_is_reported_and_the_commits_before_it_come_back(
    tiny_bundle: Path, tmp_path: Path, block: int, commits: int, report: str
) -> None:
    committed = commits_of(tiny_bundle, tmp_path, 12)  # the first becomes a snapshot, 7 commits
    raw = bytearray((tmp_path / "journal").read_bytes())
    raw[block * BLOCK_BYTES + 100] ^= 1
    (tmp_path / "journal").write_bytes(raw)
    with pytest.warns(SnapshotWarning, match=report):
        session = Session.open(tiny_bundle, snapshots=SnapshotPolicy(tmp_path, journal=True))
    with session:
        assert session.restore() is not None
        assert states_of(session) == committed[commits]
        session.step(x=row(0))  # a snapshot leaves the damage behind
        session.step(x=row(0))  # and the next commit takes its place
        states = states_of(session)
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        assert session.restore() is not None
        assert states_of(session) == states


def test_commits_whose_snapshot_is_gone_are_reported_and_not_taken(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    commits_of(tiny_bundle, tmp_path, 5)
    for slot in tmp_path.glob("slot-*"):
        slot.unlink()
    with pytest.warns(SnapshotWarning, match="from a snapshot that is not here"):
        session = Session.open(tiny_bundle, snapshots=SnapshotPolicy(tmp_path, journal=True))
    with session:
        assert session.restore() is None
        for t in range(4):  # a snapshot leaves them behind, and the next commit is the newest
            session.step(x=row(t))
        states = states_of(session)
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        assert session.snapshot_problem is None and session.restore() is not None
        assert states_of(session) == states


@pytest.mark.parametrize("other", [False, True])
def test_a_journal_that_is_gone_or_of_another_folder_is_reported(
    other: bool, tiny_bundle: Path, tmp_path: Path
) -> None:
    for name, steps in (("a", 9), ("b", 4)):
        policy = SnapshotPolicy(tmp_path / name, journal=True)
        with Session.open(tiny_bundle, snapshots=policy) as session:
            for t in range(steps):
                session.step(x=row(t))
    (tmp_path / "a" / "journal").unlink()
    if other:
        shutil.copy(tmp_path / "b" / "journal", tmp_path / "a")
    word = "journal is another one" if other else "journal is gone"
    policy = SnapshotPolicy(tmp_path / "a", journal=True)
    with (
        pytest.warns(SnapshotWarning, match=word),
        Session.open(tiny_bundle, snapshots=policy) as session,
    ):
        assert word in str(session.snapshot_problem)
        session.restore()
        for t in range(9, 18):
            session.step(x=row(t))
        before = states_of(session)
    with Session.open(tiny_bundle, snapshots=policy) as session:
        session.restore()
        assert session.snapshot_problem is None and states_of(session) == before


def test_a_journal_of_another_engine_is_refused_and_a_snapshot_ends_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_of(tiny_bundle, tmp_path, 12)
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.restore()
        states = states_of(session)
        name = session._engine.name  # type: ignore[union-attr]
    import stategate.runtime.engines.ort as ort

    monkeypatch.setattr(ort.onnxruntime, "__version__", "99.0")
    with pytest.raises(SnapshotError, match="of another bundle or engine") as problem:
        Session.open(tiny_bundle, snapshots=tmp_path)
    assert "save()" in str(problem.value)
    monkeypatch.undo()
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.restore()
        session.save()
    monkeypatch.setattr(ort.onnxruntime, "__version__", "99.0")
    policy = SnapshotPolicy(tmp_path, journal=True)
    with Session.open(tiny_bundle, snapshots=policy) as session:
        assert session._engine.name != name  # type: ignore[union-attr]
        assert session.restore() is not None
        assert states_of(session) == states


def test_a_full_disk_in_the_middle_of_a_snapshot_leaves_the_journal_going(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_of(tiny_bundle, tmp_path / "a", 3)
    real, states = os.replace, None
    with Session.open(
        tiny_bundle, snapshots=SnapshotPolicy(tmp_path / "a", journal=True), on_fault="hold"
    ) as session:
        session.restore()

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        for t in range(26):  # half the ring and more, and not all of it
            session.step(x=row(t))
        assert session.ledger.faults > 0
        session.step(x=row(0))
        states = states_of(session)
        place = killed(tmp_path / "a", tmp_path / "b")
        monkeypatch.setattr(os, "replace", real)
    with Session.open(tiny_bundle, snapshots=place) as session:
        session.restore()
        assert states_of(session) == states


def test_one_session_and_no_pool_uses_a_folder_with_a_journal(
    tiny_bundle: Path, tiny_pool_bundle: Path, tmp_path: Path
) -> None:
    policy = SnapshotPolicy(tmp_path, journal=True)
    with Session.open(tiny_bundle, snapshots=policy) as session:
        for t in range(4):
            session.step(x=row(t))
        with pytest.raises(SnapshotError, match="in use"):
            Session.open(tiny_bundle, snapshots=policy)
    with Pool.open(tiny_pool_bundle) as pool:
        member = pool.join()
        for act in (pool.save, pool.restore):
            with pytest.raises(SnapshotError, match="journal"):
                act(member, tmp_path)


def test_kills_spend_no_more_than_the_wear_budget(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [0]

    def counted(name: str, size: Callable[..., int]) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            written[0] += size(*args)
            return real(*args)

        monkeypatch.setattr(os, name, call)

    counted("pwrite", lambda _, data, __: len(data))
    counted("replace", lambda *_: 12288 + 20480)  # a snapshot, or the journal's first block
    a_day = 1_000_000
    folder = tmp_path / "0"
    for life in range(15):
        policy = SnapshotPolicy(folder, journal=True)
        budget = Budget(persisted_bytes_per_day=a_day)
        with Session.open(
            tiny_bundle, snapshots=policy, budget=budget, clock=ManualClock()
        ) as session:
            session.restore()
            for t in range(25):
                session.step(x=row(t))
            place = killed(folder, tmp_path / str(life + 1))
            before_close = written[0]
        written[0], folder = before_close, place  # what close gave back is not in the copy
    assert a_day / 2 < written[0] <= a_day
    with pytest.raises(SpecError, match="too small for a journal"):
        Session.open(
            tiny_bundle,
            snapshots=SnapshotPolicy(tmp_path / "x", journal=True),
            budget=Budget(persisted_bytes_per_day=100_000),
        )


def test_the_native_engine_takes_its_own_steps_again(native_bundle: Path, tmp_path: Path) -> None:
    policy = SnapshotPolicy(tmp_path / "a", journal=True)
    rng = np.random.default_rng(1)
    with Session.open(native_bundle, engine="native", snapshots=policy) as session:
        for _ in range(200):
            session.step(z=rng.standard_normal((1, 64)).astype(np.float32))
        states = states_of(session)
        place = killed(tmp_path / "a", tmp_path / "b")
        with pytest.raises(SnapshotError, match="of another bundle or engine"):
            Session.open(native_bundle, engine="onnxruntime", snapshots=place)
        with Session.open(native_bundle, engine="native", snapshots=place) as other:
            assert other.restore() is not None
            assert states_of(other) == states


class Stop(Exception):
    pass


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_moment_of_a_step_and_its_commit_loses_nothing_that_was_safe(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Every line that they run is one at which a signal's handler may raise."""

    def trace_at(line: int) -> Callable[..., Any]:
        count = 0

        def trace(frame: object, event: str, _: object) -> object:
            nonlocal count
            count += event == "line"
            if count == line:
                raise Stop
            return trace

        return trace

    def after_kill(number: int) -> dict[str, bytes]:
        place = killed(tmp_path / "a", tmp_path / str(number))
        with Session.open(tiny_bundle, snapshots=place) as other:
            assert other.restore() is not None
            return states_of(other)

    budget = Budget(persisted_bytes_per_day=1e9)
    policy = SnapshotPolicy(tmp_path / "a", journal=True)
    with Session.open(tiny_bundle, snapshots=policy, budget=budget) as session:
        session.step(x=row(0))
        session.step(x=row(0))
        line, stops, old = 1, 0, sys.gettrace()
        while True:
            line += 29
            safe = states_of(session)
            sys.settrace(trace_at(line))
            try:
                session.step(x=row(0))
            except Stop:
                stops += 1
            else:
                break
            finally:
                sys.settrace(old)
            assert after_kill(2 * line) in (safe, states_of(session))
            session.step(x=row(0))
            assert after_kill(2 * line + 1) == states_of(session)
        assert stops > 10
