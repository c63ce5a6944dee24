"""Recording a live session: what is kept is what was stepped, and no disk stops a step."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Budget, EpisodeSet, load_episode
from stategate.contract.errors import (
    DeadlineError,
    EpisodeError,
    NonFiniteInputError,
    ResultError,
    SpecError,
    StepInputError,
)
from stategate.runtime import Session
from stategate.runtime.episodes import recorder as module
from stategate.runtime.episodes.recorder import Recorder


@pytest.fixture
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle) as opened:
        yield opened


def stream(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 1, 4)).astype(np.float32)


def test_a_recording_stepped_again_ends_in_the_same_memory(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    x = stream(103)
    with Recorder(session, tmp_path, steps=25, rate_hz=100.0, wait_for_disk=True) as recorder:
        for t, row in enumerate(x):
            if t % 10 == 3:  # refused by the session, so no part of the recording
                with pytest.raises(NonFiniteInputError):
                    recorder.step(x=np.full((1, 4), np.nan, np.float32))
                with pytest.raises(StepInputError, match="shape"):
                    recorder.step(x=np.zeros((1, 5), np.float32))
            recorder.step(x=row)
    done = recorder.recorded
    assert (done.steps, done.waiting_steps, done.lost_steps) == (103, 0, 0)
    assert (done.files, done.problem) == (5, None)
    assert done.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    episodes = EpisodeSet.open(tmp_path)
    assert [file.steps for file in episodes.files] == [25, 25, 25, 25, 3]
    assert episodes.rate_hz == 100.0
    assert "steps 50 to 74" in episodes.files[2].provenance
    again = load_episode(tmp_path)
    assert again.inputs["x"].tobytes() == x.tobytes()
    with Session.open(tiny_bundle) as other:
        for inputs in again:
            other.step(**inputs)
        assert other.state("h").tobytes() == session.state("h").tobytes()


def test_a_cut_ends_a_file_and_earlier_files_are_never_replaced(
    session: Session, tmp_path: Path
) -> None:
    for _ in range(2):
        with Recorder(session, tmp_path, steps=10) as recorder:
            for t in range(6):
                recorder.step(x=stream(1)[0])
                if t == 3:
                    recorder.cut()
    assert [file.steps for file in EpisodeSet.open(tmp_path).files] == [4, 2, 4, 2]


def test_a_step_that_was_late_is_committed_and_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    budget = Budget(deadline_ms=1e-6, on_deadline="raise")
    with (
        Session.open(tiny_bundle, budget=budget) as session,
        Recorder(session, tmp_path) as recorder,
        pytest.raises(DeadlineError),
    ):
        recorder.step(x=stream(1)[0])
    assert recorder.recorded.steps == session.ledger.steps == 1


def test_a_full_disk_costs_recordings_and_no_step(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    with Recorder(session, tmp_path, steps=10) as recorder:
        for row in stream(35):
            recorder.step(x=row)
        recorder.cut()
    assert session.ledger.steps == 35
    assert recorder.recorded.lost_steps == 35
    assert "No space left" in str(recorder.recorded.problem)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_a_file_is_no_reason_to_stop(
    session: Session, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with Recorder(session, folder, steps=5) as recorder:
        folder.rmdir()
        folder.write_text("in the way")
        for row in stream(7):
            recorder.step(x=row)
    assert recorder.recorded.lost_steps == session.ledger.steps == 7
    with pytest.raises(ResultError):
        Recorder(session, folder)


def test_a_disk_that_hangs_costs_blocks_and_holds_no_step_up(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    real = module.write_whole

    def slow(path: Path, data: bytes) -> None:
        assert hangs.wait(30)
        real(path, data)

    monkeypatch.setattr(module, "write_whole", slow)
    with Recorder(session, tmp_path, steps=10) as recorder:
        for row in stream(40):
            recorder.step(x=row)
        assert recorder.recorded.waiting_steps == 10
        assert recorder.recorded.lost_steps == 30
        hangs.set()
    done = recorder.recorded
    assert (done.steps, done.lost_steps) == (10, 30)
    assert "busy" in str(done.problem)


def test_the_policy_raise_tells_once_and_the_step_is_taken(
    session: Session, tmp_path: Path
) -> None:
    with Recorder(session, tmp_path, steps=2, max_bytes=1, on_loss="raise") as recorder:
        for _ in range(2):
            recorder.step(x=stream(1)[0])
        recorder.cut()
        recorder.step(x=stream(1)[0])
        with pytest.raises(ResultError, match="no more may be"):
            for _ in range(9):
                recorder.cut()
                recorder.step(x=stream(1)[0])
        taken = session.ledger.steps
        recorder.step(x=stream(1)[0])
    assert session.ledger.steps == taken + 1
    assert recorder.recorded.files == 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"on_loss": "shrug"}, {"rate_hz": 0.0}])
def test_a_recorder_that_cannot_be_is_refused(
    session: Session, tmp_path: Path, wrong: dict
) -> None:
    with pytest.raises((SpecError, EpisodeError)):
        Recorder(session, tmp_path, **wrong)
