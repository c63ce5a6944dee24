"""A history taken in by the chunk ends where as many steps end."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stategate.contract import (
    Budget,
    Bundle,
    Episode,
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
    write_bundle,
)
from stategate.contract.chunks import VALID, chunked
from stategate.contract.errors import (
    EpisodeError,
    MemoryBudgetError,
    NonFiniteInputError,
    ParityError,
    RuntimeFault,
    SnapshotError,
    SpecError,
    StateFault,
    StepInputError,
    UndeclaredStateError,
)
from stategate.models.step import StepResult
from stategate.runtime import Session, SnapshotPolicy
from stategate.runtime.check.golden import chunk_gap
from stategate.runtime.engines.engine import Engine

CHUNK = 4


class Sums(nn.Module):
    """Sums of what is above a threshold, a counter of all steps, and two heads of gates."""

    chunk_steps = CHUNK

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("s", (1, 2), gate="g"), StateSpec("n", (1, 1))),
            (GateSpec("g", "hard", (1, 2), 0.0, "threshold", "head"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x = inputs["x"]
        s = states["s"] + torch.where(x > inputs["threshold"], x, 0.0)
        return StepResult({"y": s + 1.0}, {"s": s, "n": states["n"] + 1.0}, {"g": x * 1.0})

    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        x = inputs["x"]
        meant = (x > inputs["threshold"]) & valid.unsqueeze(-1)
        running = states["s"].unsqueeze(1) + torch.cumsum(torch.where(meant, x, 0.0), 1)
        return StepResult(
            {"y": running + 1.0},
            {"s": running[:, -1], "n": states["n"] + valid.sum(1, keepdim=True)},
            {"g": x * 1.0},
        )


class WrongAnswers(Sums):
    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        return right._replace(outputs={"y": right.outputs["y"] * 1.01})


class WrongGates(Sums):
    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        return right._replace(gates={"g": right.gates["g"] + 0.1})


class WrongMemory(Sums):
    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        return right._replace(states={**right.states, "n": right.states["n"] * 1.01})


class CountsPadding(Sums):
    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        counted = states["n"] + CHUNK + 0.0 * valid.sum()
        return right._replace(states={**right.states, "n": counted})


class GrowsInSecret(Sums):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        self.calls += 1
        right = super().chunk(inputs, states, valid)
        return right._replace(outputs={n: y + 0 * self.calls for n, y in right.outputs.items()})


class NanInPadding(Sums):
    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        gates = torch.where(valid.unsqueeze(-1), right.gates["g"], torch.nan)
        return right._replace(gates={"g": gates})


@pytest.fixture(scope="module")
def sums(seal_model: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal_model(tmp_path_factory.mktemp("sums") / "bundle", Sums()).path


@pytest.fixture(scope="module")
def by_step_only(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle without its chunk graph."""
    bundle = Bundle.open(sums)
    manifest = msgspec.structs.replace(bundle.manifest, graphs=(bundle.manifest.step_graph,))
    files = {f.path: bundle.read(f) for f in manifest.all_files}
    return write_bundle(tmp_path_factory.mktemp("plain") / "bundle", manifest, files).path


def history(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, 1, 2)).astype(np.float32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(lengths=st.lists(st.integers(0, 11), max_size=4), seed=st.integers(0, 9))
def test_answers_memory_and_ledger_are_those_of_the_steps(
    sums: Path, by_step_only: Path, lengths: list[int], seed: int
) -> None:
    with Session.open(sums) as chunks, Session.open(by_step_only) as steps:
        for i, length in enumerate(lengths):
            x = history(length, 10 * seed + i)
            ours, theirs = chunks.prefill(x=x), steps.prefill(x=x)
            assert ours["y"].shape == (length, 1, 2)
            np.testing.assert_allclose(ours["y"], theirs["y"], atol=1e-5)
            one = history(1, 777)[0]
            np.testing.assert_allclose(chunks.step(x=one)["y"], steps.step(x=one)["y"], atol=1e-5)
        assert chunks.ledger == steps.ledger
        for name in ("s", "n"):
            np.testing.assert_allclose(chunks.state(name), steps.state(name), atol=1e-5)


def test_a_session_with_a_write_budget_takes_every_step_by_itself(sums: Path) -> None:
    budget = Budget(writes_per_1000_steps=10, on_writes="hold")
    with Session.open(sums, budget=budget) as session:
        session.prefill(x=np.abs(history(40)))
        assert 0 < session.ledger.suppressed_writes < 40
        assert session.ledger.steps == 40


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (history(5)[:, 0], StepInputError),
        (history(5).astype(np.float64), StepInputError),
        (np.full((9, 1, 2), np.nan, np.float32), NonFiniteInputError),
    ],
)
def test_a_history_that_does_not_fit_steps_nothing(
    sums: Path, x: np.ndarray, error: type[Exception]
) -> None:
    with Session.open(sums) as session:
        with pytest.raises(error, match="'x'"):
            session.prefill(x=x)
        with pytest.raises(StepInputError, match="other"):
            session.prefill(x=history(5), other=history(5))
        assert session.ledger.steps == 0


def test_a_fault_in_a_chunk_leaves_the_memory_before_it(sums: Path) -> None:
    with Session.open(sums) as session:
        session.prefill(x=history(CHUNK))
        before = session.state("s")
        with pytest.raises(StateFault, match="next state 's_next'|next state 's'"):
            session.prefill(x=np.full((2 * CHUNK, 1, 2), 3e38, np.float32))
        assert np.array_equal(session.state("s"), before)
        ledger = session.ledger
        assert (ledger.faults, ledger.steps, ledger.suppressed_writes) == (1, CHUNK + 1, 1)


class Inverses(Sums):
    """Answers what is not finite where a sum is 3, and keeps finite sums."""

    def step(self, inputs: dict, states: dict) -> StepResult:
        right = super().step(inputs, states)
        return right._replace(outputs={"y": 1.0 / (right.outputs["y"] - 4.0)})

    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        right = super().chunk(inputs, states, valid)
        return right._replace(outputs={"y": 1.0 / (right.outputs["y"] - 4.0)})


@pytest.mark.case("A1")
@pytest.mark.parametrize("by_step", [True, False])
def test_an_output_of_a_history_that_is_not_finite_is_a_fault(
    tmp_path: Path, seal_model: Callable[..., Bundle], by_step: bool
) -> None:
    ones = np.full((CHUNK, 1, 2), 0.5, np.float32)  # 2 after a chunk, 3 in the middle of the next
    with Session.open(seal_model(tmp_path / "b", Inverses()).path) as session:
        session._prefill.by_step = by_step
        session.prefill(x=ones)
        with pytest.raises(StateFault, match="output 'y' holds NaN or Inf"):
            session.prefill(x=ones)
        taken = 1 if by_step else 0
        assert (session.state("s") == 2.0 + 0.5 * taken).all()
        ledger = session.ledger
        assert (ledger.faults, ledger.writes) == (1, CHUNK + taken)


def test_a_prefill_of_a_closed_session_is_refused(sums: Path) -> None:
    session = Session.open(sums)
    session.prefill(x=history(3))
    session.close()
    with pytest.raises(RuntimeFault, match="is closed"):
        session.prefill(x=history(3))


def test_a_chunk_graph_beyond_the_memory_budget_is_not_loaded(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(sums, budget=Budget(peak_resident_bytes=1 << 40)) as session:
        monkeypatch.setattr("stategate.runtime.prefill.rss_bytes", lambda: 1 << 41)
        with pytest.raises(MemoryBudgetError, match="chunk graph"):
            session.prefill(x=history(9))
        assert session.ledger.steps == 0


def test_a_prefilled_memory_is_saved_and_restored(sums: Path, tmp_path: Path) -> None:
    with Session.open(sums, snapshots=tmp_path / "s") as session:
        session.prefill(x=history(9))
        session.save()
        kept = session.state("s")
    with Session.open(sums, snapshots=tmp_path / "s") as session:
        assert session.restore() is not None
        assert np.array_equal(session.state("s"), kept)
        assert session.ledger.steps == 9


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [WrongAnswers, WrongGates, WrongMemory, CountsPadding])
def test_a_chunk_that_is_not_its_steps_never_becomes_a_bundle(
    seal_model: Callable, tmp_path: Path, wrong: type[Sums]
) -> None:
    with pytest.raises(ParityError, match="chunk graph parts"):
        seal_model(tmp_path / "b", wrong())
    assert not (tmp_path / "b").exists()


def test_a_chunk_that_changes_what_is_no_state_is_refused(
    seal_model: Callable, tmp_path: Path
) -> None:
    with pytest.raises(UndeclaredStateError, match="calls"):
        seal_model(tmp_path / "b", GrowsInSecret())


def test_a_chunk_that_no_episode_fills_cannot_be_tried(sums: Path) -> None:
    golden = Episode({"x": history(CHUNK)}, {"y": history(CHUNK)})
    with pytest.raises(EpisodeError, match="found: 4 steps"):
        chunk_gap(sums, golden)


def test_what_a_gate_says_of_padding_is_no_fault(seal_model: Callable, tmp_path: Path) -> None:
    with Session.open(seal_model(tmp_path / "b", NanInPadding()).path) as session:
        session.prefill(x=history(CHUNK + 1))
        assert (session.ledger.faults, session.ledger.steps) == (0, CHUNK + 1)


def test_outputs_and_gates_are_those_of_the_last_step_of_a_history(
    sums: Path, by_step_only: Path
) -> None:
    with Session.open(sums) as chunks, Session.open(by_step_only) as steps:
        for session in (chunks, steps):
            session.prefill(x=history(CHUNK + 2))
        np.testing.assert_allclose(chunks.outputs["y"], steps.outputs["y"], atol=1e-5)
        assert np.array_equal(chunks.gates["g"], steps.gates["g"])


def test_automatic_snapshots_come_between_chunks(sums: Path, tmp_path: Path) -> None:
    policy = SnapshotPolicy(tmp_path / "s", every_writes=1)
    with Session.open(sums, snapshots=policy) as session:
        session.prefill(x=np.abs(history(3 * CHUNK)))
        assert session.ledger.snapshots == 3


def test_a_snapshot_that_fails_between_chunks_is_counted(sums: Path, tmp_path: Path) -> None:
    policy = SnapshotPolicy(tmp_path / "s", every_writes=1)
    with Session.open(sums, snapshots=policy) as session:
        rmtree(tmp_path / "s")
        with pytest.raises(SnapshotError):
            session.prefill(x=np.abs(history(3 * CHUNK)))
        assert (session.ledger.faults, session.ledger.steps) == (1, CHUNK)


def test_a_replaced_engine_takes_every_step_of_a_history(sums: Path) -> None:
    calls = []

    class Counting:
        name = "counting"

        def __init__(self, inner: Engine) -> None:
            self._inner = inner

        def run(self, parity: int) -> None:
            calls.append(parity)
            self._inner.run(parity)

        def write(self, parity: int) -> None:
            self._inner.write(parity)

        def close(self) -> None:
            self._inner.close()

    with Session.open(sums) as session:
        session.replace_engine(lambda engine, _buffers: Counting(engine))
        session.prefill(x=history(9))
    assert len(calls) == 9


def test_a_dropped_session_is_freed_at_once(sums: Path) -> None:
    session = Session.open(sums)
    seen = weakref.ref(session)
    session.prefill(x=history(5))
    session.close()
    gc.disable()
    try:
        del session
        assert seen() is None
    finally:
        gc.enable()


def test_a_bundle_opened_by_a_relative_path_is_found_after_a_change_of_folder(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sums.parent)
    with Session.open(sums.name) as session:
        monkeypatch.chdir(tmp_path)
        session.prefill(x=history(9))
        assert session.ledger.steps == 9


def test_the_signature_of_a_chunk_has_a_time_axis_and_what_is_valid() -> None:
    spec = chunked(Sums().step_spec(), CHUNK)
    assert [(t.name, t.shape, t.dtype) for t in spec.inputs] == [
        ("x", (1, CHUNK, 2), "float32"),
        (VALID, (1, CHUNK), "bool"),
    ]
    assert spec.outputs[0].shape == spec.gates[0].shape == (1, CHUNK, 2)
    assert spec.states == Sums().step_spec().states


@pytest.mark.parametrize(
    ("name", "shape", "steps", "match"),
    [
        ("x", (1, 2), 1, "several steps"),
        ("x", (1, 2), "16", "several steps"),
        ("x", (2, 1), 4, "leading axis"),
        (VALID, (1, 2), 4, "'valid'"),
    ],
)
def test_a_signature_that_cannot_have_a_chunk_is_refused(
    name: str, shape: tuple[int, ...], steps: int, match: str
) -> None:
    spec = StepSpec(
        (TensorSpec(name, shape),), (TensorSpec("y", (1, 1)),), (StateSpec("s", (1, 1)),)
    )
    with pytest.raises(SpecError, match=match):
        chunked(spec, steps)
