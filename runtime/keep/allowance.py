"""What is left of a session's budgets, in memory and in its folder's account."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stategate.contract import Budget
from stategate.contract.errors import BudgetWarning, PersistBudgetError, SnapshotError
from stategate.contract.failures import failures
from stategate.runtime.base.ledger import Counters
from stategate.runtime.keep.account import NOTHING_LEFT, RECORD_BYTES, USED, Account, Record
from stategate.runtime.keep.snapshot import UNLIMITED_BYTES
from stategate.runtime.keep.store import Look, folder_error
from stategate.runtime.memory.governor import Bucket, Governor

_DAY_NS = 86_400_000_000_000
_AHEAD_BYTES = 64 * RECORD_BYTES  # a sixty-fourth of what commits cost goes into the account


class Allowance:
    """The wear budget and the writes of one session, charged durably before they are used.

    Attributes:
        is_limited: Whether there is a wear budget.
    """

    def __init__(
        self,
        folder: Path,
        budget: Budget,
        snapshot_cost_bytes: int,
        counters: Counters,
        governor: Governor | None,
        now: Callable[[], int],
    ) -> None:
        """Full, until `open` has looked into the folder's account."""
        self._folder, self._counters, self._governor, self._now = folder, counters, governor, now
        self._policy = budget.on_persisted or "hold"
        limit = budget.persisted_limit_per_day
        # At least one snapshot fits, even where the budget allows one in several days.
        full = max(limit or 0.0, float(snapshot_cost_bytes))
        self.is_limited = limit is not None
        self._bucket = Bucket(full, full) if self.is_limited else None
        self._per_ns = (limit or 0.0) / _DAY_NS
        self._filled_ns = now()
        self._account: Account | None = None
        self._ahead = 0.0  # charged in the account, and not used yet

    @property
    def capacity(self) -> float:
        """Most bytes that can be left; infinite without a wear budget."""
        return self._bucket.capacity if self._bucket is not None else math.inf

    @property
    def tokens(self) -> float:
        """What a snapshot says is left."""
        return self._bucket.tokens if self._bucket is not None else UNLIMITED_BYTES

    def open(self, look: Look) -> None:
        """Go on with what earlier sessions left of the budgets, and take the writes."""
        if self._bucket is None and self._governor is None:
            return
        try:
            self._account = Account(self._folder)
        except failures(OSError) as problem:
            raise folder_error(self._folder, problem) from problem
        balance = self._account.record or _left_by(look)
        if self._bucket is not None:
            if balance.persist_bytes is not None:
                self._bucket.tokens = min(self._bucket.capacity, balance.persist_bytes)
            self._bucket.fill(balance.running_ns() * self._per_ns)
        if self._governor is None:
            return
        by_steps, by_time, appended, folded = (
            math.inf if (amount := getattr(balance, name)) is None else amount for name in USED
        )
        self._governor.balance = (by_steps, by_time, appended, folded)
        if not any(_limited(self._governor.balance)):
            return  # there is nothing that could come back
        nothing = (0.0, 0.0, 0.0, 0.0)
        try:
            durable = self._pay_record() and self._record(*nothing)
        except failures(OSError, SnapshotError):
            durable = False
        if not durable:  # what cannot be taken durably is not taken
            self._governor.balance = nothing

    def allows(self, cost_bytes: float) -> bool:
        """Whether the wear budget has so many bytes left now."""
        if self._bucket is None:
            return True
        now = self._now()
        if now > self._filled_ns:  # a clock that goes back and forth earns nothing
            self._bucket.fill((now - self._filled_ns) * self._per_ns)
            self._filled_ns = now
        return self._bucket.tokens >= cost_bytes

    def permits(self, cost_bytes: int, what: str) -> bool:
        """Whether something may be written; a refusal of the policy ``raise`` is raised."""
        if self.allows(cost_bytes) or self._policy == "warn":
            return True
        if self._policy == "raise":
            raise PersistBudgetError(
                f"the wear budget is used up; the {what} was not written",
                found=f"{cost_bytes} bytes wanted, metadata included",
                expected=f"{self._per_ns * _DAY_NS:.0f} bytes a day",
            )
        return False

    def charge(self, cost_bytes: int, what: str) -> None:
        """Take bytes that were permitted from the wear budget, the record of that included."""
        if self._bucket is None:
            return
        if not self.allows(cost_bytes):
            self._counters.budget_overruns += 1
            warnings.warn(f"a {what} beyond the wear budget", BudgetWarning, stacklevel=6)
        self._take(cost_bytes)
        try:
            self._record()
        except failures(OSError) as problem:
            raise folder_error(self._folder, problem) from problem

    def affords(self, cost_bytes: int) -> bool:
        """Whether `pay_ahead` would allow so many bytes now."""
        return self.allows(cost_bytes + RECORD_BYTES) or self._policy == "warn"

    def pay_ahead(self, cost_bytes: int, what: str) -> bool:
        """Take bytes and the record of that, for what is written next to the snapshots.

        Returns:
            False, and nothing taken, where the budget does not allow it.
        """
        if not self.affords(cost_bytes):
            return False
        self.charge(cost_bytes + RECORD_BYTES, what)
        return True

    def charge_commit(self, commit_bytes: int) -> bool:
        """Take a commit's bytes, where the budget has them; many are charged at a time.

        What was charged and is not used comes back with `close`; without it, it is lost.
        """
        if self._bucket is None:
            return True
        if self._ahead < commit_bytes:
            several = min(_AHEAD_BYTES, self._bucket.capacity / 16)
            ahead = max(commit_bytes, int(several))
            if not self.allows(ahead + RECORD_BYTES):
                ahead = commit_bytes
            if not self.permits(ahead + RECORD_BYTES, "commit"):
                return False
            self.pay_ahead(ahead, "commit")
            self._ahead += ahead
        self._ahead -= commit_bytes
        return True

    def close(self) -> None:
        """Give back what is left; the caller holds the folder."""
        writes = self._governor.balance if self._governor is not None else ()
        if any(_limited(writes)) or self._ahead > RECORD_BYTES:
            if self._bucket is not None:
                self._bucket.fill(self._ahead)
            self._ahead = 0.0
            if self._pay_record():
                self._record(*writes)

    def _pay_record(self) -> bool:
        allowed = self.allows(RECORD_BYTES) or self._policy == "warn"
        if allowed:
            self._take(RECORD_BYTES)
        return allowed

    def _take(self, cost_bytes: int) -> None:
        if self._bucket is not None:
            self._bucket.tokens = max(0.0, self._bucket.tokens - cost_bytes)

    def _record(self, *writes: float) -> bool:
        """Write down what is left: of the wear budget, and of the writes where they are given."""
        assert self._account is not None
        changes = {}
        if self._bucket is not None:
            changes["persist_bytes"] = self._bucket.tokens
        if self._governor is not None and writes:
            both = zip(USED, writes, self._governor.balance, strict=True)
            changes |= {name: amount for name, amount, tokens in both if tokens < math.inf}
        self._account.write(changes, lambda: self._counters.add_persisted(RECORD_BYTES))
        return True


def _left_by(look: Look) -> Record:
    """What is left where no account was kept: as the snapshots say, or nothing."""
    if look.newest is None:
        return NOTHING_LEFT if look.damaged else Record()
    header = look.newest.snapshot.header
    steps, seconds, _, *more = header.governor or (None, None, 0.0)
    balance: dict[str, Any] = dict(zip(USED, (steps, seconds, *more), strict=False))
    return Record(persist_bytes=header.persist_tokens, **balance)


def _limited(tokens: tuple[float, ...]) -> list[float]:
    return [amount for amount in tokens if amount < math.inf]
