"""What is left of the budgets that live with a snapshot folder, durably, before it is used.

A budget that is kept in a process, or in the snapshots, comes back with every restart and every
older snapshot. So it stands in a file of its own, ``account``: two records, each in a block of its
own, written in turn and in place. A charge costs one block and no metadata, and a torn write leaves
the other record.

Two things are written before they happen: what a snapshot costs, and that a session may use up
its writes. A session that ends without `close` (a power cut, SIGKILL) has therefore used up all of
them; the next one starts with an empty bucket, which fills at the budget's rate.

Time fills the wear budget only as far as a clock has measured it that nobody can set: the
session's own, and the kernel's since the machine started. How long it was off is not believed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from stategate.contract.durable import OF_THE_PROCESS, sync_folder
from stategate.contract.errors import SnapshotError
from stategate.contract.failures import failures
from stategate.contract.reading import decode_json, read_bounded
from stategate.runtime.base.clock import since_boot

RECORD_BYTES = 4096  # a block
_DIGEST_BYTES = 32
_NAME = "account"
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Balance = Annotated[float, msgspec.Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One state of the account."""

    number: _Count = 0  # grows by one with every record
    boot: str = ""  # start of the machine in which it was written; see `since_boot`
    boot_ns: _Count = 0  # when, since that start
    # bytes left in the wear budget's bucket; None where there never was one
    persist_bytes: _Balance | None = None
    # writes left of the limit against steps; None likewise. 0 while a session may be using them
    writes_by_steps: _Balance | None = None
    writes_by_time: _Balance | None = None  # the same of the limit against time
    appended_bytes: _Balance | None = None  # bytes left to append to rings, likewise
    folded_bytes: _Balance | None = None  # bytes left to fold, likewise

    def running_ns(self) -> int:
        """Time that certainly passed since then: while the machine was on."""
        boot, now_ns = since_boot()
        if not boot or not self.boot:
            return 0
        return max(0, now_ns - self.boot_ns) if boot == self.boot else now_ns


USED = ("writes_by_steps", "writes_by_time", "appended_bytes", "folded_bytes")
"""What a session takes as a whole, in the order of `Governor.balance`."""
NOTHING_LEFT = msgspec.convert(dict.fromkeys(("persist_bytes", *USED), 0.0), Record)


class Account:
    """The account of one folder, as its holder last read or wrote it.

    Attributes:
        record: The newest record; None where there never was one. Where one cannot be read, nothing
            is left in it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the account, and make room for one where there is none.

        An OSError passes where this process cannot read files now, whatever is in them.
        """
        self._path = folder / _NAME
        try:
            self._make_file()
        except failures(OSError):
            pass  # on a full disk the robot starts all the same
        self._last, _, certain = self._read()
        self._is_unread = not certain
        self.record = self._last
        if not certain:
            # A newer record may lie in a block that cannot be read, and have spent everything.
            number = self._last.number if self._last is not None else 0
            self.record = msgspec.structs.replace(NOTHING_LEFT, number=number)

    def _make_file(self) -> None:
        # Empty: a name that is on the disk before it is needed costs no record its metadata.
        if not os.path.lexists(self._path):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            sync_folder(self._path.parent)

    def write(self, changes: Mapping[str, float], begin: Callable[[], None]) -> None:
        """Replace fields of the record, durably; after an OSError the last record stands."""
        self._make_file()
        on_disk, block_number, _ = self._read()
        number = self.record.number if self.record is not None else 0
        if on_disk is not None and self._is_unread:
            # It can be read now. Its number is passed over; its balance is not believed.
            number = max(number, on_disk.number)
        elif on_disk is not None and on_disk.number >= number and on_disk != self._last:
            raise SnapshotError(
                "another session uses up the budgets of this snapshot folder",
                found=f"a record in {self._path} that this session did not write",
                remedy="close the other session, then open this one again; nothing was written",
            )
        boot, boot_ns = since_boot()
        record = msgspec.structs.replace(
            self.record or Record(), number=number + 1, boot=boot, boot_ns=boot_ns, **changes
        )
        block = msgspec.json.encode(record).ljust(RECORD_BYTES - _DIGEST_BYTES)
        # Remembered first, because an exception of a signal handler may come after the write.
        self.record, self._last, self._is_unread = record, record, False
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            begin()
            data = block + hashlib.sha256(block).digest()
            os.pwrite(descriptor, data, block_number * RECORD_BYTES)
            getattr(os, "fdatasync", os.fsync)(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> tuple[Record | None, int, bool]:
        """The newest record, the block for the next one, and whether none can have been newer."""
        try:
            raw = read_bounded(self._path, 2 * RECORD_BYTES)
        except FileNotFoundError:
            return None, 0, True
        except failures(OSError) as problem:
            if problem.errno in OF_THE_PROCESS:
                raise
            return None, 0, False
        blocks = (raw[:RECORD_BYTES], raw[RECORD_BYTES:])
        records = [_decode(block) for block in blocks]
        first, second = (record.number if record is not None else -1 for record in records)
        older = int(first > second)
        newest = records[1 - older]
        if newest is None:
            return None, older, not raw  # an empty file never held a record
        # The other block is a record that is older, or zeros, which never were one.
        return newest, older, records[older] is not None or not any(blocks[older])


def charge(folder: Path, cost_bytes: int, begin: Callable[[], None]) -> None:
    """Take what a snapshot costs from the wear budget of a folder, if one is kept there.

    For a writer that has no budget itself: the next session that has one finds less left. After
    an OSError nothing was charged, and nothing else should be written.
    """
    if not os.path.lexists(folder / _NAME):
        return
    account = Account(folder)
    balance = account.record.persist_bytes if account.record is not None else None
    if balance is not None:
        account.write({"persist_bytes": max(0.0, balance - cost_bytes)}, begin)


def _decode(block: bytes) -> Record | None:
    text, digest = block[:-_DIGEST_BYTES], block[-_DIGEST_BYTES:]
    if hashlib.sha256(text).digest() != digest:
        return None
    try:
        return decode_json(text, Record)
    except msgspec.MsgspecError:
        return None
