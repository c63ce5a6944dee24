from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stategate.contract import Budget
from stategate.contract.errors import (
    BudgetWarning,
    DeadlineError,
    MemoryBudgetError,
    SpecError,
    WriteBudgetError,
)
from stategate.models.zoo.catalogue import entry
from stategate.runtime import Session
from stategate.runtime.base.clock import ManualClock

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
CLOSED = np.array([[-1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    limit=st.integers(1, 400),
    gates=st.lists(st.booleans(), min_size=1, max_size=120),
)
def test_no_window_of_steps_holds_more_writes_than_the_bucket_allows(
    tiny_bundle: Path, limit: int, gates: list[bool]
) -> None:
    with Session.open(tiny_bundle, budget=Budget(writes_per_1000_steps=limit)) as session:
        wrote = []
        for is_open in gates:
            before = session.ledger.writes
            session.step(x=OPEN if is_open else CLOSED)
            wrote.append(session.ledger.writes - before)
        ledger = session.ledger
    total = np.concatenate([[0], np.cumsum(wrote)])
    for start in range(len(gates)):
        for end in range(start + 1, len(gates) + 1):
            allowed = max(1.0, limit) + (end - start) * limit / 1000.0
            assert total[end] - total[start] <= allowed + 1e-9
    assert ledger.writes + ledger.suppressed_writes == sum(gates)
    assert ledger.steps == ledger.writes + ledger.quiet_steps + ledger.suppressed_writes


def test_a_held_write_leaves_the_state_and_answers_as_if_the_gate_were_closed(
    tiny_bundle: Path,
) -> None:
    with Session.open(tiny_bundle, budget=Budget(writes_per_1000_steps=1)) as session:
        first = session.step(x=OPEN)["y"].copy()
        before = session.state("h").tobytes()
        held = session.step(x=OPEN * 2)["y"]
        # The model is shown a threshold that no gate reaches: what it says fits what it remembers.
        assert held.tobytes() == first.tobytes()
        assert session.state("h").tobytes() == before
        assert session.state("count") == 2.0  # not guarded, so not held
        assert (session.ledger.writes, session.ledger.suppressed_writes) == (1, 1)


def test_tokens_come_back_with_steps(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, budget=Budget(writes_per_1000_steps=100)) as session:
        for _ in range(100):
            session.step(x=OPEN)
        burst = session.ledger.writes
        for _ in range(1000):
            session.step(x=OPEN)
        assert burst == 100
        assert 99 <= session.ledger.writes - burst - 10 <= 101


def test_writes_per_second_follow_the_clock(tiny_bundle: Path) -> None:
    clock = ManualClock()
    budget = Budget(writes_per_second=2.0)
    with Session.open(tiny_bundle, budget=budget, clock=clock) as session:
        for _ in range(5):
            session.step(x=OPEN)
        assert session.ledger.writes == 2
        clock.sleep_until_ns(1_000_000_000)
        for _ in range(5):
            session.step(x=OPEN)
        assert session.ledger.writes == 4


def test_a_clock_that_goes_backwards_is_counted_and_gives_no_tokens(tiny_bundle: Path) -> None:
    class Backwards(ManualClock):
        def now_ns(self) -> int:
            self.advance_ns(-10_000_000_000)
            return super().now_ns()

    budget = Budget(writes_per_second=1.0)
    with Session.open(tiny_bundle, budget=budget, clock=Backwards()) as session:
        for _ in range(5):
            session.step(x=OPEN)
        assert session.ledger.writes == 1
        assert 4 <= session.ledger.clock_faults <= 6  # one look at the clock in a step


def test_raising_refuses_the_write_and_says_the_rate(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=1, on_writes="raise")
    with Session.open(tiny_bundle, budget=budget) as session:
        session.step(x=OPEN)
        before = session.state("h").tobytes()
        with pytest.raises(WriteBudgetError, match="1 writes in 2 steps"):
            session.step(x=OPEN)
        assert session.state("h").tobytes() == before
        session.step(x=CLOSED)
        ledger = session.ledger
        assert (ledger.steps, ledger.writes, ledger.suppressed_writes) == (3, 1, 1)


def test_warning_lets_the_write_through_and_counts_it(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=1, on_writes="warn")
    with Session.open(tiny_bundle, budget=budget) as session:
        session.step(x=OPEN)
        with pytest.warns(BudgetWarning):
            session.step(x=OPEN)
        assert (session.ledger.writes, session.ledger.budget_overruns) == (2, 1)


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray]:
    """Features of the controlled benchmark, and the gate that the shipped policy gave on them."""
    from stategate.calibration.gates.scan import hard_gate, scan
    from stategate.models.memories.aura import AuraMem
    from stategate.models.zoo.checkpoint import folder, load

    episode = entry("aura-hard").episode(6000, 21)
    model, _, _ = load(folder() / "aura-hard.safetensors", AuraMem())
    import torch

    with torch.no_grad():
        p = model.project(torch.from_numpy(episode.inputs["z"]))
        scanned = scan(model, p, torch.zeros(1, 32, 32), torch.zeros(1, 32), hard_gate(0.0))
    return episode.inputs["z"], scanned.logits.numpy().reshape(-1)


@pytest.mark.slow
def test_adapting_meets_its_rate_on_a_recorded_gate_trace(tiny_bundle: Path, recorded) -> None:
    """The law's own bound: openings over T steps are at most rate * T + 200."""
    _, gate = recorded
    target = 60.0
    budget = Budget(writes_per_1000_steps=target, on_writes="adapt", adapt_limit=40.0)
    with Session.open(tiny_bundle, budget=budget) as session:
        openings = []
        for value in gate:
            before = session.ledger.writes + session.ledger.suppressed_writes
            session.step(x=np.array([[value, 0.1, 0.2, 0.3]], np.float32))
            openings.append(session.ledger.writes + session.ledger.suppressed_writes - before)
    unadapted = (gate > 0).mean()
    assert unadapted > 1.8 * target / 1000.0
    assert sum(openings) <= target / 1000.0 * len(gate) + 200
    assert np.mean(openings[3000:]) == pytest.approx(target / 1000.0, abs=0.01)
    # Once it has settled the bucket hardly ever has to hold.
    assert session.ledger.suppressed_writes < 0.02 * len(gate)


def test_adapting_goes_back_when_the_pressure_is_gone(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=100, on_writes="adapt", adapt_limit=2.0)
    with Session.open(tiny_bundle, budget=budget) as session:
        for _ in range(600):
            session.step(x=OPEN)
        raised = float(session._governor.thresholds[0])
        assert raised == pytest.approx(1.0, abs=0.1)  # just above the gate that pressed
        for _ in range(2500):
            session.step(x=CLOSED)
        assert float(session._governor.thresholds[0]) == 0.0  # never below the manifest's


def test_adapting_stops_at_its_limit_and_the_bucket_holds(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=50, on_writes="adapt", adapt_limit=0.5)
    with Session.open(tiny_bundle, budget=budget) as session:
        for _ in range(2000):
            session.step(x=OPEN)
        assert float(session._governor.thresholds[0]) == 0.5
        assert session.ledger.writes <= 50 + 2000 * 0.05


def test_a_memory_that_does_not_fit_is_refused_before_anything_is_allocated(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stategate.runtime.base.buffers import Buffers

    def allocate(*_: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(Buffers, "allocate", allocate)
    with pytest.raises(MemoryBudgetError, match="20 bytes planned"):
        Session.open(tiny_bundle, budget=Budget(state_bytes=19))
    with pytest.raises(MemoryBudgetError, match="peak_resident_bytes"):
        Session.open(tiny_bundle, budget=Budget(peak_resident_bytes=1000))


def test_a_step_over_its_deadline_is_counted_and_committed(tiny_bundle: Path) -> None:
    class Slow(ManualClock):
        def now_ns(self) -> int:
            self.advance_ns(3_000_000)
            return super().now_ns()

    budget = Budget(deadline_ms=2.0)
    with Session.open(tiny_bundle, budget=budget, clock=Slow()) as session:
        session.step(x=OPEN)
        assert (session.ledger.deadline_misses, session.ledger.writes) == (1, 1)
    strict = Budget(deadline_ms=2.0, on_deadline="raise")
    with Session.open(tiny_bundle, budget=strict, clock=Slow()) as session:
        with pytest.raises(DeadlineError, match=r"3\.000 ms"):
            session.step(x=OPEN)
        assert session.ledger.writes == 1


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"writes_per_1000_steps": 0}, "must be positive"),
        ({"deadline_ms": float("nan")}, "must be positive"),
        ({"on_writes": "shrug"}, "unknown policy"),
        ({"on_writes": "adapt", "writes_per_1000_steps": 5}, "threshold to stop at"),
        ({"lifetime_years": 5}, "endurance of the storage"),
        ({"state_bytes": 100, "peak_resident_bytes": 150}, "contradicts"),
    ],
)
def test_a_budget_that_contradicts_itself_is_refused(fields: dict, finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        Budget(**fields)


def test_a_lifetime_becomes_a_daily_limit() -> None:
    budget = Budget(lifetime_years=10, storage_endurance_bytes=36_525_000_000)
    assert budget.persisted_limit_per_day == pytest.approx(10_000_000)
    both = Budget(
        lifetime_years=10, storage_endurance_bytes=36_525_000_000, persisted_bytes_per_day=5_000_000
    )
    assert both.persisted_limit_per_day == 5_000_000


limits = st.none() | st.integers(1, 1000).map(float)


@given(limits, limits, limits, limits)
def test_tightening_never_loosens(a: float, b: float, c: float, d: float) -> None:
    ours = Budget(writes_per_1000_steps=a, deadline_ms=b)
    theirs = Budget(writes_per_1000_steps=c, deadline_ms=d)
    looser = [x for x, y in ((c, a), (d, b)) if x is not None and y is not None and x > y]
    if looser:
        with pytest.raises(SpecError, match="not loosen"):
            ours.tightened(theirs)
        return
    result = ours.tightened(theirs)
    for name in ("writes_per_1000_steps", "deadline_ms"):
        known = [v for v in (getattr(ours, name), getattr(theirs, name)) if v is not None]
        assert getattr(result, name) == min(known, default=None)


def test_a_policy_can_become_stricter_and_not_looser() -> None:
    held = Budget(writes_per_1000_steps=10)
    assert held.tightened(Budget(on_writes="raise")).on_writes == "raise"
    with pytest.raises(SpecError, match="on_writes"):
        held.tightened(Budget(on_writes="warn"))
    with pytest.raises(SpecError, match="lifetime_years"):
        Budget(lifetime_years=5, storage_endurance_bytes=1e12).tightened(
            Budget(lifetime_years=4, storage_endurance_bytes=1e12)
        )


def test_adapting_needs_one_gate_and_room_above_it(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=10, on_writes="adapt", adapt_limit=-1.0)
    with pytest.raises(SpecError, match="above the gate's threshold"):
        Session.open(tiny_bundle, budget=budget)


def test_steps_that_fail_earn_no_tokens(tiny_bundle: Path) -> None:
    from stategate.runtime.check.faults import inject

    budget = Budget(writes_per_1000_steps=1)
    with Session.open(tiny_bundle, budget=budget, on_fault="hold") as session:
        session.step(x=-OPEN)  # quiet, and an answer to hold
        inject(session, dict.fromkeys((t for t in range(1, 3000) if t % 1002), "engine"))
        for _ in range(2999):
            session.step(x=OPEN)
        assert session.ledger.writes == 1


def test_a_larger_endurance_does_not_loosen_a_lifetime() -> None:
    ours = Budget(lifetime_years=10, storage_endurance_bytes=1e9)
    with pytest.raises(SpecError, match="storage_endurance_bytes"):
        ours.tightened(Budget(lifetime_years=10, storage_endurance_bytes=1e15))
    tighter = ours.tightened(Budget(lifetime_years=20, storage_endurance_bytes=1e9))
    assert tighter.persisted_limit_per_day == ours.persisted_limit_per_day / 2


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), 1e39])
def test_a_threshold_to_stop_at_must_be_one(limit: float) -> None:
    with pytest.raises(SpecError, match="adapt_limit"):
        Budget(writes_per_1000_steps=5, on_writes="adapt", adapt_limit=limit)


def test_a_step_that_fails_is_late_all_the_same(tiny_bundle: Path) -> None:
    from stategate.runtime.check.faults import inject

    class Slow(ManualClock):
        def now_ns(self) -> int:
            self.advance_ns(3_000_000)
            return super().now_ns()

    budget = Budget(deadline_ms=2.0)
    with Session.open(tiny_bundle, budget=budget, clock=Slow(), on_fault="hold") as session:
        session.step(x=OPEN)
        inject(session, {1: "engine"})
        session.step(x=OPEN)
        assert (session.ledger.faults, session.ledger.deadline_misses) == (1, 2)


def test_refused_writes_that_raise_earn_their_tokens_back_like_held_ones(
    tiny_bundle: Path,
) -> None:
    """A gate that never closes must not be locked out for ever."""
    writes = {}
    for policy in ("hold", "raise"):
        budget = Budget(writes_per_1000_steps=100, on_writes=policy)
        with Session.open(tiny_bundle, budget=budget) as session:
            for _ in range(400):
                try:
                    session.step(x=OPEN)
                except WriteBudgetError:
                    assert policy == "raise"
            writes[policy] = session.ledger.writes
            assert session.ledger.steps == 400
    assert writes["raise"] == writes["hold"] > 130
