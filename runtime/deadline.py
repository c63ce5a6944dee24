"""A loop of fixed period that counts what it misses, in memory that does not grow.

Tick ``k`` is due at ``start + k * period``, whatever the ticks before it took: lateness does not
add up. The period is rounded to a nanosecond, which at 30 Hz is a drift of 1 ms a day.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from stategate.contract import Budget
from stategate.contract.errors import DeadlineError, SpecError
from stategate.runtime.base.clock import Clock, MonotonicClock, boot_ns
from stategate.runtime.base.ledger import Counters
from stategate.runtime.base.times import Times

WINDOW = 4096
_NS_PER_SECOND = 1_000_000_000
_LONGEST_PERIOD_S = 86_400


@dataclass(frozen=True, slots=True)
class LoopStats:
    """What a loop did; times are None before the first sample."""

    period_us: float  # the period
    ticks: int  # bodies started
    misses: int  # periods in which no body started because an earlier one was still running
    clock_faults: int  # times the clock went backwards, or a sleep ended before its moment
    # median time from a tick's due moment to its start, over the last 4,096
    late_p50_us: float | None
    late_p99_us: float | None  # 99th percentile of the same
    late_max_us: float | None  # the latest start ever
    # 99th percentile of the change of lateness from one tick to the next
    jitter_p99_us: float | None
    # median time from the end of a body to the next due moment; 0 after a miss
    idle_gap_p50_us: float | None
    idle_gap_min_us: float | None  # the shortest one ever: how close the loop came to a miss


class IdleReset:
    """Begins an episode where the last step was too long ago.

    Args:
        seconds: How long the memory is good for without a step.
        clock: Source of time.
        begin: Begins the episode.
        on_clock_fault: Called whenever the clock goes backwards.
    """

    def __init__(
        self,
        seconds: float,
        clock: Clock,
        begin: Callable[[], None],
        on_clock_fault: Callable[[], None],
    ) -> None:
        self._limit_ns = round(seconds * _NS_PER_SECOND)
        # A machine that was suspended has not been stepped; the monotonic clock stands still then.
        self._now = boot_ns if isinstance(clock, MonotonicClock) else clock.now_ns
        self._begin, self._on_clock_fault = begin, on_clock_fault
        self._last_ns: int | None = None

    def look(self) -> None:
        """A step is about to start."""
        now_ns, last_ns = self._now(), self._last_ns
        self._last_ns = now_ns
        if last_ns is not None:
            if now_ns < last_ns:
                self._on_clock_fault()
            elif now_ns - last_ns > self._limit_ns:
                self._begin()

    def forget(self) -> None:
        """The next step is the first one."""
        self._last_ns = None


class StepDeadline:
    """Looks at the clock before and after each step.

    Args:
        budget: With the longest time that a step may take, if there is a limit.
        clock: Source of time.
        counters: Where late steps are counted.
        idle: What is asked before a step, if something is.

    Attributes:
        after: Called after each step with the nanoseconds that it took, if somebody asks.
    """

    def __init__(
        self, budget: Budget, clock: Clock, counters: Counters, idle: IdleReset | None = None
    ) -> None:
        limit = budget.deadline_ms
        self._limit_ns = math.inf if limit is None else int(limit * 1e6)
        self._raises = budget.on_deadline == "raise"
        self._counters = counters
        self._idle, self._now = idle, clock.now_ns
        self.after: Callable[[int], None] | None = None
        self.start = clock.now_ns if idle is None else self._start

    def _start(self) -> int:
        assert self._idle is not None
        self._idle.look()
        return self._now()

    def check(self, start_ns: int) -> None:
        """Look at the clock after a step.

        Raises:
            DeadlineError: The step was late and the policy is ``raise``.
        """
        elapsed_ns = self._now() - start_ns
        is_late = elapsed_ns > self._limit_ns
        self._counters.clock_faults += elapsed_ns < 0
        self._counters.deadline_misses += is_late
        if self.after is not None:
            self.after(max(0, elapsed_ns))
        if is_late and self._raises:
            raise DeadlineError(
                "the step took longer than its deadline; its state is committed",
                found=f"{elapsed_ns / 1e6:.3f} ms",
                expected=f"at most {self._limit_ns / 1e6:g} ms",
            )


class Tick:
    """One turn of a loop; the loop reuses the object, so copy what you keep.

    Attributes:
        index: Periods since the start; a gap is a run of missed periods.
        due_ns: When it should have started, on the loop's clock.
        late_ns: How much later it did, 0 or more.
    """

    __slots__ = ("due_ns", "index", "late_ns")

    index: int
    due_ns: int
    late_ns: int


class Loop:
    """An iterator that yields once in each period.

    A body that ends after the next due moment misses it: the schedule goes on at the next moment
    that is not past, and every moment skipped is counted as one miss. The first tick is due at
    once. A clock that goes backwards is counted, and the schedule starts anew from what it shows.

    ``for tick in Loop(hz=100): ...`` leaves the statistics in ``stats()``, which may be called at
    any time. Not thread-safe.

    Args:
        hz: Ticks per second.
        clock: Source of time; the system's monotonic clock if left out.
        ticks: How many to yield; None goes on for ever.
        on_miss: Called with the number of newly missed periods, between the body that caused them
            and the next tick.
        on_clock_fault: Called whenever the clock goes backwards, or a sleep ends early.
        times: Where lateness and jitter are counted as well.
    """

    def __init__(
        self,
        hz: float,
        *,
        clock: Clock | None = None,
        ticks: int | None = None,
        on_miss: Callable[[int], None] | None = None,
        on_clock_fault: Callable[[], None] | None = None,
        times: Times | None = None,
    ) -> None:
        self._period_ns = _period_ns(hz)
        if ticks is not None and ticks < 1:
            raise SpecError("the number of ticks must be positive, or None", found=ticks)
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._limit = ticks
        self._on_miss = on_miss
        self._on_clock_fault = on_clock_fault
        self._times = times or Times()
        self._tick = Tick()
        self._tick.late_ns = 0
        self._due_ns = 0
        self._index = 0
        self._last_ns = 0
        self._in_body = False
        self._ticks = self._misses = self._clock_faults = 0
        self._late, self._idle_gap = deque[int](maxlen=WINDOW), deque[int](maxlen=WINDOW)
        self._latest_ns: int | None = None
        self._least_gap_ns: int | None = None

    def __iter__(self) -> Loop:
        return self

    def __next__(self) -> Tick:
        now_ns = self._clock.now_ns()
        if self._in_body:
            self._in_body = False
            self._schedule(now_ns)
        if self._ticks == self._limit:
            raise StopIteration
        if self._ticks == 0:
            self._due_ns = now_ns
        else:
            now_ns = self._wait(now_ns)
        tick = self._tick
        tick.index = self._index
        tick.due_ns = self._due_ns
        before_ns, tick.late_ns = tick.late_ns, max(0, now_ns - self._due_ns)
        self._late.append(tick.late_ns)
        self._latest_ns = max(self._latest_ns or 0, tick.late_ns)
        self._times.late.add(tick.late_ns)
        if self._ticks:
            self._times.jitter.add(abs(tick.late_ns - before_ns))
        self._last_ns = now_ns
        self._ticks += 1
        self._in_body = True
        return tick

    def stats(self) -> LoopStats:
        """What the loop did so far; takes memory and time only while it is called."""
        in_order = list(self._late)  # copied in one call: the loop may run in another thread
        late, idle_gap = sorted(in_order), sorted(self._idle_gap)
        jitter = sorted(abs(b - a) for a, b in pairwise(in_order))
        return LoopStats(
            period_us=self._period_ns / 1000,
            ticks=self._ticks,
            misses=self._misses,
            clock_faults=self._clock_faults,
            late_p50_us=_percentile_us(late, 0.50),
            late_p99_us=_percentile_us(late, 0.99),
            late_max_us=_us(self._latest_ns),
            jitter_p99_us=_percentile_us(jitter, 0.99),
            idle_gap_p50_us=_percentile_us(idle_gap, 0.50),
            idle_gap_min_us=_us(self._least_gap_ns),
        )

    def _schedule(self, now_ns: int) -> None:
        """Set the next due moment, now that a body has ended."""
        if now_ns < self._last_ns:
            self._count_clock_fault()
            self._due_ns = now_ns + self._period_ns
            self._index += 1
            return
        next_ns = self._due_ns + self._period_ns
        gap_ns = max(0, next_ns - now_ns)
        self._idle_gap.append(gap_ns)
        least_ns = self._least_gap_ns
        self._least_gap_ns = gap_ns if least_ns is None else min(gap_ns, least_ns)
        # Rounded up: a body that ends exactly when a tick is due is in time for it.
        missed = max(0, -((next_ns - now_ns) // self._period_ns))
        self._due_ns = next_ns + missed * self._period_ns
        self._index += 1 + missed
        if missed:
            self._misses += missed
            if self._on_miss is not None:
                self._on_miss(missed)

    def _count_clock_fault(self) -> None:
        self._clock_faults += 1
        if self._on_clock_fault is not None:
            self._on_clock_fault()

    def _wait(self, now_ns: int) -> int:
        """Sleep until the due moment; returns the time then."""
        self._clock.sleep_until_ns(self._due_ns)
        woken_ns = self._clock.now_ns()
        if woken_ns < self._due_ns:
            # Sleeping again could go on for ever on a clock that stands still or runs backwards.
            self._count_clock_fault()
            if woken_ns < now_ns:
                self._due_ns = woken_ns
        return woken_ns


def measure_empty_loop(hz: float, ticks: int, clock: Clock | None = None) -> LoopStats:
    """Run a loop without a body: the lateness and jitter of the machine alone.

    Args:
        hz: Ticks per second.
        ticks: How many; it takes ``(ticks - 1) / hz`` seconds.
        clock: Source of time; the system's monotonic clock if left out.
    """
    loop = Loop(hz, clock=clock, ticks=ticks)
    for _ in loop:
        pass
    return loop.stats()


def first_step_after_idle_us(
    step: Callable[[], object], idle_s: float, repeats: int, clock: Clock | None = None
) -> tuple[float, ...]:
    """Time the first step after a pause, when caches are cold and cores have slowed down.

    Args:
        step: What is timed.
        idle_s: Seconds of sleep before each step; 0 gives the figure to compare with.
        repeats: How many times.
        clock: Source of time; the system's monotonic clock if left out.

    Returns:
        Microseconds of each step; one during which the clock went backwards is left out.
    """
    if not math.isfinite(idle_s) or idle_s < 0:
        raise SpecError("the idle gap must not be negative", found=f"{idle_s} s")
    if repeats < 1:
        raise SpecError("the number of repeats must be positive", found=repeats)
    clock = MonotonicClock() if clock is None else clock
    elapsed_us = []
    for _ in range(repeats):
        clock.sleep_until_ns(clock.now_ns() + round(idle_s * _NS_PER_SECOND))
        start_ns = clock.now_ns()
        step()
        elapsed_ns = clock.now_ns() - start_ns
        if elapsed_ns >= 0:
            elapsed_us.append(elapsed_ns / 1000)
    return tuple(elapsed_us)


def _period_ns(hz: float) -> int:
    fits = math.isfinite(hz) and hz * _LONGEST_PERIOD_S >= 1
    period_ns = round(_NS_PER_SECOND / hz) if fits else 0
    if period_ns < 1:
        raise SpecError(
            "a loop cannot run at this rate",
            found=f"{hz} Hz",
            expected="a positive rate with a period of one nanosecond to one day",
        )
    return period_ns


def _percentile_us(ascending: list[int], share: float) -> float | None:
    """Nearest rank, so that the figure is one that was measured."""
    if not ascending:
        return None
    return ascending[math.ceil(share * len(ascending)) - 1] / 1000


def _us(value_ns: int | None) -> float | None:
    return None if value_ns is None else value_ns / 1000
