"""The journal: what changed the memory since the newest snapshot, a block of 4 KiB for a commit.

It is a ring of `records`, next to the slots. A commit is one or more records of what happened and
one that ends it: which snapshot it goes on from, its place after that, how many records are its,
the ledger, and a checksum of the states that must come out. Blocks are not touched again until the
ring comes around, which is long after the next snapshot, so a torn one takes nothing with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stategate.contract.durable import OF_THE_PROCESS
from stategate.contract.errors import SnapshotDamagedError, SnapshotError
from stategate.contract.failures import failures
from stategate.contract.reading import decode_json
from stategate.runtime.base.ledger import Ledger, refuse_unknown_counters
from stategate.runtime.keep.medium import FileMedium
from stategate.runtime.keep.records import (
    BLOCK_BYTES,
    ROOM,
    Record,
    RecordFile,
    RecordReader,
    stored_bytes,
)
from stategate.runtime.keep.snapshot import LeftBy
from stategate.runtime.keep.store import GoodSnapshot, folder_error

NAME = "journal"
PURPOSE = 2  # of the record file
COMMIT = 4  # kind of the record that ends a commit; others are in `replay`
# Half a ring is used between two snapshots. At 32 times a snapshot's cost a snapshot adds a
# thirty-second to what the commits cost; more than this would be a large file for nothing.
_SHARE, _MOST_BLOCKS, LEAST_BLOCKS = 32, 4096, 16


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ends a commit.

    Attributes:
        base: Of which snapshot it goes on: the beginning of its checksum.
        index: Place among the commits after that snapshot, from 0.
        records: How many records before this one are its.
        states_crc: CRC-32 of the states after it.
        unix_s: Wall time.
        ledger: Counters, its own blocks included.
        governor: As in a snapshot's header.
    """

    base: str
    index: int
    records: int
    states_crc: int
    unix_s: int
    ledger: Ledger
    governor: LeftBy | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole commit as it was read."""

    commit: Commit
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a journal has to say after one snapshot.

    Attributes:
        entries: Commits without a gap.
        identity: Of which bundle and engine it is.
        first_block: Where the first of them begins.
        problem: What is damaged, in words; empty for nothing.
    """

    entries: tuple[Entry, ...] = ()
    identity: str = ""
    first_block: int = 0
    problem: str = ""

    def newest_ledger(self, of_snapshot: Ledger) -> Ledger:
        """That of the last commit, or the snapshot's where there is none."""
        return self.entries[-1].commit.ledger if self.entries else of_snapshot


def base_of(digest: bytes) -> str:
    """How commits call a snapshot, by its checksum."""
    return digest[:8].hex()


def read_journal(folder: Path, newest: GoodSnapshot | None) -> Reading:
    """The commits after a snapshot; none where there is no journal, or no snapshot.

    Raises:
        SnapshotError: The journal is of a newer format, or this process cannot read files now.
    """
    mark = newest.snapshot.header.journal if newest is not None else 0
    try:
        medium = FileMedium(folder / NAME, writes=False)
        try:
            reader = RecordReader(medium)
            if reader.header.purpose != PURPOSE:
                raise SnapshotDamagedError("it is a record file of another kind")
            everything = _entries(reader)
            entries, has_gap = _after(everything, newest) if newest is not None else ([], False)
        finally:
            medium.close()
    except FileNotFoundError:
        absent = "the journal is gone that the newest snapshot names; its commits are lost"
        return Reading(problem=absent if mark else "")
    except SnapshotDamagedError as problem:
        return Reading(problem="the journal is damaged: " + str(problem).splitlines()[0])
    except failures(OSError) as problem:
        if problem.errno in OF_THE_PROCESS:
            raise folder_error(folder / NAME, problem) from problem
        return Reading(problem=f"the journal cannot be read: {problem.strerror or problem}")
    broken = ""
    last = reader.runs[-1].last if reader.runs else -1
    if has_gap:
        broken = f"the journal has a gap after {len(entries)} commits"
    elif everything and mark not in (0, reader.header.life):
        # A new file without a commit is one whose first snapshot was cut off.
        broken = "the journal is another one than the newest snapshot names: of another folder?"
    elif everything and _is_orphan(everything[-1].commit, newest):
        broken = "the newest commits of the journal go on from a snapshot that is not here"
    elif (last + 1) % reader.header.blocks in reader.damaged:
        broken = (
            f"the block after {len(entries)} commits of the journal is damaged: of a commit that "
            "was cut off, or of one that the medium did not keep"
        )
    first = entries[0].records[0].block if entries else 0
    return Reading(tuple(entries), reader.header.bundle_sha256, first, broken)


def _entries(reader: RecordReader) -> list[Entry]:
    entries = []
    for run in reader.runs:
        before: list[Record] = []
        for record in reader.records(run):
            if record.kind != COMMIT:
                before.append(record)
                continue
            try:
                commit = decode_json(record.payload, Commit)
                refuse_unknown_counters(record.payload)
            except msgspec.MsgspecError as problem:  # its checksum is right
                raise SnapshotError(
                    "the journal is of another format",
                    found=str(problem),
                    remedy="upgrade stategate on this device",
                ) from problem
            # Records of a commit that was cut may come before; some of its own may be missing.
            if 0 < commit.records <= len(before):
                entries.append(Entry(commit, tuple(before[-commit.records :])))
            before = []
    return entries


def _after(entries: list[Entry], newest: GoodSnapshot) -> tuple[list[Entry], bool]:
    """The commits after a snapshot in their order, and whether some are missing before others."""
    history: list[Entry] = []
    has_gap = False
    base, ledger = base_of(newest.digest), newest.snapshot.header.ledger
    for entry in entries:
        index = entry.commit.index
        if entry.commit.base != base:
            continue
        has_gap = index > len(history) or bool(entry.commit.ledger.goes_back_from(ledger))
        if not has_gap:  # a place that is used again: the session went on from before it
            history = [*history[:index], entry]
    return history, has_gap


def _is_orphan(last: Commit, newest: GoodSnapshot | None) -> bool:
    """Whether a commit goes on from another snapshot, and that was no earlier one."""
    if newest is None:
        return True
    is_later = last.ledger.steps > newest.snapshot.header.ledger.steps
    return last.base != base_of(newest.digest) and is_later


def blocks_of(payload_bytes: Iterable[int]) -> int:
    """Blocks that records take which begin in a new one."""
    return -(-sum(map(stored_bytes, payload_bytes)) // ROOM)


class Journal:
    """Appends commits to the ring of one folder.

    Attributes:
        base: Of which snapshot commits go on; empty until a snapshot was written or taken back.
    """

    def __init__(
        self, folder: Path, identity: str, room_bytes: int, count: Callable[[int], None]
    ) -> None:
        """Nothing is opened yet.

        Args:
            folder: Held by this process.
            identity: Of bundle and engine, 64 hexadecimal digits.
            room_bytes: Size of the record that ends a commit.
            count: Called with bytes before they are written.
        """
        self._folder, self._identity, self._count = folder, identity, count
        self._room_bytes = room_bytes
        self._file: RecordFile | None = None
        self._first_block = self._index = 0
        self.base = ""

    @staticmethod
    def file_bytes(snapshot_cost_bytes: int, most_bytes: float) -> int:
        """Size of the file: by what a snapshot costs, and at most what the wear budget allows."""
        blocks = 2 * min(_SHARE * snapshot_cost_bytes // BLOCK_BYTES, _MOST_BLOCKS // 2)
        if most_bytes < math.inf:
            blocks = min(blocks, int(most_bytes) // BLOCK_BYTES - 1)
        return (1 + blocks) * BLOCK_BYTES

    @property
    def is_open(self) -> bool:
        """Whether there is a file to append to."""
        return self._file is not None

    @property
    def mark(self) -> int:
        """The number by which a snapshot knows this file again; 0 where there is none."""
        return self._file.header.life if self._file is not None else 0

    def open(self) -> bool:
        """Open the file that is there, if it is of this bundle and engine."""
        path = self._folder / NAME
        try:
            file = RecordFile.resume(FileMedium(path), self._count)
        except (FileNotFoundError, SnapshotDamagedError):
            return False
        except failures(OSError) as problem:
            if problem.errno in OF_THE_PROCESS:
                raise folder_error(path, problem) from problem
            return False  # a disk that is mounted read-only, or a file that it cannot read
        header = file.header
        if header.bundle_sha256 != self._identity or header.purpose != PURPOSE:
            file.medium.close()
            return False
        self._file = file
        return True

    def create(self, file_bytes: int) -> None:
        """Make the file, every block of it written once.

        A file system notes the first write to a block that was only reserved, which would cost a
        commit three quarters of a block more.
        """
        file = RecordFile.create(
            self._folder / NAME,
            blocks=file_bytes // BLOCK_BYTES - 1,
            bundle_sha256=self._identity,
            purpose=PURPOSE,
            count=self._count,
        )
        try:
            self._count(file_bytes - BLOCK_BYTES)
            for at in range(BLOCK_BYTES, file_bytes, BLOCK_BYTES):
                file.medium.write(at, bytes(BLOCK_BYTES))
            file.medium.sync()
        except BaseException:
            file.medium.close()
            raise
        self._file = file

    def begin(self, base: str) -> None:
        """Commits go on from a snapshot that was just written."""
        self._index = 0
        if self._file is not None:
            self._first_block = self._file.next_block
        self.base = base

    def go_on(self, base: str, reading: Reading) -> None:
        """Commits go on after those that were taken back."""
        self._index = len(reading.entries)
        if self._file is not None:
            next_block = self._file.next_block
            self._first_block = reading.first_block if reading.entries else next_block
        self.base = base

    def blocks(self, payloads: list[bytes]) -> int:
        """Blocks that a commit of records takes."""
        return blocks_of([*map(len, payloads), self._room_bytes])

    def is_full(self, blocks: int = 0) -> bool:
        """Whether a snapshot is due; with ``blocks``, whether these would overwrite a commit."""
        assert self._file is not None
        used = self._file.next_block - self._first_block
        # One more: what a signal's handler interrupted may still fill a block.
        most = self._file.header.blocks
        return used + blocks + 1 > most if blocks else used >= most // 2

    def commit(
        self,
        records: list[tuple[int, bytes]],
        step: int,
        states_crc: int,
        unix_s: int,
        ledger: Ledger,
        governor: tuple[float, ...] | None,
    ) -> None:
        """Append records and what ends them, and return when the medium has them.

        Raises:
            OSError: The medium failed; the same records may be committed again.
            SnapshotError: The ledger outgrew its room.
        """
        file = self._file
        assert file is not None
        numbers = (self._index, len(records), states_crc, unix_s)
        end = msgspec.json.encode(Commit(self.base, *numbers, ledger, governor))
        if len(end) > self._room_bytes:
            raise SnapshotError(
                "the ledger outgrew its room in the journal",
                found=f"{len(end)} bytes",
                expected=f"at most {self._room_bytes}",
            )
        for kind, payload in records:
            file.append(kind, step, payload)
        file.append(COMMIT, step, end.ljust(self._room_bytes))
        file.flush(sync=True)
        self._index += 1

    def close(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            file.medium.close()
