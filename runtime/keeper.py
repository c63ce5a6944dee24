"""When a session's memory is put to storage: by policy, when it changed, within the wear budget."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from stategate.contract import Budget, Manifest
from stategate.contract.errors import (
    BudgetWarning,
    PersistBudgetError,
    SnapshotError,
    SpecError,
)
from stategate.runtime.clock import Clock
from stategate.runtime.governor import Bucket, Governor
from stategate.runtime.ledger import Counters, Ledger
from stategate.runtime.memory import Memory
from stategate.runtime.snapshot import Codec, Header, Snapshot
from stategate.runtime.store import SLOTS, Found, SnapshotStore

_DAY_NS = 86_400_000_000_000
_CLOCK_IS_SET_S = 1_600_000_000  # 2020; a board without a battery boots in 1970


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Where snapshots go and when they are written by themselves.

    Attributes:
        folder: Held by one session at a time; made if it is not there.
        every_writes: After so many writes, or None.
        every_seconds: So long after the last, if a state changed since, or None.
    """

    folder: str | Path
    every_writes: int | None = None
    every_seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse intervals that are none."""
        for name in ("every_writes", "every_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise SpecError(f"{name} must be positive, and below 10^9", found=value)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore took back.

    Attributes:
        slot: File that it came from.
        reason: Why that one.
        sequence: Number of the snapshot.
        steps: Steps of the ledger that came with it.
    """

    slot: str
    reason: str
    sequence: int
    steps: int


class Keeper:
    """Decides and writes snapshots for one session.

    Attributes:
        stored_bytes: Bytes that one snapshot adds to ``persisted_bytes``.
    """

    def __init__(
        self,
        policy: SnapshotPolicy,
        budget: Budget,
        manifest: Manifest,
        clock: Clock,
        counters: Counters,
        memory: Memory,
        governor: Governor | None,
        wall_s: Callable[[], float] | None = None,
    ) -> None:
        self._policy, self._clock, self._wall_s = policy, clock, wall_s or time.time
        self._counters, self._memory, self._governor = counters, memory, governor
        self._on_persisted = budget.on_persisted or "hold"
        self._codec = Codec(manifest)
        self.stored_bytes = self._codec.stored_bytes
        self._cost_bytes = self._codec.cost_bytes
        limit = budget.persisted_limit_per_day
        # At least one snapshot fits, even where the budget allows one in several days.
        full = max(limit or 0.0, float(self._cost_bytes))
        self._bucket = None if limit is None else Bucket(full, full)
        self._per_ns = (limit or 0.0) / _DAY_NS
        self._store = SnapshotStore(policy.folder, self._codec)
        self._sequence, self._next_slot = 0, SLOTS[0]
        self._filled_ns = self._saved_ns = self._seen_ns = clock.now_ns()
        self._writes_then = counters.writes
        self._saved_changes = self._changes()
        self._every_ns = int((policy.every_seconds or 0.0) * 1e9)
        self._behind: Ledger | None = None  # a ledger in the folder that is not counted on yet
        try:
            self._take_up(self._store.newest())
        except BaseException:
            self._store.close()
            raise

    def _take_up(self, found: Found | None) -> None:
        """Number on from what lies in the folder, and inherit its wear budget."""
        if found is None:
            return
        header = found.snapshot.header
        self._behind = header.ledger
        self._sequence = header.sequence
        self._next_slot = self._store.slot_after(found)
        if self._bucket is not None:
            # A clock that had not been set yet says nothing about how long the device was away.
            known = header.unix_s > _CLOCK_IS_SET_S
            away_s = max(0.0, self._wall_s() - header.unix_s) if known else 0.0
            self._bucket.tokens = min(self._bucket.capacity, header.persist_tokens)
            self._bucket.fill(away_s * 1e9 * self._per_ns)

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

    def _changes(self) -> int:
        """A number that grows with every change of a state; a snapshot taken back is none."""
        counters = self._counters
        return counters.writes + counters.ungated_writes + counters.resets

    def _affordable(self) -> bool:
        """Whether the wear budget allows a snapshot now."""
        if self._bucket is None:
            return True
        now = self._now()
        self._bucket.fill((now - self._filled_ns) * self._per_ns)
        self._filled_ns = now
        return self._bucket.tokens >= self._cost_bytes

    def save(self) -> int | None:
        """Write a snapshot of states, counters and governor.

        Returns:
            Its sequence number, or None where the wear budget did not allow it.

        Raises:
            PersistBudgetError: The wear budget's policy is ``raise``.
            SnapshotError: It could not be written; the slots and counters are as they were.
        """
        counters = self._counters
        if not self._affordable():
            if self._on_persisted == "raise":
                self._wait()
                raise PersistBudgetError(
                    "the wear budget is used up; the snapshot was not written",
                    found=f"{self._cost_bytes} bytes wanted, metadata included",
                    expected=f"{self._per_ns * _DAY_NS:.0f} bytes a day",
                )
            if self._on_persisted == "hold":
                self._wait()
                return None
            counters.budget_overruns += 1
            warnings.warn("a snapshot beyond the wear budget", BudgetWarning, stacklevel=3)
        self._count_on()
        tokens = 0.0
        if self._bucket is not None:
            # Charged whether or not it succeeds: a write that fails wears as well.
            self._bucket.tokens = tokens = max(0.0, self._bucket.tokens - self._cost_bytes)
        ledger = counters.read()
        self._sequence += 1
        header = Header(
            memory_sha256=self._codec.identity,
            sequence=self._sequence,
            unix_s=int(self._wall_s()),
            ledger=replace(
                ledger,
                snapshots=ledger.snapshots + 1,
                persisted_bytes=ledger.persisted_bytes + self.stored_bytes,
            ),
            governor=self._governor.save() if self._governor is not None else None,
            persist_tokens=tokens,
        )
        try:
            self._store.write(Snapshot(header, self._memory.live()), self._next_slot)
        except SnapshotError:
            with suppress(SnapshotError):
                # It may be in place all the same, if only the last sync failed.
                self._next_slot = self._store.slot_after(self._store.newest())
            self._wait()
            raise
        counters.snapshots += 1
        counters.persisted_bytes += self.stored_bytes
        self._next_slot = SLOTS[1 - SLOTS.index(self._next_slot)]
        self._saved_changes = self._changes()
        self._wait()
        return self._sequence

    def _count_on(self) -> bool:
        """Go on from the ledger in the folder, once; a device has one history."""
        fresh = self._behind is not None
        if self._behind is not None:
            self._counters.add(self._behind)
            self._behind = None
        return fresh

    def restore(self) -> Restored | None:
        """Take back the newest good snapshot, if there is one; see `Session.restore`."""
        found = self._store.newest()
        if found is None:
            return None
        header = found.snapshot.header
        fresh = self._count_on()
        if self._governor is not None and header.governor is not None:
            self._governor.load(header.governor, fresh)
        self._memory.restore(found.snapshot.states)
        self._saved_changes = self._changes()
        self._wait()
        return Restored(found.slot, found.reason, header.sequence, header.ledger.steps)

    def _wait(self) -> None:
        """Until the next occasion that the policy names."""
        self._writes_then = self._counters.writes
        self._saved_ns = self._now()

    def close(self) -> None:
        """Let go of the folder."""
        self._store.close()

    def _now(self) -> int:
        """The clock; a step backwards is counted."""
        now = self._clock.now_ns()
        if now < self._seen_ns:
            self._counters.clock_faults += 1
            # Time starts anew from here, so that one jump is one fault and stalls nothing.
            self._saved_ns = self._filled_ns = now
        self._seen_ns = now
        return now
