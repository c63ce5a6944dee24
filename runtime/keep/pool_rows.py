"""Snapshots of the rows of a pool: each row counts on in the folder that it is saved to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from stategate.contract.errors import SnapshotError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.keep.account import RECORD_BYTES, charge
from stategate.runtime.keep.journal import read_journal
from stategate.runtime.keep.policy import Restored
from stategate.runtime.keep.snapshot import Codec, Snapshot, next_header
from stategate.runtime.keep.store import Look, OnDamage, SnapshotStore, folder_error
from stategate.runtime.memory.pool_rows import RowMemory


class RowStore:
    """Writes and reads snapshots of single rows; a folder is held only meanwhile."""

    def __init__(self, codec: Codec, memory: RowMemory) -> None:
        self._codec, self._memory, self._counters = codec, memory, memory.counters
        # For each row and folder: the ledger that lay there when the row last saw it, and one that
        # may lie there since, if an exception came while it was written.
        self._last_ledgers: dict[tuple[int, Path], tuple[Ledger, Ledger | None]] = {}

    def forget(self, row: int) -> None:
        """Another session has joined the row."""
        self._last_ledgers = {
            key: ledger_then for key, ledger_then in self._last_ledgers.items() if key[0] != row
        }

    def save(
        self, row: int, states: Mapping[str, Array], folder: str | Path, on_damage: OnDamage
    ) -> int:
        """Write a snapshot; see `Pool.save`."""
        codec, counters = self._codec, self._counters
        with closing(SnapshotStore(folder, codec)) as store:
            look = _look(store)
            if on_damage == "raise":
                look.good()
            ledger_then = (
                look.newest.snapshot.header.ledger if look.newest is not None else Ledger()
            )
            counters.go_on_from(row, self._others(row, store.folder, look))
            # Counted, and not once more by the next save where this one fails.
            self._last_ledgers[row, store.folder] = (ledger_then, None)
            self._check_forward(row, look)
            count_record = partial(counters.add_in, row, "persisted_bytes", RECORD_BYTES)
            try:
                charge(store.folder, codec.cost_bytes, count_record)
            except failures(OSError) as problem:
                raise folder_error(store.folder, problem) from problem
            header = next_header(codec, look.next_sequence, counters.read(row))
            self._last_ledgers[row, store.folder] = (ledger_then, header.ledger)
            count = partial(counters.add_in, row, "persisted_bytes", codec.stored_bytes)
            store.write(Snapshot(header, dict(states)), look, count)
            counters.add_in(row, "snapshots")
            self._last_ledgers[row, store.folder] = (header.ledger, None)
        return header.sequence

    def restore(self, row: int, folder: str | Path, on_damage: OnDamage) -> Restored | None:
        """Take back a snapshot; see `Pool.restore`."""
        with closing(SnapshotStore(folder, self._codec)) as store:
            look = _look(store)
        newest = look.newest if on_damage == "fresh" else look.good()
        if newest is None:
            return None
        past, header = self._others(row, store.folder, look), newest.snapshot.header
        self._memory.begin(row, newest.snapshot.states, "restores", past)
        self._last_ledgers[row, store.folder] = (header.ledger, None)
        fresh = self._codec.staleness(header)
        if fresh:
            self._memory.begin(row)
        return Restored(newest.slot, newest.reason, header.sequence, header.ledger.steps, fresh)

    def _others(self, row: int, folder: Path, look: Look) -> Ledger:
        """What is counted in a folder that the row has not counted."""
        if look.newest is None:
            return Ledger()
        ledger = look.newest.snapshot.header.ledger
        ledger_then, tried = self._last_ledgers.get((row, folder), (Ledger(), None))
        if ledger == tried:
            return Ledger(snapshots=1)  # of the row itself, and it was interrupted
        # Behind what the row has seen is only an older snapshot that somebody put there.
        return Ledger() if ledger.goes_back_from(ledger_then) else ledger.since(ledger_then)

    def _check_forward(self, row: int, look: Look) -> None:
        if look.newest is None:
            return
        ledger = look.newest.snapshot.header.ledger
        behind = self._counters.read(row).goes_back_from(ledger)
        if behind:
            raise SnapshotError(
                "the folder's ledger is ahead of the row's, and not by what others counted",
                found=", ".join(behind),
                remedy="leave(row), join(), and restore the folder into the new row",
            )


def _look(store: SnapshotStore) -> Look:
    look = store.look()
    entries = read_journal(store.folder, look.newest).entries
    if entries:
        raise SnapshotError(
            "a row of a pool takes no journal back",
            found=f"{len(entries)} commits in {store.folder}",
            remedy="restore() and save() in a session of its own first",
        )
    return look
