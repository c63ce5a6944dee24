from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stategate.contract.errors import EngineError, SnapshotError, SpecError, StateFault
from stategate.runtime import Session
from stategate.runtime.check.faults import inject
from stategate.runtime.keep.policy import SnapshotPolicy

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
FAULTS = ("engine", "state", "gate", "output")
ERRORS = (EngineError, StateFault, StateFault, StateFault)


@pytest.mark.case("A1")
@pytest.mark.parametrize(("fault", "error"), list(zip(FAULTS, ERRORS, strict=True)))
def test_raising_leaves_the_state_of_the_step_before(
    tiny_bundle: Path, fault: str, error: type[Exception]
) -> None:
    with Session.open(tiny_bundle) as session:
        session.step(x=OPEN)
        before = session.state("h").tobytes()
        inject(session, {1: fault})
        with pytest.raises(error):
            session.step(x=OPEN * 2)
        assert session.state("h").tobytes() == before
        assert session.ledger.faults == 1
        session.step(x=OPEN)


@pytest.mark.case("A1")
@pytest.mark.parametrize("fault", FAULTS)
def test_holding_answers_with_the_last_good_outputs(tiny_bundle: Path, fault: str) -> None:
    with Session.open(tiny_bundle, on_fault="hold") as session:
        good = session.step(x=OPEN)["y"].copy()
        before = session.state("h").tobytes()
        inject(session, {1: fault})
        assert session.step(x=OPEN * 2)["y"].tobytes() == good.tobytes()
        assert session.state("h").tobytes() == before
        assert session.step(x=OPEN * 2)["y"].tobytes() != good.tobytes()
        assert session.ledger.faults == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_resetting_forgets_and_answers_with_the_last_good_outputs(
    tiny_bundle: Path, fault: str
) -> None:
    with Session.open(tiny_bundle, on_fault="reset") as session:
        good = session.step(x=OPEN)["y"].copy()
        inject(session, {1: fault})
        assert session.step(x=OPEN * 2)["y"].tobytes() == good.tobytes()
        assert (session.state("h") == 0).all()
        assert (session.ledger.faults, session.ledger.resets) == (1, 1)


def fail_after(session: Session, begin: str) -> None:
    """Bring a session to where its episode has no good answer yet, and spoil the next step."""
    if begin != "open":
        session.step(x=OPEN)
    if begin == "reset":
        session.reset()
    elif begin == "restore":
        session.save()
        session.restore()
    elif begin == "load_state":
        session.load_state({name: session.state(name) for name in ("h", "count")})
    elif begin == "a fault that reset":
        inject(session, {1: "engine"})
        session.step(x=OPEN)
    inject(session, {1: "state"})


@pytest.mark.case("A3", "A4")
@pytest.mark.parametrize(
    ("on_fault", "begin"),
    [
        *(("hold", begin) for begin in ("open", "reset", "restore", "load_state")),
        *(("reset", begin) for begin in ("open", "restore", "a fault that reset")),
    ],
)
def test_a_fault_before_the_first_good_answer_of_an_episode_is_raised(
    tiny_bundle: Path, tmp_path: Path, begin: str, on_fault: str
) -> None:
    with Session.open(tiny_bundle, on_fault=on_fault, snapshots=tmp_path / "s") as session:
        fail_after(session, begin)
        faults, before = session.ledger.faults, session.state("h").tobytes()
        with pytest.raises(StateFault, match="next state 'h'"):
            session.step(x=OPEN)
        assert session.ledger.faults == faults + 1
        if on_fault == "hold":
            assert session.state("h").tobytes() == before
        good = session.step(x=OPEN)["y"].copy()  # and after it there is one to hold
        inject(session, {1: "output"})
        assert session.step(x=OPEN * 2)["y"].tobytes() == good.tobytes()


def test_an_unknown_policy_or_fault_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(SpecError, match="raise, hold, reset, rewind"):
        Session.open(tiny_bundle, on_fault="ignore")
    with pytest.raises(SpecError, match="no step of this memory can be taken back"):
        Session.open(tiny_bundle, on_fault="rewind")
    with Session.open(tiny_bundle) as session, pytest.raises(SpecError, match="unknown fault"):
        inject(session, {1: "gremlin"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(plan=st.dictionaries(st.integers(2, 20), st.sampled_from(FAULTS), max_size=8))
def test_what_faults_took_is_all_that_is_missing(tiny_bundle: Path, plan: dict) -> None:
    """A held session equals one that was never given the inputs of the faulty steps."""
    rng = np.random.default_rng(1)
    xs = rng.standard_normal((20, 1, 4)).astype(np.float32)
    xs[..., 0] = 1.0  # every gate open: a spoilt state that is not written hurts nobody
    with (
        Session.open(tiny_bundle, on_fault="hold") as held,
        Session.open(tiny_bundle) as spared,
    ):
        inject(held, plan)
        for t, x in enumerate(xs, start=1):
            held.step(x=x)
            if t not in plan:
                spared.step(x=x)
        for name in ("h", "count"):
            assert held.state(name).tobytes() == spared.state(name).tobytes()
        assert held.ledger.faults == len(plan)
        assert held.ledger.writes == spared.ledger.writes


def test_a_snapshot_that_fails_by_itself_does_not_stop_a_robot_that_holds(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for on_fault in ("hold", "raise"):
        policy = SnapshotPolicy(tmp_path / on_fault, every_writes=1)
        with Session.open(tiny_bundle, snapshots=policy, on_fault=on_fault) as session:
            monkeypatch.setattr(os, "fsync", fsync)
            if on_fault == "raise":
                with pytest.raises(SnapshotError, match="No space"):
                    session.step(x=OPEN)
            else:
                session.step(x=OPEN)
            monkeypatch.undo()
            assert (session.ledger.writes, session.ledger.snapshots) == (1, 0)
            assert session.ledger.faults == 1


def test_a_nan_output_never_becomes_the_last_good_one(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, on_fault="hold") as session:
        good = session.step(x=OPEN)["y"].copy()
        inject(session, {1: "output", 2: "engine"})
        session.step(x=OPEN)
        assert session.step(x=OPEN)["y"].tobytes() == good.tobytes()


def test_a_soft_gate_that_is_not_finite_is_a_fault_too(tmp_path: Path, seal_model) -> None:
    from torch import nn

    from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
    from stategate.models.step import StepResult

    class Soft(nn.Module):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", (1, 1)),),
                (TensorSpec("y", (1, 1)),),
                (StateSpec("s", (1, 1), gate="g"),),
                (GateSpec("g", "soft", (1, 1)),),
            )

        def step(self, inputs: dict, states: dict) -> StepResult:
            g = inputs["x"].sigmoid()
            s = states["s"] * (1.0 - g) + g
            return StepResult({"y": s * 2.0}, {"s": s}, {"g": g})

    with Session.open(seal_model(tmp_path / "b", Soft()).path) as session:
        session.step(x=np.ones((1, 1), np.float32))
        before = session.state("s").tobytes()
        inject(session, {1: "gate"})
        with pytest.raises(StateFault, match="gate 'g'"):
            session.step(x=np.ones((1, 1), np.float32))
        assert session.state("s").tobytes() == before
