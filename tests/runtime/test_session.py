from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract import Bundle, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import (
    EngineError,
    NonFiniteInputError,
    RuntimeFault,
    StateFault,
    StepInputError,
)
from stategate.models.step import StepResult
from stategate.runtime import Session

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
CLOSED = np.array([[-1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


@pytest.fixture
def session(tiny_bundle: Path) -> Session:
    return Session.open(tiny_bundle)


def banks(session: Session, name: str) -> list[bytes]:
    state = next(s for s in session._buffers.states if s.spec.name == name)
    return [bank.array.tobytes() for bank in state.banks]


def test_an_open_gate_writes_and_a_closed_one_is_quiet(session: Session) -> None:
    session.step(x=OPEN)
    session.step(x=CLOSED)
    session.step(x=OPEN)
    ledger = session.ledger
    assert (ledger.steps, ledger.writes, ledger.quiet_steps) == (3, 2, 1)
    # h (16 bytes) twice, the ungated counter (4 bytes) in every step.
    assert ledger.memory_bytes_written == 2 * 16 + 3 * 4
    assert session.state("count") == 3.0


def test_a_closed_gate_leaves_every_byte_of_state_alone(session: Session) -> None:
    session.step(x=OPEN)
    live = banks(session, "h")[1]
    for _ in range(5):
        session.step(x=CLOSED)
        assert banks(session, "h")[1] == live
        assert session.state("h").tobytes() == live


def test_a_write_swaps_banks_and_never_copies(session: Session) -> None:
    session.step(x=OPEN)
    first = banks(session, "h")[1]
    session.step(x=OPEN)
    assert banks(session, "h")[1] == first
    assert session.state("h").tobytes() == banks(session, "h")[0] != first


def test_a_gate_at_its_threshold_is_closed(session: Session) -> None:
    session.step(x=np.zeros((1, 4), np.float32))
    assert session.ledger.quiet_steps == 1


def test_the_model_sees_the_threshold_that_the_manifest_names(
    seal_model: Callable, tmp_path: Path, tiny: nn.Module
) -> None:
    tiny.threshold = 2.0
    with Session.open(seal_model(tmp_path / "b", tiny).path) as session:
        outputs = session.step(x=OPEN)
        assert (outputs["y"] == 0.0).all()
        assert session.ledger.writes == 0


def test_states_start_where_the_model_says(
    seal_model: Callable, tmp_path: Path, tiny_with_start: nn.Module
) -> None:
    start = tiny_with_start.initial_states()["h"].numpy()
    bundle = seal_model(tmp_path / "b", tiny_with_start)
    with Session.open(bundle.path) as session:
        assert session.state("h").tobytes() == start.tobytes()
        outputs = session.step(x=CLOSED)
        assert outputs["y"].tobytes() == (2.0 * start).tobytes()
        session.step(x=OPEN)
        session.reset()
        assert session.state("h").tobytes() == start.tobytes()


def test_a_reset_forgets_the_state_and_keeps_the_counters(session: Session) -> None:
    fresh = session.step(x=OPEN)["y"].copy()
    session.step(x=OPEN)
    session.reset()
    assert (session.state("h") == 0).all() and (session.state("count") == 0).all()
    assert session.step(x=OPEN)["y"].tobytes() == fresh.tobytes()
    assert (session.ledger.steps, session.ledger.resets) == (3, 1)


@pytest.mark.parametrize(
    ("inputs", "error", "finding"),
    [
        ({}, StepInputError, "'x' is missing"),
        ({"z": OPEN}, StepInputError, "found: z"),
        ({"x": OPEN, "z": OPEN}, StepInputError, "found: z"),
        ({"x": OPEN[0]}, StepInputError, r"x.reshape\(1, 4\)"),
        ({"x": OPEN[:, :3]}, StepInputError, r"\(1, 3\)"),
        ({"x": OPEN.astype(np.float64)}, StepInputError, "float64"),
        ({"x": [[1.0, 2.0, 3.0, 4.0]]}, StepInputError, "list"),
        ({"x": None}, StepInputError, "missing"),
        ({"x": OPEN * np.float32("nan")}, NonFiniteInputError, "nan at flat index 0"),
        ({"x": OPEN * np.float32("inf")}, NonFiniteInputError, "inf at flat index 0"),
    ],
)
def test_a_wrong_input_is_named_and_changes_nothing(
    session: Session, inputs: dict, error: type[StepInputError], finding: str
) -> None:
    session.step(x=OPEN)
    before, ledger = session.state("h").tobytes(), session.ledger
    with pytest.raises(error, match=finding):
        session.step(**inputs)
    assert session.state("h").tobytes() == before
    assert session.ledger == ledger
    session.step(x=OPEN)


def test_huge_finite_inputs_are_not_mistaken_for_infinity(session: Session) -> None:
    session.step(x=np.full((1, 4), 3e38, np.float32))
    assert session.ledger.steps == 1


def test_the_callers_array_is_not_kept(session: Session) -> None:
    mine = OPEN.copy()
    first = session.step(x=mine)["y"].copy()
    mine[:] = np.nan
    session.reset()
    assert session.step(x=OPEN)["y"].tobytes() == first.tobytes()


def test_a_strided_input_is_taken_as_it_reads(session: Session) -> None:
    wide = np.repeat(OPEN, 2, axis=1)
    expected = session.step(x=OPEN)["y"].copy()
    session.reset()
    assert session.step(x=wide[:, ::2])["y"].tobytes() == expected.tobytes()


def test_outputs_are_the_same_objects_after_every_step(session: Session) -> None:
    first = session.step(x=OPEN)
    array = first["y"]
    second = session.step(x=CLOSED)
    assert first is second and second["y"] is array


def test_a_step_makes_no_numpy_array(aura_bundle: Path) -> None:
    """Peak and not what is left: a temporary of the state's size would show for a moment."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1, 64)).astype(np.float32) for _ in range(20)]
    with Session.open(aura_bundle) as session:
        for z in inputs:
            session.step(z=z)
        tracemalloc.start()
        try:
            worst = 0
            for z in inputs:
                # Each step by itself: ONNX Runtime frees a small object of a call some calls later.
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                session.step(z=z)
                worst = max(worst, tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
        assert session.ledger.writes > 0
    assert worst < 2000  # the state is 4,224 bytes; a few Python integers are not


def test_a_closed_session_says_so(session: Session) -> None:
    session.step(x=OPEN)
    session.close()
    session.close()
    for call in (lambda: session.step(x=OPEN), session.reset):
        with pytest.raises(RuntimeFault, match="closed"):
            call()
    assert session.ledger.steps == 1


def test_an_unknown_state_is_named(session: Session) -> None:
    with pytest.raises(StepInputError, match="h, count"):
        session.state("nope")


def test_an_input_may_have_any_name(seal_model: Callable, tmp_path: Path) -> None:
    class Selfish(nn.Module):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("self", (1, 2)),), (TensorSpec("y", (1, 2)),), (StateSpec("s", (1, 2)),)
            )

        def step(self, inputs: dict, states: dict) -> StepResult:
            s = states["s"] + inputs["self"]
            return StepResult({"y": s * 2.0}, {"s": s}, {})

    with Session.open(seal_model(tmp_path / "b", Selfish()).path) as session:
        session.step(**{"self": np.ones((1, 2), np.float32)})
        assert session.state("s").tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("shape", [[200_000_000], [10**12], [2**62, 8], [1] * 70])
def test_a_manifest_of_gigantic_states_is_refused_without_touching_memory(
    tiny_bundle: Path, tmp_path: Path, shape: list[int]
) -> None:
    import hashlib
    import json
    import shutil

    from stategate.contract.errors import ManifestError, RuntimeFault
    from stategate.runtime.base.process import rss_bytes

    copy = tmp_path / "b"
    shutil.copytree(tiny_bundle, copy)
    record = json.loads((copy / "manifest.json").read_text())
    record["states"][0] |= {"shape": shape, "bytes": 0}
    raw = json.dumps(record).encode()
    (copy / "manifest.json").write_bytes(raw)
    (copy / "manifest.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")
    before = rss_bytes()
    with pytest.raises((ManifestError, RuntimeFault)):
        Session.open(copy)
    assert rss_bytes() - before < 200_000_000


class Exploding(nn.Module):
    """Its state overflows when the input is large; its output does not show it."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("s", (1, 2)), StateSpec("t", (1, 1))),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x = inputs["x"]
        grown = states["s"] + torch.exp(x)
        return StepResult({"y": x}, {"s": grown, "t": states["t"] + 1.0}, {})


def test_a_state_that_is_not_finite_is_refused_and_the_old_one_stays(
    seal_model: Callable, tmp_path: Path
) -> None:
    with Session.open(seal_model(tmp_path / "b", Exploding()).path) as session:
        session.step(x=np.ones((1, 2), np.float32))
        before = session.state("s").tobytes(), session.state("t").tobytes()
        with pytest.raises(StateFault, match="next state 's'"):
            session.step(x=np.array([[0.0, 1000.0]], np.float32))
        assert (session.state("s").tobytes(), session.state("t").tobytes()) == before
        ledger = session.ledger
        assert (ledger.steps, ledger.writes, ledger.suppressed_writes, ledger.faults) == (
            2,
            1,
            1,
            1,
        )
        session.step(x=np.ones((1, 2), np.float32))
        assert session.state("t") == 2.0


def test_a_gate_that_is_not_finite_is_a_fault(
    seal_model: Callable, tmp_path: Path, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(seal_model(tmp_path / "b", tiny).path) as session:
        session.step(x=OPEN)
        before = session.state("h").tobytes()
        real = session._engine.run

        def poisoned(parity: int) -> None:
            real(parity)
            session.gates["gate"].fill(np.nan)

        monkeypatch.setattr(session._engine, "run", poisoned)
        with pytest.raises(StateFault, match="gate"):
            session.step(x=OPEN)
        assert session.state("h").tobytes() == before


def test_an_engine_that_fails_leaves_the_last_good_state(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.step(x=OPEN)
    before = session.state("h").tobytes()

    def broken(binding: object) -> None:
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr(session._engine._graphs[0]._session, "run_with_iobinding", broken)
    with pytest.raises(EngineError, match="out of memory"):
        session.step(x=OPEN)
    monkeypatch.undo()
    assert session.state("h").tobytes() == before
    assert (session.ledger.steps, session.ledger.faults) == (1, 1)
    session.step(x=OPEN)


def test_a_model_without_gates_writes_in_every_step(seal_model: Callable, tmp_path: Path) -> None:
    with Session.open(seal_model(tmp_path / "b", Exploding()).path) as session:
        for _ in range(3):
            session.step(x=np.zeros((1, 2), np.float32))
        assert (session.ledger.writes, session.ledger.memory_bytes_written) == (3, 3 * 12)


def test_a_graph_without_the_promised_gate_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    import msgspec

    from stategate.contract import write_bundle

    bundle = Bundle.open(tiny_bundle)
    (gate,) = bundle.manifest.gates
    renamed = msgspec.structs.replace(gate, name="gate_that_is_missing")
    states = tuple(
        msgspec.structs.replace(s, gate="gate_that_is_missing") if s.gate else s
        for s in bundle.manifest.states
    )
    manifest = msgspec.structs.replace(bundle.manifest, gates=(renamed,), states=states)
    files = {f.path: bundle.read(f) for f in manifest.all_files}
    with pytest.raises(EngineError, match="gate_that_is_missing"):
        Session.open(write_bundle(tmp_path / "b", manifest, files).path)


def test_a_graph_of_another_shape_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    import msgspec

    from stategate.contract import write_bundle

    bundle = Bundle.open(tiny_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, inputs=(TensorSpec("x", (1, 5)),))
    files = {f.path: bundle.read(f) for f in manifest.all_files}
    with pytest.raises(EngineError, match=r"'x' of the graph"):
        Session.open(write_bundle(tmp_path / "b", manifest, files).path)
