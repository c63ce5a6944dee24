from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import (
    EngineError,
    NonFiniteInputError,
    PoolFault,
    PoolFullError,
    RuntimeFault,
    SnapshotError,
    StateFault,
    StepInputError,
)
from stategate.models.step import StepResult
from stategate.runtime import Ledger, Pool, Session
from stategate.runtime.base.rows import RowCounters

ROWS = 4
OPEN, CLOSED = [1.0, 0.3, -0.2, 0.5], [-1.0, 0.3, -0.2, 0.5]
BURST = [1.0, 1000.0, 0.0, 0.0]  # overflows the next state of a row whose gate is open
QUIET_BURST = [-1.0, 1000.0, 0.0, 0.0]


class Fragile(nn.Module):
    """A gated memory that overflows when its second input is large, and an ungated counter."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.mix = nn.Linear(4, 4)

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 4)),),
            outputs=(TensorSpec("y", (1, 4)),),
            states=(StateSpec("h", (1, 4), gate="gate"), StateSpec("count", (1, 1))),
            gates=(GateSpec("gate", "hard", (1, 1), 0.0, "threshold"),),
        )

    def initial_states(self) -> dict[str, torch.Tensor]:
        return {"h": torch.tensor([[0.5, -0.25, 0.125, 1.0]])}

    def step(self, inputs: dict, states: dict) -> StepResult:
        x, h = inputs["x"], states["h"]
        new = torch.tanh(self.mix(x) + 0.5 * h) + torch.exp(x[:, 1:2] - 50.0)
        next_h = torch.where(x[:, :1] > inputs["threshold"], new, h)
        nexts = {"h": next_h, "count": states["count"] + 1.0}
        return StepResult({"y": 2.0 * h + x}, nexts, {"gate": x[:, :1] * 1.0})


def nothing_counted(ledger: Ledger) -> bool:
    """Every counter, those of gates and states included, is zero."""
    fields = (getattr(ledger, name) for name in Ledger.__dataclass_fields__)
    return not any(any(v.values()) if isinstance(v, dict) else v for v in fields)


def test_a_gate_with_the_name_of_a_counter_is_counted_apart() -> None:
    gate = SimpleNamespace(name="writes")
    group: Any = SimpleNamespace(gate=gate, gate_slot=object(), whole=True, states=())
    counters = RowCounters([group], 2)
    counters.prepare()
    counters.put("writes", np.array([1, 0]))
    counters.put_openings("writes", np.array([5, 0]))
    counters.count()
    ledger = counters.read(0)
    assert (ledger.writes, ledger.gate_openings) == (1, {"writes": 5})
    counters.go_on_from(1, ledger)
    assert counters.read(1) == ledger


@pytest.fixture(scope="module")
def pool_bundle(seal_model: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal_model(tmp_path_factory.mktemp("pool") / "b", Fragile(), sessions=ROWS).path


@pytest.fixture(scope="module")
def lone_bundle(seal_model: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal_model(tmp_path_factory.mktemp("lone") / "b", Fragile()).path


@pytest.fixture
def pool(pool_bundle: Path) -> Pool:
    opened = Pool.open(pool_bundle)
    for _ in range(ROWS):
        opened.join()
    return opened


def inputs(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def trace_of(pool: Pool, row: int) -> tuple[bytes, ...]:
    """Everything that a session in a row can see, as bytes."""
    states = (pool.state(row, name) for name in ("h", "count"))
    return tuple(a.tobytes() for a in (*states, pool.outputs["y"][row], pool.gates["gate"][row]))


VALUES = st.sampled_from([OPEN, CLOSED, BURST, QUIET_BURST, [0.5, -1.0, 2.0, 0.25], [0.0] * 4])
OPERATIONS = st.one_of(
    st.just(("join",)),
    st.tuples(st.sampled_from(["leave", "reset"]), st.integers(0, ROWS - 1)),
    st.tuples(
        st.just("step"),
        st.none() | st.sets(st.integers(0, ROWS - 1)),
        st.lists(VALUES, min_size=ROWS, max_size=ROWS),
    ),
)


class Alone:
    """One row of a pool in which no other row is ever stepped, beside a session of its own."""

    def __init__(self, pool_bundle: Path, lone_bundle: Path, row: int) -> None:
        self.pool, self.row, self.session = Pool.open(pool_bundle), row, Session.open(lone_bundle)
        for _ in range(row):  # rows before this one are taken, so that join() gives it
            self.pool.join()

    def join(self) -> None:
        assert self.pool.join() == self.row
        self.session.reset()

    def step(self, value: list[float]) -> bool:
        """Whether the step was refused, by the pool and by the session alike."""
        x = np.zeros((ROWS, 4), np.float32)
        x[self.row] = value
        before, mine = self.session.ledger, self.pool.ledger(self.row)
        refused = []
        for attempt in (
            lambda: self.pool.step(rows=[self.row], x=x),
            lambda: self.session.step(x=x[self.row : self.row + 1]),
        ):
            try:
                attempt()
                refused.append(False)
            except StateFault:
                refused.append(True)
        assert refused[0] == refused[1]
        after, now = self.session.ledger, self.pool.ledger(self.row)
        for name in ("steps", "writes", "quiet_steps", "suppressed_writes", "faults"):
            assert getattr(after, name) - getattr(before, name) == getattr(now, name) - getattr(
                mine, name
            )
        return refused[0]

    def compare(self, pool: Pool) -> None:
        assert trace_of(pool, self.row) == trace_of(self.pool, self.row)
        ledger = pool.ledger(self.row)
        assert ledger == self.pool.ledger(self.row)
        assert ledger.steps == ledger.writes + ledger.quiet_steps + ledger.suppressed_writes
        for name in ("h", "count"):
            mine, theirs = pool.state(self.row, name), self.session.state(name)
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
LIVES = given(first=st.integers(0, ROWS), operations=st.lists(OPERATIONS, max_size=40))


@settings(suppress_health_check=HEALTH, max_examples=15)
@LIVES
def test_no_session_ever_sees_another(
    pool_bundle: Path, lone_bundle: Path, first: int, operations: list[tuple]
) -> None:
    live(pool_bundle, lone_bundle, first, operations)


@pytest.mark.slow
@settings(suppress_health_check=HEALTH, max_examples=150)
@LIVES
def test_no_session_sees_another_in_many_lives(
    pool_bundle: Path, lone_bundle: Path, first: int, operations: list[tuple]
) -> None:
    live(pool_bundle, lone_bundle, first, operations)


def live(pool_bundle: Path, lone_bundle: Path, first: int, operations: list[tuple]) -> None:
    pool = Pool.open(pool_bundle)
    alone = [Alone(pool_bundle, lone_bundle, row) for row in range(ROWS)]
    joined: set[int] = set()
    for operation, *arguments in [("join",)] * first + operations:
        if operation == "join":
            if len(joined) == ROWS:
                with pytest.raises(PoolFullError):
                    pool.join()
                continue
            row = pool.join()
            assert row == min(set(range(ROWS)) - joined)
            joined.add(row)
            alone[row].join()
        elif operation == "step":
            some, values = arguments
            stepped = joined if some is None else some & joined
            x = inputs(*values)
            x[sorted(set(range(ROWS)) - stepped)] = np.nan  # nobody looks there
            refused = tuple(row for row in sorted(stepped) if alone[row].step(values[row]))
            try:
                pool.step(rows=None if some is None else sorted(stepped), x=x)
                assert not refused
            except PoolFault as fault:
                assert fault.rows == refused
        elif arguments[0] in joined:
            row = arguments[0]
            for each in (pool, alone[row].pool):
                getattr(each, operation)(row)
            if operation == "leave":
                joined.discard(row)
            else:
                alone[row].session.reset()
        assert pool.rows == tuple(sorted(joined))
        for row in joined:
            alone[row].compare(pool)


def test_a_fault_is_one_rows_own_and_every_other_row_is_committed(pool: Pool) -> None:
    pool.step(x=inputs(OPEN, OPEN, OPEN, OPEN))
    kept = [pool.state(1, name).tobytes() for name in ("h", "count")]
    with pytest.raises(PoolFault, match="next state 'h' in row 1") as fault:
        pool.step(x=inputs(OPEN, BURST, CLOSED, OPEN))
    assert fault.value.rows == (1,) and isinstance(fault.value, StateFault)
    assert [pool.state(1, name).tobytes() for name in ("h", "count")] == kept
    assert [float(pool.state(row, "count")[0, 0]) for row in range(ROWS)] == [2.0, 1.0, 2.0, 2.0]
    counts = [
        (ledger.writes, ledger.quiet_steps, ledger.suppressed_writes, ledger.faults)
        for ledger in map(pool.ledger, range(ROWS))
    ]
    assert counts == [(2, 0, 0, 0), (1, 0, 1, 1), (1, 1, 0, 0), (2, 0, 0, 0)]
    # h (16 bytes) in a write, the ungated counter (4 bytes) in every step that is not refused.
    assert [pool.ledger(row).memory_bytes_written for row in range(ROWS)] == [40, 20, 24, 40]


def test_a_row_that_was_refused_is_not_blamed_in_steps_of_other_rows(pool: Pool) -> None:
    with pytest.raises(PoolFault):
        pool.step(x=inputs(OPEN, BURST, OPEN, OPEN))
    pool.step(rows=[0, 3], x=inputs(OPEN, OPEN, OPEN, OPEN))
    assert [pool.ledger(row).faults for row in range(ROWS)] == [0, 1, 0, 0]


def test_a_gate_that_is_not_finite_is_its_rows_fault(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pool._engine.run

    def poisoned(parity: int) -> None:
        real(parity)
        answers = pool._memory._answers
        gate = next(a.computed for a in answers if a.computed.name == "gate")
        gate.rows[0].fill(np.inf)
        gate.rows[3].fill(np.nan)

    monkeypatch.setattr(pool._engine, "run", poisoned)
    before = pool.state(0, "h").tobytes()
    with pytest.raises(PoolFault, match="gate 'gate' in row 0; gate 'gate' in row 3") as fault:
        pool.step(x=inputs(OPEN, OPEN, CLOSED, CLOSED))
    assert fault.value.rows == (0, 3)
    assert pool.state(0, "h").tobytes() == before
    assert (pool.ledger(1).writes, pool.ledger(2).quiet_steps) == (1, 1)


def test_rows_that_are_not_stepped_keep_every_byte(pool: Pool) -> None:
    pool.step(x=inputs(OPEN, OPEN, OPEN, OPEN))
    before = [(trace_of(pool, row), pool.ledger(row)) for row in range(ROWS)]
    pool.step(rows=[2], x=inputs([np.nan] * 4, [np.inf] * 4, CLOSED, OPEN))
    after = [(trace_of(pool, row), pool.ledger(row)) for row in range(ROWS)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_step_of_no_row_does_nothing(pool: Pool) -> None:
    before = [trace_of(pool, row) for row in range(ROWS)]
    pool.step(rows=[], x=inputs(OPEN, OPEN, OPEN, OPEN))
    assert [trace_of(pool, row) for row in range(ROWS)] == before
    assert nothing_counted(pool.ledger(0))


def test_a_full_pool_says_so_until_one_leaves(pool: Pool) -> None:
    with pytest.raises(PoolFullError, match="4 sessions in 4 rows"):
        pool.join()
    pool.leave(2)
    assert pool.rows == (0, 1, 3)
    assert pool.join() == 2


def test_whoever_joins_after_another_left_starts_from_the_beginning(pool: Pool) -> None:
    start = trace_of(pool, 1)
    pool.step(x=inputs(OPEN, OPEN, OPEN, OPEN))
    others = [trace_of(pool, row) for row in (0, 2, 3)]
    assert pool.leave(1).writes == 1
    assert pool.join() == 1
    assert trace_of(pool, 1) == start
    assert nothing_counted(pool.ledger(1))
    assert [trace_of(pool, row) for row in (0, 2, 3)] == others


def test_a_reset_forgets_one_rows_state_and_keeps_its_counters(pool: Pool) -> None:
    start = pool.state(0, "h").tobytes()
    pool.step(x=inputs(OPEN, OPEN, OPEN, OPEN))
    other = trace_of(pool, 1)
    pool.reset(0)
    assert pool.state(0, "h").tobytes() == start
    assert (pool.ledger(0).steps, pool.ledger(0).resets) == (1, 1)
    assert trace_of(pool, 1) == other and pool.ledger(1).resets == 0


GOOD = inputs(OPEN, OPEN, OPEN, OPEN)
POISONED = inputs(OPEN, OPEN, [0.0, 0.0, np.nan, 0.0], OPEN)


@pytest.mark.parametrize(
    ("given_inputs", "error", "finding"),
    [
        ({}, StepInputError, "'x' is missing"),
        ({"x": GOOD, "z": GOOD}, StepInputError, "found: z"),
        ({"x": GOOD[:1]}, StepInputError, r"found: \(1, 4\)"),
        ({"x": GOOD.astype(np.float64)}, StepInputError, "float64"),
        ({"x": POISONED}, NonFiniteInputError, "'x' of row 2 .*\n.*nan at flat index 2"),
    ],
)
def test_a_wrong_input_is_named_and_changes_no_row(
    pool: Pool, given_inputs: dict, error: type[StepInputError], finding: str
) -> None:
    pool.step(x=GOOD)
    before = [(trace_of(pool, row), pool.ledger(row)) for row in range(ROWS)]
    with pytest.raises(error, match=finding):
        pool.step(**given_inputs)
    assert [(trace_of(pool, row), pool.ledger(row)) for row in range(ROWS)] == before
    pool.step(rows=[0, 1, 3], x=POISONED)


@pytest.mark.parametrize("row", [3, -1, ROWS, True, "0", np.True_, 1.0])
def test_a_row_that_nobody_joined_is_refused(pool: Pool, row: object) -> None:
    pool.leave(3)
    for call in (
        lambda: pool.step(rows=[0, row], x=GOOD),
        lambda: pool.leave(row),
        lambda: pool.reset(row),
        lambda: pool.ledger(row),
        lambda: pool.state(row, "h"),
        lambda: pool.load_state(row, {}),
    ):
        with pytest.raises(StepInputError, match="one of 0, 1, 2"):
            call()
    assert nothing_counted(pool.ledger(0))


def test_a_state_that_was_taken_from_one_row_can_be_loaded_into_another(pool: Pool) -> None:
    pool.step(rows=[0], x=GOOD)
    taken = {name: pool.state(0, name) for name in ("h", "count")}
    others = [trace_of(pool, row) for row in (0, 1, 3)]
    pool.load_state(2, taken)
    assert all(pool.state(2, name).tobytes() == taken[name].tobytes() for name in taken)
    assert [trace_of(pool, row) for row in (0, 1, 3)] == others
    pool.step(rows=[0, 2], x=GOOD)
    assert pool.state(2, "h").tobytes() == pool.state(0, "h").tobytes()


def test_a_sessions_state_fits_a_row(pool: Pool, lone_bundle: Path) -> None:
    with Session.open(lone_bundle) as session:
        session.step(x=inputs(OPEN))
        pool.load_state(1, {name: session.state(name) for name in ("h", "count")})
        assert pool.state(1, "h").tobytes() == session.state("h").tobytes()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"h": None}, "is missing"),
        ({"h": np.zeros((4,), np.float32)}, "wrong shape"),
        ({"h": np.zeros((1, 4), np.float64)}, "wrong dtype"),
        ({"count": np.full((1, 1), np.nan, np.float32)}, "is not finite"),
        ({"nope": np.zeros((1, 1), np.float32)}, "no state 'nope'"),
    ],
)
def test_a_state_that_does_not_fit_loads_nothing(pool: Pool, change: dict, problem: str) -> None:
    whole = {"h": np.ones((1, 4), np.float32), "count": np.ones((1, 1), np.float32)}
    before = trace_of(pool, 0)
    with pytest.raises(StepInputError, match=problem):
        pool.load_state(0, whole | change)
    assert trace_of(pool, 0) == before


def test_outputs_are_the_same_objects_after_every_step(pool: Pool) -> None:
    first = pool.step(x=GOOD)
    array = first["y"]
    assert pool.step(rows=[1], x=GOOD) is first is pool.outputs and first["y"] is array


def test_a_step_makes_no_numpy_array(pool: Pool) -> None:
    batches = [inputs(OPEN, CLOSED, OPEN, CLOSED), inputs(CLOSED, CLOSED, CLOSED, CLOSED)]
    choices = [None, [0, 2], [3]]

    def round_trip() -> None:
        for x in batches:
            for rows in choices:
                pool.step(rows=rows, x=x)

    round_trip()
    only_numpy = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    tracemalloc.start()
    try:
        for _ in range(30):
            round_trip()
        current = tracemalloc.take_snapshot().filter_traces([only_numpy])
    finally:
        tracemalloc.stop()
    assert sum(stat.size for stat in current.statistics("lineno")) == 0


def test_an_engine_that_fails_changes_no_row(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.step(x=GOOD)
    before = [trace_of(pool, row) for row in range(ROWS)]

    def broken(parity: int) -> None:
        raise EngineError("out of memory")

    monkeypatch.setattr(pool._engine, "run", broken)
    with pytest.raises(EngineError):
        pool.step(rows=[1, 2], x=inputs(CLOSED, CLOSED, CLOSED, CLOSED))
    monkeypatch.undo()
    assert [trace_of(pool, row) for row in range(ROWS)] == before
    assert [pool.ledger(row).faults for row in range(ROWS)] == [0, 1, 1, 0]
    pool.step(x=GOOD)


def test_a_closed_pool_says_so(pool: Pool) -> None:
    with pool:
        pool.step(x=GOOD)
    pool.close()
    for call in (
        lambda: pool.step(x=GOOD),
        lambda: pool.reset(0),
        lambda: pool.load_state(0, {}),
        lambda: pool.engine_name,
        pool.join,
    ):
        with pytest.raises(RuntimeFault, match=r"Pool\.open"):
            call()
    assert pool.ledger(0).steps == 1


def test_an_unknown_state_is_named(pool: Pool) -> None:
    with pytest.raises(StepInputError, match="h, count"):
        pool.state(0, "nope")


class HostDecides(nn.Module):
    """Two heads whose next state is always computed: the thresholds alone keep the old one."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("s", (1, 2), gate="heads"), StateSpec("t", (1, 2), gate="other")),
            (
                GateSpec("heads", "hard", (1, 2), 0.5, granularity="head"),
                GateSpec("other", threshold=2.5),
            ),
        )

    def step(self, given: dict, states: dict) -> StepResult:
        x = given["x"]
        nexts = {"s": states["s"] + x, "t": states["t"] - x}
        return StepResult({"y": x * 2.0}, nexts, {"heads": x * 1.0, "other": x.amax(-1)})


def test_each_gate_is_asked_in_each_row_and_anywhere_in_it(
    seal_model: Callable, tmp_path: Path
) -> None:
    with Pool.open(seal_model(tmp_path / "b", HostDecides(), sessions=3).path) as pool:
        for _ in range(3):
            pool.join()
        pool.step(x=np.array([[0.5, 0.25], [0.0, 0.75], [3.0, 0.0]], np.float32))
        assert [pool.state(row, "s").tolist() for row in range(3)] == [
            [[0.0, 0.0]],
            [[0.0, 0.75]],
            [[3.0, 0.0]],
        ]
        assert [pool.state(row, "t").tolist() for row in range(3)] == [
            [[0.0, 0.0]],
            [[0.0, 0.0]],
            [[-3.0, 0.0]],
        ]
        assert [pool.ledger(row).memory_bytes_written for row in range(3)] == [0, 4, 12]
        assert [pool.ledger(row).writes for row in range(3)] == [0, 1, 1]


class Ungated(nn.Module):
    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),), (StateSpec("s", (1, 2)),)
        )

    def step(self, given: dict, states: dict) -> StepResult:
        return StepResult({"y": given["x"] * 2.0}, {"s": states["s"] + given["x"]}, {})


def test_a_model_without_gates_writes_in_every_step(seal_model: Callable, tmp_path: Path) -> None:
    with Pool.open(seal_model(tmp_path / "b", Ungated(), sessions=2).path) as pool:
        pool.join(), pool.join()
        pool.step(x=np.ones((2, 2), np.float32))
        pool.step(rows=[1], x=np.ones((2, 2), np.float32))
        assert [pool.ledger(row).writes for row in range(2)] == [1, 2]
        assert pool.state(1, "s").tolist() == [[2.0, 2.0]]


def test_rows_are_saved_apart_and_come_back_in_any_row_or_session(
    pool: Pool, lone_bundle: Path, tmp_path: Path
) -> None:
    pool.step(x=inputs(OPEN, CLOSED, OPEN, OPEN))
    pool.step(rows=[2], x=inputs(OPEN, OPEN, OPEN, OPEN))
    others = [trace_of(pool, row) for row in (0, 1, 3)]
    assert pool.save(2, tmp_path / "s") == 1
    expected = {name: pool.state(2, name).tobytes() for name in ("h", "count")}
    before = pool.ledger(2)
    assert [trace_of(pool, row) for row in (0, 1, 3)] == others
    pool.leave(0)
    row = pool.join()
    restored = pool.restore(row, tmp_path / "s")
    assert restored is not None and restored.steps == 2
    assert {name: pool.state(row, name).tobytes() for name in expected} == expected
    after = pool.ledger(row)
    assert after.restores == 1 and after.goes_back_from(before) == []
    with Session.open(lone_bundle, snapshots=tmp_path / "s") as session:
        session.restore()
        assert {name: session.state(name).tobytes() for name in expected} == expected
        assert session.ledger.steps == 2
        session.save()
    assert pool.save(2, tmp_path / "s") == 3


def test_a_snapshot_that_cannot_be_written_leaves_the_row_and_its_counters(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.step(x=inputs(OPEN, OPEN, OPEN, OPEN))
    ledger = pool.ledger(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="cannot be used"):
        pool.save(1, tmp_path / "file" / "s")
    assert pool.restore(1, tmp_path / "empty") is None
    assert pool.ledger(1) == ledger
