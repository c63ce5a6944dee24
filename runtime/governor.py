"""The governor: says before each step whether it may write, and moves the gate where it must.

A token bucket holds as many writes as the budget allows in 1,000 steps (or in one second), starts
full and refills at the budget's rate; a committed write takes one token. With an empty bucket the
step may not write: models that take their threshold as an input are shown one that no gate
reaches, so that their outputs agree with the state that stays.

``adapt`` adds an integral controller on the threshold, one step at a time::

    threshold <- clip(threshold + gain * (opened - rate), start, limit)

with ``opened`` 1 or 0 and ``rate`` the allowed share of steps. While the threshold stays below its
limit, the gate opens in a share of at most ``rate + (limit - start) / (gain T)`` of any T steps
from the start, whatever its values are: the increments telescope (the argument of adaptive
conformal inference, Gibbs and Candes 2021, arXiv:2106.00170). ``gain`` is ``(limit - start) /
200``, so that term is 200 / T. The start is the manifest's threshold: a
gate is never opened wider than it was calibrated. If the limit is reached the bucket holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stategate.contract import Budget
from stategate.contract.errors import BudgetWarning, SpecError, WriteBudgetError
from stategate.runtime.buffers import Group, Slot
from stategate.runtime.clock import Clock
from stategate.runtime.ledger import Counters

# From start to limit in this many over-budget steps: slow against the gate, fast against a shift.
_ADAPT_STEPS = 200.0
_NEVER = np.float32(np.finfo(np.float32).max)


@dataclass(slots=True)
class Bucket:
    """A token bucket, filled from outside.

    Attributes:
        capacity: Most tokens it can hold.
        tokens: Tokens in it now.
    """

    capacity: float
    tokens: float

    def fill(self, tokens: float) -> None:
        """Add tokens, up to the capacity."""
        self.tokens = min(self.capacity, self.tokens + tokens)


class Governor:
    """Write budget of one session.

    Attributes:
        thresholds: Effective threshold of each hard gate, as the session must compare it.
        policy: What happens to a write beyond the budget.
    """

    def __init__(
        self,
        budget: Budget,
        groups: Sequence[Group],
        constants: Sequence[Slot],
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._clock = clock
        self._counters = counters
        gates = [g.gate for g in groups if g.gate is not None]
        slots = {slot.name: slot.array for slot in constants}
        self._inputs = [slots[g.threshold_input] if g.threshold_input else None for g in gates]
        self._start = [np.float32(g.threshold) for g in gates]
        self.thresholds = list(self._start)
        self.policy = budget.on_writes or "hold"
        per_step = budget.writes_per_1000_steps
        per_second = budget.writes_per_second
        self._per_step = (per_step or 0.0) / 1000.0
        self._steps = None if per_step is None else Bucket(max(1.0, per_step), max(1.0, per_step))
        self._per_ns = (per_second or 0.0) / 1e9
        full = max(1.0, per_second or 0.0)
        self._time = None if per_second is None else Bucket(full, full)
        self._seen_ns = clock.now_ns()
        self._allowed = True
        self._shut = False
        self._shift = 0.0
        self._span = 0.0
        if self.policy == "adapt":
            if len(gates) != 1:
                raise SpecError(
                    "only a model with one hard gate can adapt its threshold",
                    found=f"{len(gates)} hard gates",
                    remedy="use on_writes='hold'",
                )
            self._span = float(budget.adapt_limit or 0.0) - float(self._start[0])
            if self._span <= 0.0:
                raise SpecError(
                    "adapt_limit must lie above the gate's threshold",
                    found=budget.adapt_limit,
                    expected=f"more than {self._start[0]:g}",
                )

    def before(self) -> None:
        """Look into the buckets before a step, and show the graph a threshold to match."""
        allowed = True
        if self._steps is not None:
            allowed = self._steps.tokens >= 1.0
        if self._time is not None:
            now = self._clock.now_ns()
            if now < self._seen_ns:
                self._counters.clock_faults += 1
            else:
                self._time.fill((now - self._seen_ns) * self._per_ns)
            self._seen_ns = now
            allowed = allowed and self._time.tokens >= 1.0
        shut = not allowed and self.policy in ("hold", "adapt")
        if shut != self._shut:
            self._shut = shut
            self._show()
        self._allowed = allowed

    def permit(self) -> bool:
        """Whether the step that is being committed may write.

        Raises:
            WriteBudgetError: It may not, and the policy is ``raise``; the step is counted.
        """
        if self._allowed:
            return True
        if self.policy == "warn":
            self._counters.budget_overruns += 1
            warnings.warn("a write beyond the budget went through", BudgetWarning, stacklevel=4)
            return True
        if self.policy == "raise":
            counters = self._counters
            counters.steps += 1
            counters.suppressed_writes += 1
            self.after(wanted=True, wrote=False)  # the step is counted, so it earns its tokens
            raise WriteBudgetError(
                "the write budget is used up; the old state stays",
                found=f"{counters.writes} writes in {counters.steps} steps",
                expected=f"{1000 * self._per_step:g} in 1,000 steps, "
                f"{1e9 * self._per_ns:g} in a second (0: no limit)",
                remedy="open with on_writes='hold' or 'adapt', or raise the gate's threshold",
            )
        return False

    def after(self, wanted: bool, wrote: bool) -> None:
        """Account for a step.

        Args:
            wanted: Whether a gate was open.
            wrote: Whether a state was committed for it.
        """
        if self._steps is not None:
            # Here and not before the step: one that fails earns nothing.
            self._steps.fill(self._per_step)
        if wrote:
            for bucket in (self._steps, self._time):
                if bucket is not None:
                    bucket.tokens = max(0.0, bucket.tokens - 1.0)
        if self._span > 0.0:
            gain = self._span / _ADAPT_STEPS
            shift = self._shift + gain * (float(wanted) - self._per_step)
            self._shift = min(max(shift, 0.0), self._span)
            self.thresholds[0] = np.float32(float(self._start[0]) + self._shift)
            self._show()

    def _show(self) -> None:
        for array, threshold in zip(self._inputs, self.thresholds, strict=True):
            if array is not None:
                array.fill(_NEVER if self._shut else threshold)

    def save(self) -> tuple[float, float, float]:
        """What a snapshot keeps: both buckets and the threshold's shift."""
        steps, time = self._steps, self._time
        return (steps.tokens if steps else 0.0, time.tokens if time else 0.0, self._shift)

    def load(self, saved: tuple[float, float, float], fresh: bool) -> None:
        """Go on from a snapshot.

        Args:
            saved: From `save`.
            fresh: Whether this session has yet to count on from the snapshot; one that already
                does gets no tokens back by looking back.
        """
        for bucket, tokens in zip((self._steps, self._time), saved, strict=False):
            if bucket is not None:
                most = bucket.capacity if fresh else bucket.tokens
                bucket.tokens = min(most, tokens)
        if self._span > 0.0:
            self._shift = min(max(saved[2], 0.0), self._span)
            self.thresholds[0] = np.float32(float(self._start[0]) + self._shift)
            self._show()
