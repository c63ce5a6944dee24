"""When a session's memory is put to flash: by policy, when it changed, within the wear budget."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from stategate.contract import Budget
from stategate.contract.errors import (
    BudgetWarning,
    PersistBudgetError,
    SnapshotError,
    SnapshotWarning,
    SpecError,
)
from stategate.contract.failures import failures
from stategate.runtime.base.clock import Clock
from stategate.runtime.base.ledger import Counters, Ledger
from stategate.runtime.keep.account import NOTHING_LEFT, RECORD_BYTES, Account, Record
from stategate.runtime.keep.snapshot import UNLIMITED_BYTES, Codec, Snapshot, next_header
from stategate.runtime.keep.store import Look, OnDamage, SnapshotStore, folder_error
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.governor import Bucket, Governor

_DAY_NS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Where snapshots go and when they are written by themselves.

    Attributes:
        folder: Held by one session at a time; made if it is not there.
        every_writes: After so many writes, or None.
        every_seconds: So long after the last, if a state changed since, or None.
        on_damage: What happens where there are snapshots and none can be read. Opening succeeds
            and warns in either case. ``raise``: `restore` raises, and `save` does too, so that
            nothing is overwritten. ``fresh``: `restore` returns None, and the first `save` puts
            the damaged file aside.
    """

    folder: str | Path
    every_writes: int | None = None
    every_seconds: float | None = None
    on_damage: OnDamage = "raise"

    def __post_init__(self) -> None:
        """Refuse intervals that are none, and policies that do not exist."""
        for name in ("every_writes", "every_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise SpecError(f"{name} must be positive, and below 10^9", found=value)
        if self.on_damage not in ("raise", "fresh"):
            raise SpecError("unknown on_damage", found=self.on_damage, expected="raise or fresh")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore took back.

    Attributes:
        slot: File that it came from.
        reason: Why that one.
        sequence: Number of the snapshot.
        steps: Steps of the ledger that came with it.
        fresh: The bundle's reset rule by which counters and budgets go on, and the memory began
            anew; empty where it goes on too.
    """

    slot: str
    reason: str
    sequence: int
    steps: int
    fresh: str = ""


class Keeper:
    """Decides and writes snapshots for one session, and keeps what is left of its budgets.

    Attributes:
        stored_bytes: Bytes that one snapshot adds to ``persisted_bytes``.
        problem: What in the folder cannot be used, as it was last looked at; None where all can.
    """

    def __init__(
        self,
        policy: SnapshotPolicy,
        budget: Budget,
        codec: Codec,
        clock: Clock,
        counters: Counters,
        memory: Memory,
        governor: Governor | None,
    ) -> None:
        self._policy, self._clock = policy, clock
        self._counters, self._memory, self._governor = counters, memory, governor
        self._on_persisted = budget.on_persisted or "hold"
        self._codec = codec
        self.stored_bytes = self._codec.stored_bytes
        limit = budget.persisted_limit_per_day
        # At least one snapshot fits, even where the budget allows one in several days.
        full = max(limit or 0.0, float(self._codec.cost_bytes))
        self._bucket = None if limit is None else Bucket(full, full)
        self._per_ns = (limit or 0.0) / _DAY_NS
        self._filled_ns = self._saved_ns = self._seen_ns = clock.now_ns()
        self._writes_then = counters.writes
        self._saved_changes = self._changes()
        self._every_ns = int((policy.every_seconds or 0.0) * 1e9)
        self._store = SnapshotStore(policy.folder, self._codec)
        self._account: Account | None = None
        self._tried: tuple[int, int] | None = None  # a sequence number, and the count of snapshots
        try:
            look = self._look()
            newest = look.newest
            # A device has one history; this session counts on from it once it saves or restores.
            self._past = newest.snapshot.header.ledger if newest is not None else Ledger()
            self._warn(look)
            if self._bucket is not None or governor is not None:
                self._open_account(look)
        except BaseException:
            self._store.close()
            raise

    def _warn(self, look: Look) -> None:
        if look.problem is not None:
            then = (
                f"slot {look.newest.slot} is good" if look.newest else "the session starts afresh"
            )
            warnings.warn(f"{self._store.folder}: {look.problem}; {then}", SnapshotWarning, 5)
        if self._store.unlocked:
            warnings.warn(
                f"{self._store.folder} lies on a file system without locks: another session in it "
                "is noticed only when it has saved",
                SnapshotWarning,
                5,
            )

    def _open_account(self, look: Look) -> None:
        """Go on with what earlier sessions left of the budgets, and take the writes."""
        try:
            account = Account(self._store.folder)
        except failures(OSError) as problem:
            raise folder_error(self._store.folder, problem) from problem
        self._account = account
        balance = account.record or _left_by(look)
        if self._bucket is not None:
            if balance.persist_bytes is not None:
                self._bucket.tokens = min(self._bucket.capacity, balance.persist_bytes)
            self._bucket.fill(balance.running_ns() * self._per_ns)
        if self._governor is None:
            return
        self._governor.writes_left = _writes(balance)
        if not any(_limited(self._governor.writes_left)):
            return  # there is nothing that could come back
        try:
            durable = self._pay(RECORD_BYTES) and self._record(0.0, 0.0)
        except failures(OSError, SnapshotError):
            durable = False
        if not durable:  # what cannot be taken durably is not taken
            self._governor.writes_left = (0.0, 0.0)

    def _pay(self, cost_bytes: int) -> bool:
        """Charge the wear budget in memory, if it allows that."""
        allowed = self._affordable(cost_bytes) or self._on_persisted == "warn"
        if allowed and self._bucket is not None:
            self._bucket.tokens = max(0.0, self._bucket.tokens - cost_bytes)
        return allowed

    def affords(self, cost_bytes: int) -> bool:
        """Whether `pay_ahead` would allow so many bytes now."""
        return self._affordable(cost_bytes + RECORD_BYTES) or self._on_persisted == "warn"

    def pay_ahead(self, cost_bytes: int) -> bool:
        """Take bytes from the wear budget, durably, for what is written beside the snapshots.

        Returns:
            False, and nothing taken, where the budget does not allow it. An OSError passes.
        """
        is_overrun = not self._affordable(cost_bytes + RECORD_BYTES)
        if not self._pay(cost_bytes + RECORD_BYTES):
            return False
        if is_overrun:
            self._counters.budget_overruns += 1
            warnings.warn("a black box beyond the wear budget", BudgetWarning, stacklevel=8)
        return self._bucket is None or self._record()

    def _record(self, *writes: float) -> bool:
        """Write down what is left: of the wear budget, and of the writes where they are given."""
        assert self._account is not None
        changes = {}
        if self._bucket is not None:
            changes["persist_bytes"] = self._bucket.tokens
        if self._governor is not None and writes:
            names = ("writes_by_steps", "writes_by_time")
            both = zip(names, writes, self._governor.writes_left, strict=True)
            changes |= {name: amount for name, amount, tokens in both if tokens < math.inf}
        self._account.write(changes, lambda: self._count(RECORD_BYTES))
        return True

    def _count(self, stored_bytes: int) -> None:
        """Before the bytes are written: what fails half-way has worn as well."""
        self._counters.persisted_bytes += stored_bytes

    def is_due(self) -> bool:
        """Whether the policy asks for a snapshot now; never while no state has changed.

        The counters tell what happened, so that nothing is missed where an exception of the
        caller's own came between a step and this question.
        """
        if self._changes() == self._saved_changes:
            return False
        every = self._policy.every_writes
        if every is not None and self._counters.writes - self._writes_then >= every:
            return True
        return self._every_ns > 0 and self._now() - self._saved_ns >= self._every_ns

    def save_by_policy(self, raises: bool) -> None:
        """Save at the end of a step, where that is due; the step is committed in every case.

        Args:
            raises: Whether a failure is raised; it is counted as a fault otherwise too.
        """
        if not self.is_due():
            return
        try:
            self.save()
        except SnapshotError:
            self._counters.faults += 1
            if raises:
                raise

    def _changes(self) -> int:
        """A number that grows with every change of a state; a snapshot taken back is none."""
        counters = self._counters
        return counters.writes + counters.ungated_writes + counters.resets

    def _affordable(self, cost_bytes: int) -> bool:
        """Whether the wear budget allows so many bytes now."""
        if self._bucket is None:
            return True
        now = self._now()
        if now > self._filled_ns:  # a clock that goes back and forth earns nothing
            self._bucket.fill((now - self._filled_ns) * self._per_ns)
            self._filled_ns = now
        return self._bucket.tokens >= cost_bytes

    def _look(self) -> Look:
        """What lies in the folder; counts a snapshot that an exception kept from being counted."""
        look = self._store.look()
        if look.newest is not None and self._tried is not None:
            sequence, snapshots = self._tried
            if look.newest.snapshot.header.sequence == sequence:
                self._counters.snapshots = snapshots
        self._tried = None
        no_locks = "the file system has no locks" if self._store.unlocked else None
        self.problem = "; ".join(filter(None, (look.problem, no_locks))) or None
        return look

    def save(self) -> int | None:
        """Write a snapshot of states, counters and governor.

        Whatever ends it, an exception of a signal handler included, the newest good snapshot is
        not touched, and bytes that may have been written are counted.

        Returns:
            Its sequence number, or None where the wear budget did not allow it.
        """
        self._store.check_hold()
        cost_bytes = self._codec.cost_bytes
        affordable = self._affordable(cost_bytes)
        if not affordable:
            self._wait()
            if self._on_persisted == "raise":
                raise PersistBudgetError(
                    "the wear budget is used up; the snapshot was not written",
                    found=f"{cost_bytes} bytes wanted, metadata included",
                    expected=f"{self._per_ns * _DAY_NS:.0f} bytes a day",
                )
            if self._on_persisted == "hold":
                return None
        try:
            sequence = self._write(overrun=not affordable)
        except SnapshotError:
            self._wait()  # a medium that fails is not asked again at once
            raise
        self._wait()
        return sequence

    def _write(self, overrun: bool) -> int:
        counters = self._counters
        look = self._look()
        if self._policy.on_damage == "raise":
            look.good()
        if overrun:
            counters.budget_overruns += 1
            warnings.warn("a snapshot beyond the wear budget", BudgetWarning, stacklevel=4)
        counters.past = self._past
        self._pay(self._codec.cost_bytes)
        if self._bucket is not None:
            try:
                self._record()
            except failures(OSError) as problem:
                raise folder_error(self._store.folder, problem) from problem
        header = next_header(
            self._codec,
            look.next_sequence,
            counters.read(),
            self._governor.save() if self._governor is not None else None,
            self._bucket.tokens if self._bucket is not None else UNLIMITED_BYTES,
        )
        self._tried = (header.sequence, counters.snapshots + 1)
        snapshot = Snapshot(header, self._memory.live())
        self._store.write(snapshot, look, lambda: self._count(self.stored_bytes))
        counters.snapshots = self._tried[1]
        self._tried = None
        self._saved_changes = self._changes()
        return header.sequence

    def restore(self) -> Restored | None:
        """Take back the newest good snapshot, if there is one; see `Session.restore`."""
        look = self._look()
        newest = look.newest if self._policy.on_damage == "fresh" else look.good()
        if newest is None:
            return None
        header = newest.snapshot.header
        self._counters.past = self._past
        if self._governor is not None and header.governor is not None:
            self._governor.move_threshold(header.governor[2])
        self._memory.restore(newest.snapshot.states)
        self._saved_changes = self._changes()
        fresh = self._codec.staleness(header)
        if fresh:
            self._memory.begin()
        self._wait()
        return Restored(newest.slot, newest.reason, header.sequence, header.ledger.steps, fresh)

    def _wait(self) -> None:
        """Until the next occasion that the policy names."""
        self._writes_then = self._counters.writes
        self._saved_ns = self._now()

    def close(self) -> None:
        """Give back the writes that are left, and let go of the folder."""
        try:
            if self._governor is not None and any(_limited(self._governor.writes_left)):
                self._store.check_hold()
                if self._pay(RECORD_BYTES):
                    self._record(*self._governor.writes_left)
        except failures(OSError, SnapshotError):
            pass  # they are lost, and the next session starts without
        finally:
            self._store.close()

    def _now(self) -> int:
        """The clock; a step backwards is counted."""
        now = self._clock.now_ns()
        if now < self._seen_ns:
            self._counters.clock_faults += 1
            # The interval starts anew from here, so that one jump is one fault and stalls nothing.
            self._saved_ns = now
        self._seen_ns = now
        return now


def _left_by(look: Look) -> Record:
    """What is left where no account was kept: as the snapshots say, or nothing."""
    if look.newest is None:
        return NOTHING_LEFT if look.damaged else Record()
    header = look.newest.snapshot.header
    steps, seconds, _ = header.governor or (None, None, 0.0)
    return Record(
        persist_bytes=header.persist_tokens, writes_by_steps=steps, writes_by_time=seconds
    )


def _limited(tokens: tuple[float, float]) -> list[float]:
    return [amount for amount in tokens if amount < math.inf]


def _writes(balance: Record) -> tuple[float, float]:
    both = (balance.writes_by_steps, balance.writes_by_time)
    by_steps, by_time = (math.inf if tokens is None else tokens for tokens in both)
    return by_steps, by_time
