"""The governor: says before each step whether it may write, and moves the gate where it must.

A token bucket holds as many writes as the budget allows in 1,000 steps (or in one second), starts
full and refills at the budget's rate; a committed write takes one token. With an empty bucket the
step may not write: models that take their threshold as an input are shown one that no gate
reaches, so that their outputs agree with the state that stays.

Rings have two buckets more, of bytes: a write takes a row from the one where there is room for it,
and a fold from the other where there is none, whatever led to that.

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

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stategate.contract import Budget
from stategate.contract.errors import BudgetWarning, SpecError, WriteBudgetError
from stategate.runtime.base.buffers import Group, Slot
from stategate.runtime.base.clock import Clock
from stategate.runtime.base.ledger import Counters

# From start to limit in this many over-budget steps: slow against the gate, fast against a shift.
_ADAPT_STEPS = 200.0
_LIMITS = (
    "writes in 1,000 steps",
    "writes in a second",
    "bytes appended in 1,000 steps",
    "bytes folded in 1,000 steps",
)
Tokens = tuple[float, float, float, float, float]
Balance = tuple[float, float, float, float]
_NEVER = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class Bucket:
    """A token bucket, filled from outside."""

    capacity: float  # most tokens it can hold
    tokens: float  # tokens in it now

    def fill(self, tokens: float) -> None:
        """Add tokens, up to the capacity."""
        self.tokens = min(self.capacity, self.tokens + tokens)


class Governor:
    """Write budget of one session.

    Attributes:
        thresholds: Effective threshold of each hard gate, as the session must compare it.
        policy: What happens to a write beyond the budget.
        tokens: In the bucket of steps and in that of seconds, the threshold's shift, and bytes to
            append and to fold. Replaced as a whole: whoever is interrupted leaves the old ones or
            the new ones.
        overdrawn: Whether the step that was begun last finds a bucket empty.
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
        self._start = [float(np.float32(g.threshold)) for g in gates]
        self.thresholds = list(self._start)
        self.policy = budget.on_writes or "hold"
        self._closes = self.policy in ("hold", "adapt")
        self._limits = (budget.writes_per_1000_steps, budget.writes_per_second)
        per_step, per_second = (limit or 0.0 for limit in self._limits)
        self._per_step, self._per_ns = per_step / 1000.0, per_second / 1e9
        self._full = (max(1.0, per_step), max(1.0, per_second))
        self._bytes = (budget.appended_bytes_per_1000_steps, budget.folded_bytes_per_1000_steps)
        states = [state.spec for group in groups for state in group.states]
        # Of a write that appends, and of one that folds.
        self._costs = (
            float(sum(s.next_value.nbytes for s in states if s.cursor is not None)),
            float(sum(s.bytes for s in states if s.folds is not None)),
        )
        if self._bytes != (None, None) and not self._costs[0]:
            raise SpecError(
                "a budget of appended or folded bytes is for deferred writes",
                found="a bundle without rings",
                remedy="stategate export MODEL --defer 16, or limit writes_per_1000_steps",
            )
        self._bytes_per_step = tuple((limit or 0.0) / 1000.0 for limit in self._bytes)
        full = [
            math.inf if limit is None else max(limit, cost)
            for limit, cost in zip(self._bytes, self._costs, strict=True)
        ]
        self._full_bytes = (full[0], full[1])
        self._folds = False  # whether a write in the step that was begun last folds
        self.tokens: Tokens = (*self._full, 0.0, *self._full_bytes)
        self.overdrawn = False
        self._seen_ns = self._filled_ns = clock.now_ns()
        self._shown = (False, 0.0)
        self._span = 0.0
        if self.policy == "adapt":
            deciding = [g for g in groups if g.gate and not any(s.spec.folds for s in g.states)]
            if len(deciding) != 1:
                raise SpecError(
                    "only a model with one hard gate can adapt its threshold",
                    found=f"{len(deciding)} hard gates",
                    remedy="use on_writes='hold'",
                )
            self._span = float(budget.adapt_limit or 0.0) - self._start[0]
            if self._span <= 0.0:
                raise SpecError(
                    "adapt_limit must lie above the gate's threshold",
                    found=budget.adapt_limit,
                    expected=f"more than {self._start[0]:g}",
                )

    @property
    def permits(self) -> bool:
        """Whether the step that was begun last may write."""
        return not self.overdrawn or self.policy == "warn"

    def before(self, folds: bool) -> None:
        """Look into the buckets before a step, and show the graph a threshold to match.

        Args:
            folds: Whether the rings are full, so that a write folds them.
        """
        steps, time, shift, *room = self.tokens
        if self._limits[1] is not None:
            now = self._clock.now_ns()
            # A clock that goes back and forth earns nothing.
            time = min(self._full[1], time + max(0, now - self._filled_ns) * self._per_ns)
            self._counters.clock_faults += now < self._seen_ns
            self._seen_ns, self._filled_ns = now, max(now, self._filled_ns)
            self.tokens = (steps, time, shift, room[0], room[1])
        self._folds = folds
        per_step, per_second = self._limits
        self.overdrawn = (per_step is not None and steps < 1.0) or (
            per_second is not None and time < 1.0
        )
        self.overdrawn = self.overdrawn or room[folds] < self._costs[folds]
        if self._shown != (self.overdrawn and self._closes, shift):
            self._show()

    def after(self, asked: bool, wrote: bool) -> Tokens:
        """What `tokens` are after a step; a step that fails earns nothing.

        Args:
            asked: Whether a gate was open.
            wrote: Whether a state is committed for it.
        """
        steps, time, shift, appended, folded = self.tokens
        steps += self._per_step
        if steps > self._full[0]:  # `min` would be one more call in every step
            steps = self._full[0]
        if wrote:
            steps, time = max(0.0, steps - 1.0), max(0.0, time - 1.0)
        if self._costs[0]:
            room = [appended + self._bytes_per_step[0], folded + self._bytes_per_step[1]]
            appended, folded = map(min, room, self._full_bytes)
            if wrote and self._folds:
                folded = max(0.0, folded - self._costs[1])
            elif wrote:
                appended = max(0.0, appended - self._costs[0])
        if self._span > 0.0:
            gain = self._span / _ADAPT_STEPS
            shift = min(max(shift + gain * (float(asked) - self._per_step), 0.0), self._span)
        return steps, time, shift, appended, folded

    def warn(self) -> None:
        """Say that a write beyond the budget went through."""
        warnings.warn("a write beyond the budget went through", BudgetWarning, stacklevel=3)

    def refusal(self) -> WriteBudgetError:
        """The error for a write that the policy ``raise`` refused; the step is counted."""
        ledger = self._counters.read()
        return WriteBudgetError(
            "the write budget is used up; the old state stays",
            found=f"{ledger.writes} writes in {ledger.steps} steps",
            expected=", ".join(
                f"{limit:g} {what}"
                for limit, what in zip((*self._limits, *self._bytes), _LIMITS, strict=True)
                if limit is not None
            ),
            remedy="open with on_writes='hold' or 'adapt', or raise the gate's threshold",
        )

    def _show(self) -> None:
        """Put the thresholds where gates and graph are compared with them."""
        shift = self.tokens[2]
        shut = self.overdrawn and self._closes
        if self._span > 0.0:
            self.thresholds[0] = float(np.float32(self._start[0] + shift))
        for array, threshold in zip(self._inputs, self.thresholds, strict=True):
            if array is not None:
                array.fill(_NEVER if shut else threshold)
        self._shown = (shut, shift)

    def save(self) -> tuple[float, ...]:
        """What a snapshot keeps: tokens, 0 of a bucket that there is not, and the shift.

        Bytes only where they are limited, so that an older runtime reads the rest.
        """
        steps, time, appended, folded = (0.0 if n == math.inf else n for n in self.balance)
        more = () if self._bytes == (None, None) else (appended, folded)
        return (steps, time, self.tokens[2], *more)

    @property
    def full(self) -> Balance:
        """The most that `balance` can be."""
        return (*self._full, *self._full_bytes)

    @property
    def balance(self) -> Balance:
        """What may be used at once: writes by steps and by time, bytes to append and to fold.

        Infinite where there is no such limit. Setting takes away and gives nothing.
        """
        steps, time, _, appended, folded = self.tokens
        by_steps, by_time = self._limits
        return (
            math.inf if by_steps is None else steps,
            math.inf if by_time is None else time,
            appended,
            folded,
        )

    @balance.setter
    def balance(self, most: Balance) -> None:
        steps, time, shift, appended, folded = self.tokens
        counts = min(steps, most[0]), min(time, most[1])
        self.tokens = (*counts, shift, min(appended, most[2]), min(folded, most[3]))

    @property
    def finding(self) -> tuple[bool, float]:
        """What the step that was begun last found: a bucket empty or none, and the shift."""
        return self.overdrawn, self._shown[1]

    def follow(self, overdrawn: bool, shift: float) -> None:
        """Begin the next step with empty or with full buckets, and with this shift."""
        # So empty that no time that passes until then fills it.
        room = (-math.inf,) * 4 if overdrawn else (*self._full, *self._full_bytes)
        self.tokens = (room[0], room[1], shift, room[2], room[3])

    def move_threshold(self, shift: float) -> None:
        """Put the threshold where a snapshot had it; only ``adapt`` moves it."""
        steps, time, _, *room = self.tokens
        self.tokens = (steps, time, min(max(shift, 0.0), self._span), room[0], room[1])
        self._show()
