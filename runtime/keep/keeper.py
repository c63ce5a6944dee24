"""When a session's memory is put to flash: by policy, when it changed, within the wear budget."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec

from stategate.contract import Budget
from stategate.contract.errors import (
    PersistBudgetError,
    SnapshotError,
    SnapshotWarning,
    SpecError,
)
from stategate.contract.failures import failures
from stategate.runtime.base.clock import Clock
from stategate.runtime.base.ledger import Counters, Ledger
from stategate.runtime.keep.allowance import Allowance
from stategate.runtime.keep.journal import (
    LEAST_BLOCKS,
    Journal,
    Reading,
    base_of,
    read_journal,
)
from stategate.runtime.keep.policy import Restored, SnapshotPolicy
from stategate.runtime.keep.records import BLOCK_BYTES
from stategate.runtime.keep.replay import Replay
from stategate.runtime.keep.snapshot import Codec, Snapshot, next_header
from stategate.runtime.keep.store import Look, SnapshotStore, folder_error
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.governor import Governor


class Keeper:
    """Decides and writes snapshots and commits for one session.

    Attributes:
        stored_bytes: Bytes that one snapshot adds to ``persisted_bytes``.
        problem: What in the folder cannot be used, as it was last looked at; None where all can.
        replay: What steps again what the journal has.
        allowance: What is left of the budgets.
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
        replay: Replay,
    ) -> None:
        self._policy, self._clock = policy, clock
        self._counters, self._memory, self._governor = counters, memory, governor
        self._codec, self.replay = codec, replay
        self.stored_bytes = self._codec.stored_bytes
        self._saved_ns = self._seen_ns = clock.now_ns()
        self._writes_then = counters.writes
        self._saved_changes = self._noted = self._changes()
        self._jumps_then = self._jumps()
        self._is_paused = False
        self._every_ns = int((policy.every_seconds or 0.0) * 1e9)
        self._store = SnapshotStore(policy.folder, self._codec)
        # A sequence number, and the count of snapshots.
        self._tried: tuple[int, int] | None = None
        try:
            self._journal = self._new_journal()
            look, reading = self._look()
            newest = look.newest
            # A device has one history; this session counts on from it once it saves or restores.
            self._past = reading.newest_ledger(
                newest.snapshot.header.ledger if newest is not None else Ledger()
            )
            self._warn(look, reading)
            folder, cost_bytes = self._store.folder, codec.cost_bytes
            self.allowance = Allowance(folder, budget, cost_bytes, counters, governor, self._now)
            self.allowance.open(look)
            self._open_journal()
        except BaseException:
            self._store.close()
            raise

    def _warn(self, look: Look, reading: Reading) -> None:
        if look.problem is not None:
            then = (
                f"slot {look.newest.slot} is good" if look.newest else "the session starts afresh"
            )
            warnings.warn(f"{self._store.folder}: {look.problem}; {then}", SnapshotWarning, 5)
        if reading.problem:
            warnings.warn(f"{self._store.folder}: {reading.problem}", SnapshotWarning, 5)
        if self._store.unlocked:
            warnings.warn(
                f"{self._store.folder} lies on a file system without locks: another session in it "
                "is noticed only when it has saved",
                SnapshotWarning,
                5,
            )

    def count_on(self) -> None:
        """Let the ledger go on from the folder's, with what the session has counted until now."""
        self._past = self._counters.past = (
            self._counters.read().after(self._past).since(self._counters.own())
        )

    # --- when -------------------------------------------------------------------------------

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

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Save nothing until the end of a branch, whose memory is none that shall survive."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def save_by_policy(self, raises: bool) -> None:
        """Save at the end of a step, where that is due; the step is committed in every case.

        Args:
            raises: Whether a failure is raised; it is counted as a fault otherwise too.
        """
        if self._is_paused:
            return
        if self._policy.journal:
            self._note()
        if not self.is_due():
            return
        try:
            if self._policy.journal:
                self._commit()
            else:
                self.save()
        except SnapshotError:
            self._counters.faults += 1
            if raises:
                raise

    def _changes(self) -> int:
        """A number that grows with every change of a state; a snapshot taken back is none."""
        return self._counters.writes + self._counters.ungated_writes + self._jumps()

    def _jumps(self) -> int:
        """A number that grows where states change otherwise than by a step."""
        return self._memory.replacements

    def _wait(self) -> None:
        """Until the next occasion that the policy names."""
        self._writes_then = self._counters.writes
        self._saved_ns = self._now()

    def _now(self) -> int:
        """The clock; a step backwards is counted."""
        now = self._clock.now_ns()
        if now < self._seen_ns:
            self._counters.clock_faults += 1
            # The interval starts anew from here, so that one jump is one fault and stalls nothing.
            self._saved_ns = now
        self._seen_ns = now
        return now

    # --- snapshots --------------------------------------------------------------------------

    def _look(self) -> tuple[Look, Reading]:
        """What lies in the folder; counts a snapshot that an exception kept from being counted."""
        look = self._store.look()
        if look.newest is not None and self._tried is not None:
            sequence, snapshots = self._tried
            if look.newest.snapshot.header.sequence == sequence:
                self._counters.snapshots = snapshots
        self._tried = None
        reading = read_journal(self._store.folder, look.newest)
        if reading.entries and reading.identity != self.replay.identity:
            raise SnapshotError(
                "the journal is of another bundle or engine",
                found=f"{len(reading.entries)} commits in {self._store.folder}",
                expected="commits of this bundle, and of the engine that steps it now",
                remedy="open the folder as it was written, restore() and save(), and change then; "
                "or move the file journal away, and lose the commits",
            )
        no_locks = "the file system has no locks" if self._store.unlocked else None
        self.problem = "; ".join(filter(None, (look.problem, reading.problem, no_locks))) or None
        return look, reading

    def save(self) -> int | None:
        """Write a snapshot of states, counters and governor.

        Whatever ends it, an exception of a signal handler included, the newest good snapshot is
        not touched, and bytes that may have been written are counted.

        Returns:
            Its sequence number, or None where the wear budget did not allow it.
        """
        if self._is_paused:
            raise SnapshotError("a branch is not saved", remedy="save before or after it")
        self._store.check_hold()
        try:
            permitted = self.allowance.permits(self._codec.cost_bytes, "snapshot")
            sequence = self._write() if permitted else None
        except (PersistBudgetError, SnapshotError):
            self._wait()  # a medium that fails is not asked again at once
            raise
        self._wait()
        return sequence

    def _write(self) -> int:
        counters = self._counters
        look, _ = self._look()
        if self._policy.on_damage == "raise":
            look.good()
        counters.past = self._past
        self.allowance.charge(self._codec.cost_bytes, "snapshot")
        header = next_header(
            self._codec,
            look.next_sequence,
            counters.read(),
            self._governor.save() if self._governor is not None else None,
            self.allowance.tokens,
            self._journal.mark,
        )
        self._tried = (header.sequence, counters.snapshots + 1)
        snapshot = Snapshot(header, self._memory.live())
        base, self._journal.base = self._journal.base, ""
        try:
            digest = self._store.write(
                snapshot, look, lambda: counters.add_persisted(self.stored_bytes)
            )
        except SnapshotError:
            newest = self._look()[0].newest
            if newest is not None and base_of(newest.digest) == base:
                self._journal.base = base  # commits go on from the snapshot before
            raise
        counters.snapshots = self._tried[1]
        self._tried = None
        self._journal.begin(base_of(digest))
        self._is_safe()
        return header.sequence

    def _is_safe(self) -> None:
        """Everything until now would come back."""
        self._saved_changes = self._noted = self._changes()
        self._jumps_then = self._jumps()
        self.replay.forget()

    def restore(self) -> Restored | None:
        """Take back the newest good snapshot, if there is one; see `Session.restore`."""
        look, reading = self._look()
        newest = look.newest if self._policy.on_damage == "fresh" else look.good()
        if newest is None:
            return None
        header, states, done = newest.snapshot.header, newest.snapshot.states, 0
        reason = newest.reason
        if reading.entries:
            states, done = self.replay.replayed(states, reading.entries)
            reason += f", and {done} commits of the journal"
        if done < len(reading.entries):
            self.problem = f"the journal cannot be taken again after {done} commits"
            warnings.warn(f"{self._store.folder}: {self.problem}", SnapshotWarning, 4)
        if done:
            commit = reading.entries[done - 1].commit
            header = msgspec.structs.replace(
                header, unix_s=commit.unix_s, ledger=commit.ledger, governor=commit.governor
            )
        self._counters.past = self._past
        if self._governor is not None and header.governor is not None:
            self._governor.move_threshold(header.governor[2])
        self._memory.restore(states)
        if reading.problem or done < len(reading.entries):
            self._journal.base = ""  # what is damaged is left behind by a snapshot
        else:
            self._journal.go_on(base_of(newest.digest), reading)
        self._is_safe()
        fresh = self._codec.staleness(header)
        if fresh:
            self._memory.begin()
        self._wait()
        return Restored(newest.slot, reason, header.sequence, header.ledger.steps, fresh)

    # --- the journal ------------------------------------------------------------------------

    def _new_journal(self) -> Journal:
        if self._policy.journal and self._store.unlocked:
            raise SnapshotError(
                "a journal needs a file system with locks",
                found=self._store.folder,
                remedy="another folder, or snapshots without a journal",
            )
        count = self._counters.add_persisted
        identity, room_bytes = self.replay.identity, self._codec.commit_bytes
        return Journal(self._store.folder, identity, room_bytes, count)

    def _open_journal(self) -> None:
        if not self._policy.journal:
            return
        size = Journal.file_bytes(self._codec.cost_bytes, self.allowance.capacity / 4)
        if size < LEAST_BLOCKS * BLOCK_BYTES:
            raise SpecError(
                "the wear budget is too small for a journal",
                found=f"{self.allowance.capacity:.0f} bytes a day",
                expected=f"at least {4 * LEAST_BLOCKS * BLOCK_BYTES}",
            )
        self._journal_bytes = size
        self._journal.open()

    def _note(self) -> None:
        """Note what the last step changed."""
        changes = self._changes()
        if changes == self._noted:
            self.replay.pass_by()
            return
        self.replay.note(self._jumps() == self._jumps_then)
        self._noted, self._jumps_then = changes, self._jumps()

    def _commit(self) -> None:
        """Append what changed since the last commit; a snapshot where that is not possible."""
        self._store.check_hold()
        journal, replay, counters = self._journal, self.replay, self._counters
        records = replay.records()
        blocks = journal.blocks([payload for _, payload in records])
        if not journal.base or not journal.is_open or journal.is_full(blocks):
            self._snapshot_for_journal()
            return
        nbytes = blocks * BLOCK_BYTES
        self._wait()
        if not self.allowance.charge_commit(nbytes):
            return
        counters.past = self._past
        ledger = counters.read()
        ledger = replace(ledger, persisted_bytes=ledger.persisted_bytes + nbytes)
        governor = self._governor.save() if self._governor is not None else None
        checksum, now = replay.checksum(), int(time.time())
        try:
            journal.commit(records, ledger.steps, checksum, now, ledger, governor)
        except failures(OSError) as problem:
            raise folder_error(self._store.folder, problem) from problem
        self._is_safe()
        if journal.is_full():
            self.save()

    def _snapshot_for_journal(self) -> None:
        """Begin the journal, or begin it again, with a snapshot."""
        if not self._journal.is_open:
            cost = self._journal_bytes
            # Until there is room in the budget, the saves are snapshots.
            if self.allowance.allows(cost + 2 * self._codec.cost_bytes):
                self.allowance.charge(cost, "journal")
                try:
                    self._journal.create(cost)
                except failures(OSError) as problem:
                    self._wait()
                    raise folder_error(self._store.folder, problem) from problem
        self.save()

    def close(self) -> None:
        """Give back what is left of the budgets, and let go of the folder."""
        try:
            self._store.check_hold()
            self.allowance.close()
        except failures(OSError, SnapshotError):
            pass  # they are lost, and the next session starts without
        finally:
            self._journal.close()
            self._store.close()
