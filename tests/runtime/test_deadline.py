from __future__ import annotations

import math
import sys
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract.errors import SpecError
from stategate.runtime.base.clock import ManualClock, MonotonicClock
from stategate.runtime.deadline import WINDOW, Loop, first_step_after_idle_us, measure_empty_loop

MS = 1_000_000
PERIOD = 10 * MS  # 100 Hz


def run(bodies: list[int], clock: ManualClock) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Step a loop at 100 Hz whose bodies take the given times; ticks, and calls of on_miss."""
    missed: list[int] = []
    loop = Loop(100, clock=clock, ticks=len(bodies), on_miss=missed.append)
    ticks = []
    for tick, body_ns in zip(loop, [*bodies, 0], strict=False):
        ticks.append((tick.index, tick.due_ns, tick.late_ns))
        clock.advance_ns(body_ns)
    return ticks, missed


def test_bodies_that_fit_their_period_are_never_late() -> None:
    ticks, missed = run([3 * MS, 9 * MS, PERIOD, 0], ManualClock(5))
    assert ticks == [(k, 5 + k * PERIOD, 0) for k in range(4)]
    assert missed == []


def test_a_body_that_ends_after_the_next_due_moment_skips_it_and_counts_it() -> None:
    ticks, missed = run([PERIOD + 1, 0], ManualClock())
    assert ticks == [(0, 0, 0), (2, 2 * PERIOD, 0)]
    assert missed == [1]


def test_every_skipped_period_is_a_miss() -> None:
    ticks, missed = run([35 * MS, 0, 40 * MS, 0], ManualClock())
    assert [index for index, _, _ in ticks] == [0, 4, 5, 9]
    assert missed == [3, 3]


def test_the_body_of_the_last_tick_is_judged_too_and_only_once() -> None:
    clock = ManualClock()
    loop = Loop(100, clock=clock, ticks=1)
    for _ in loop:
        clock.advance_ns(25 * MS)
    clock.advance_ns(1000 * MS)
    assert list(loop) == []
    assert loop.stats().misses == 2


def test_a_late_wake_is_counted_and_does_not_move_the_schedule() -> None:
    ticks, missed = run([MS] * 4, ManualClock(wake_late_ns=2 * MS))
    assert ticks == [(0, 0, 0)] + [(k, k * PERIOD, 2 * MS) for k in (1, 2, 3)]
    assert missed == []


@given(
    st.lists(st.integers(0, 50 * PERIOD), min_size=1, max_size=30),
    st.integers(0, 3 * PERIOD),
    st.integers(0, 10**15),
)
def test_due_moments_are_multiples_of_the_period_and_misses_are_what_was_skipped(
    bodies: list[int], wake_late_ns: int, start_ns: int
) -> None:
    clock = ManualClock(start_ns, wake_late_ns)
    missed: list[int] = []
    loop = Loop(100, clock=clock, ticks=len(bodies), on_miss=missed.append)
    previous, end_ns = -1, start_ns
    for body_ns, tick in zip([*bodies, 0], loop, strict=False):
        assert tick.due_ns == start_ns + tick.index * PERIOD
        assert tick.late_ns == clock.now_ns() - tick.due_ns >= 0
        assert tick.due_ns >= end_ns or tick.index == 0
        # Nothing was skipped that could still have been met.
        assert tick.index == previous + 1 or tick.due_ns - PERIOD < end_ns
        previous = tick.index
        clock.advance_ns(body_ns)
        end_ns = clock.now_ns()
    stats = loop.stats()
    assert stats.ticks == len(bodies)
    assert stats.misses == sum(missed)
    assert all(count > 0 for count in missed)
    assert stats.clock_faults == 0
    last_miss = max(0, math.ceil((end_ns - start_ns) / PERIOD) - 1 - previous)
    assert stats.ticks + stats.misses == previous + 1 + last_miss


@given(st.lists(st.integers(-5 * PERIOD, 5 * PERIOD), min_size=1, max_size=50))
def test_a_clock_that_jumps_about_never_makes_lateness_negative_or_a_loop_endless(
    steps: list[int],
) -> None:
    clock = ManualClock(10**12)
    loop = Loop(100, clock=clock, ticks=len(steps))
    backwards = 0
    for tick, step in zip(loop, [*steps, 0], strict=False):
        assert tick.late_ns >= 0
        backwards += step < 0
        clock.advance_ns(step)
    assert list(loop) == []
    stats = loop.stats()
    assert (stats.ticks, stats.clock_faults) == (len(steps), backwards)
    assert stats.misses <= 5 * len(steps)


def test_after_a_step_backwards_the_schedule_starts_from_the_new_time() -> None:
    ticks, missed = run([-500 * MS, 0, 0], ManualClock(1000 * MS))
    assert [due for _, due, _ in ticks] == [1000 * MS, 510 * MS, 520 * MS]
    assert missed == []


class StoppedClock:
    """Shows one time for ever and refuses to sleep."""

    def now_ns(self) -> int:
        return 7

    def sleep_until_ns(self, due_ns: int) -> None:
        pass


class RewindingClock(ManualClock):
    """Jumps back by a second while it sleeps."""

    def sleep_until_ns(self, due_ns: int) -> None:
        self.advance_ns(-1000 * MS)


def test_a_clock_that_stands_still_is_a_fault_in_each_tick_and_no_hang() -> None:
    stats = measure_empty_loop(100, 5, StoppedClock())
    assert (stats.ticks, stats.clock_faults, stats.late_max_us) == (5, 4, 0.0)


def test_a_clock_that_goes_backwards_in_a_sleep_is_a_fault_and_no_wait() -> None:
    clock = RewindingClock(5000 * MS)
    loop = Loop(100, clock=clock, ticks=3)
    assert [tick.due_ns // MS for tick in loop] == [5000, 4000, 3000]
    assert loop.stats().clock_faults == 2


def test_statistics_are_of_what_happened() -> None:
    clock = ManualClock()
    loop = Loop(100, clock=clock, ticks=101)
    for tick in loop:
        clock.wake_late_ns = 50_000 if tick.index == 98 else 1000 * (tick.index % 4 == 0)
        clock.advance_ns(4 * MS)
    stats = loop.stats()
    assert (stats.period_us, stats.ticks, stats.misses) == (10_000.0, 101, 0)
    assert (stats.late_p50_us, stats.late_p99_us, stats.late_max_us) == (0.0, 1.0, 50.0)
    assert stats.jitter_p99_us == 50.0
    assert (stats.idle_gap_p50_us, stats.idle_gap_min_us) == (6000.0, 5950.0)


def test_another_thread_may_ask_for_statistics_while_the_loop_runs() -> None:
    loop = Loop(100, clock=ManualClock(), ticks=20_000)
    runner = threading.Thread(target=lambda: sum(tick.late_ns for tick in loop))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        runner.start()
        while runner.is_alive():
            loop.stats()
    finally:
        sys.setswitchinterval(interval)
        runner.join()
    assert loop.stats().ticks == 20_000


def test_before_the_first_tick_no_time_is_made_up() -> None:
    stats = Loop(50, clock=ManualClock()).stats()
    assert (stats.ticks, stats.misses) == (0, 0)
    assert stats.late_p50_us is stats.late_max_us is stats.idle_gap_p50_us is None
    assert measure_empty_loop(50, 1, ManualClock()).jitter_p99_us is None


def test_percentiles_are_of_the_last_window_and_the_maximum_of_all() -> None:
    clock = ManualClock()
    loop = Loop(100, clock=clock, ticks=WINDOW + 10)
    for tick in loop:
        clock.wake_late_ns = 9000 if tick.index < 5 else 2000
    stats = loop.stats()
    assert (stats.late_p50_us, stats.late_p99_us, stats.late_max_us) == (2.0, 2.0, 9.0)
    assert stats.jitter_p99_us == 0.0


def test_a_loop_reuses_its_tick_and_its_memory_does_not_grow() -> None:
    clock = ManualClock(wake_late_ns=3)
    loop = Loop(100, clock=clock)
    first = next(loop)
    tracemalloc.start()
    try:
        for _ in range(2 * WINDOW):
            next(loop)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10_000):
            tick = next(loop)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tick is first
    assert after - before < 1024


def test_an_error_in_on_miss_reaches_the_caller_after_the_miss_was_counted() -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("enough")

    clock = ManualClock()
    loop = Loop(100, clock=clock, on_miss=refuse)
    with pytest.raises(RuntimeError, match="enough"):
        for _ in loop:
            clock.advance_ns(2 * PERIOD + 1)
    assert loop.stats().misses == 2


@pytest.mark.parametrize("hz", [0, -1.0, math.nan, math.inf, 3e9, 1e-6, 1e-320])
def test_a_rate_that_cannot_be_is_refused(hz: float) -> None:
    with pytest.raises(SpecError, match="rate"):
        Loop(hz)


@pytest.mark.parametrize("ticks", [0, -1])
def test_a_number_of_ticks_that_cannot_be_is_refused(ticks: int) -> None:
    with pytest.raises(SpecError, match="ticks"):
        Loop(10, ticks=ticks)


def test_the_first_step_after_each_idle_gap_is_timed_alone() -> None:
    clock = ManualClock()
    starts: list[int] = []

    def step() -> None:
        starts.append(clock.now_ns())
        clock.advance_ns(7000 * len(starts))

    assert first_step_after_idle_us(step, 0.25, 3, clock) == (7.0, 14.0, 21.0)
    assert starts == [250 * MS, 500 * MS + 7000, 750 * MS + 21_000]
    assert first_step_after_idle_us(lambda: clock.advance_ns(500), 0, 2, clock) == (0.5, 0.5)


def test_a_measurement_in_which_the_clock_went_backwards_is_left_out() -> None:
    clock = ManualClock(10**12)
    elapsed = iter([5000, -5000, 6000])
    found = first_step_after_idle_us(lambda: clock.advance_ns(next(elapsed)), 0.1, 3, clock)
    assert found == (5.0, 6.0)


@pytest.mark.parametrize(("idle_s", "repeats"), [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0)])
def test_an_idle_gap_that_cannot_be_measured_is_refused(idle_s: float, repeats: int) -> None:
    with pytest.raises(SpecError):
        first_step_after_idle_us(lambda: None, idle_s, repeats, ManualClock())


def test_the_real_clock_keeps_count() -> None:
    for clock in (MonotonicClock(), MonotonicClock(spin_ns=0)):
        stats = measure_empty_loop(1000, 20, clock)
        assert (stats.ticks, stats.clock_faults) == (20, 0)
    assert len(first_step_after_idle_us(lambda: None, 0.001, 3)) == 3


def test_the_real_clock_does_not_hang_when_time_goes_backwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([100, 110, 90])
    monkeypatch.setattr("stategate.runtime.base.clock.time.monotonic_ns", lambda: next(readings))
    MonotonicClock().sleep_until_ns(10_000)
    assert next(readings, None) is None
