"""Two slots in a folder: a new snapshot never touches the newest good one.

Each write goes to a file beside, is synced, renamed over the older slot, and the folder is synced.
One process holds the folder at a time. The folder is looked at again before every write, so that
no error, signal or other writer in between can lead to the wrong slot.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stategate.contract.durable import OF_THE_PROCESS, try_lock, whole_file
from stategate.contract.errors import SnapshotDamagedError, SnapshotError
from stategate.contract.failures import failures
from stategate.contract.reading import open_regular
from stategate.runtime.keep.medium import let_go_in_child
from stategate.runtime.keep.snapshot import Codec, Snapshot

OnDamage = Literal["raise", "fresh"]

SLOTS = ("slot-a.snap", "slot-b.snap")
DAMAGED_KEPT = 4  # damaged files of a folder
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class GoodSnapshot:
    """The snapshot that a folder gives back, and why that one."""

    snapshot: Snapshot  # its content
    slot: str  # file that it was in
    reason: str  # why it was taken, in words
    digest: bytes  # its checksum


@dataclass(frozen=True, slots=True)
class Look:
    """What lies in a folder."""

    newest: GoodSnapshot | None  # the newest good snapshot; None where there is none
    damaged: dict[str, str]  # slots that hold something that cannot be used, and what was found

    @property
    def lost(self) -> bool:
        """Whether there were snapshots, and none is good."""
        return self.newest is None and bool(self.damaged)

    @property
    def next_slot(self) -> str:
        """The slot to write next: never the one that holds the newest good snapshot."""
        return SLOTS[0] if self.newest is None else SLOTS[1 - SLOTS.index(self.newest.slot)]

    @property
    def next_sequence(self) -> int:
        """The number after that of the newest good snapshot."""
        return self.newest.snapshot.header.sequence + 1 if self.newest is not None else 1

    @property
    def problem(self) -> str | None:
        """What cannot be used, in words; None where everything can."""
        return "; ".join(self.damaged.values()) or None

    def good(self) -> GoodSnapshot | None:
        """The newest good snapshot, or None where none was ever written."""
        if self.lost:
            raise SnapshotDamagedError(
                "no snapshot in the folder can be used",
                found=self.problem,
                remedy="to step on from the initial states, move the damaged files out of the "
                "folder, or open with SnapshotPolicy(folder, on_damage='fresh'), which keeps them",
            )
        return self.newest


class SnapshotStore:
    """A snapshot folder, held by this process until it is closed.

    Attributes:
        folder: Where it is.
        unlocked: Whether the file system has no locks, so that another session could be there.
    """

    def __init__(self, folder: str | Path, codec: Codec) -> None:
        """Take hold of a folder; it is made if it is not there."""
        self.folder = Path(folder).resolve()  # a daemon changes its working directory
        self._owner = os.getpid()
        self._codec = codec
        # The newest snapshot that this session knows: anything newer is somebody else's.
        self._sequence = 0
        self._digests: set[bytes] = set()
        self._looked = False
        try:
            self._lock_path, self._lock = self._open_to_lock()
        except failures(OSError) as problem:
            raise folder_error(self.folder, problem) from problem
        let_go_in_child(self)
        try:
            lock = try_lock(self._lock)
        except failures(OSError) as problem:
            self.close()
            raise folder_error(self.folder, problem) from problem
        if lock == "in use":
            self.close()
            raise SnapshotError(
                "the snapshot folder is in use",
                found=self.folder,
                expected="one session at a time",
                remedy="close the other session, or give this one a folder of its own",
            )
        self.unlocked = lock == "no locks"

    def _open_to_lock(self) -> tuple[Path, int]:
        """What is locked for the folder, and its descriptor."""
        lock = self.folder / _LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock, os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except failures(OSError) as problem:
            if problem.errno != errno.EROFS or not self.folder.is_dir():
                raise
        # A card that the kernel has mounted read-only still gives its snapshots back. Nobody can
        # save there, so it does not matter that others lock another file.
        return self.folder, os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> Look:
        """What lies in the folder now; see `look_into`."""
        self.check_hold()
        look = look_into(self.folder, self._codec)
        newest = look.newest
        if newest is not None:
            sequence = newest.snapshot.header.sequence
            is_own = sequence < self._sequence or newest.digest in self._digests
            if self._looked and not is_own:
                raise SnapshotError(
                    "another session writes to this snapshot folder",
                    found=f"snapshot {sequence} in {self.folder / newest.slot}, "
                    f"which this session did not write",
                    expected=f"snapshot {self._sequence} as the newest",
                    remedy="close the other session, then open this one again; nothing was written",
                )
            self._sequence = max(sequence, self._sequence)
            self._digests.add(newest.digest)
        self._looked = True
        return look

    def write(self, snapshot: Snapshot, look: Look, begin: Callable[[], None]) -> bytes:
        """Write a snapshot to the slot after the newest good one, which is not touched.

        A damaged file in that slot is put aside, as long as fewer than ``DAMAGED_KEPT`` are; where
        no slot is good, those in both are. If only the last sync of the folder fails, the new
        snapshot is in place but may not outlive a loss of power.

        Returns:
            Its checksum.
        """
        self.check_hold()
        slot = look.next_slot
        raw = self._codec.encode(snapshot)
        digest = bytes(raw[-32:])
        # Noted first: an exception of a signal handler may come right after the rename.
        self._digests = {digest, *([look.newest.digest] if look.newest else [])}
        self._sequence = max(self._sequence, snapshot.header.sequence)
        try:
            if slot in look.damaged:
                self._rename_damaged(slot)
            with whole_file(self.folder / slot, self.folder / f".{slot}.new") as file:
                begin()
                file.write(raw)
            if look.newest is None:
                # A new history begins: a slot of the old one must not come back into it, which it
                # would where a card reads again what it refused for a while.
                for old in look.damaged.keys() - {slot}:
                    self._rename_damaged(old)
        except failures(OSError) as problem:
            raise folder_error(self.folder, problem) from problem
        return digest

    def _rename_damaged(self, slot: str) -> None:
        for number in range(1, DAMAGED_KEPT + 1):
            place = self.folder / f"damaged-{number}-{slot}"
            if not os.path.lexists(place):
                (self.folder / slot).rename(place)
                return
        (self.folder / slot).unlink()

    def check_hold(self) -> None:
        """Raise unless the folder is still there, and still this process's."""
        remedy = "open the session again"
        if os.getpid() != self._owner:
            place = f"process {os.getpid()}, forked from {self._owner}"
            remedy += " in this process, with a folder of its own"
        elif self._lock < 0:
            place = f"{self.folder}, closed before"
        else:
            try:
                on_disk, locked = self._lock_path.stat(), os.fstat(self._lock)
            except failures(OSError) as problem:
                place = f"{self.folder}: {problem.strerror}"
                remedy = "put the folder back, or " + remedy
            else:
                if (on_disk.st_dev, on_disk.st_ino) == (locked.st_dev, locked.st_ino):
                    return
                place = f"{self.folder}: another folder in its place"
        raise SnapshotError(
            "the snapshot folder is no longer held by this session",
            found=place,
            expected="the folder that was opened, in the process that opened it",
            remedy=remedy,
        )

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            self.close()

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        if self._lock >= 0:
            if os.getpid() == self._owner:
                # Closing alone would leave it locked by copies in forked children. A child must
                # not unlock it: the lock is the parent's.
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                except failures(OSError):
                    pass  # it is closed all the same
            # After it is unlocked: an interruption before leaves it to the next call.
            lock, self._lock = self._lock, -1
            os.close(lock)


def look_into(folder: Path, codec: Codec) -> Look:
    """What lies in a folder.

    Takes no lock: a snapshot that is replaced meanwhile is read whole, as it was or as it is. A
    slot of a newer format or of another memory is an error and not damage, because going on would
    overwrite it; so is a newer ledger that is behind the older one.
    """
    good: list[GoodSnapshot] = []
    damaged: dict[str, str] = {}
    for name in SLOTS:
        try:
            raw = _read(folder / name, codec)
            good.append(GoodSnapshot(codec.decode(raw, name), name, "the only slot", raw[-32:]))
        except FileNotFoundError:
            continue
        except SnapshotDamagedError as problem:
            lines = [line.strip() for line in str(problem).splitlines()]
            damaged[name] = ": ".join(lines).replace("found: ", "")
        except failures(OSError) as problem:
            if problem.errno in OF_THE_PROCESS:
                raise folder_error(folder / name, problem) from problem
            damaged[name] = f"{name} cannot be read: {problem.strerror or problem}"
    if not good:
        return Look(None, damaged)
    good.sort(key=lambda each: each.snapshot.header.sequence)
    newest = good[-1]
    reason = newest.reason
    if len(good) == 2:
        _check_forward(good[0], newest)
        reason = "the newer of two good slots"
    for why in damaged.values():
        reason = f"the only good slot; {why}"
    return Look(GoodSnapshot(newest.snapshot, newest.slot, reason, newest.digest), damaged)


def newest_in(folder: Path, codec: Codec) -> GoodSnapshot | None:
    """The newest good snapshot in a folder, or None where none was ever written."""
    return look_into(folder, codec).good()


def _read(path: Path, codec: Codec) -> bytes:
    """A slot, or of a longer file as much as tells whose snapshot it is."""
    if path.is_symlink():  # both slots could be one file
        raise SnapshotDamagedError(f"{path.name} is a link")
    with open_regular(path, sys.maxsize) as file:
        return file.read(codec.most_bytes)


def _check_forward(older: GoodSnapshot, newer: GoodSnapshot) -> None:
    behind = newer.snapshot.header.ledger.goes_back_from(older.snapshot.header.ledger)
    if behind:
        raise SnapshotError(
            "the newer snapshot's ledger goes backwards",
            found=", ".join(behind),
            expected=f"{newer.slot} at or ahead of {older.slot} in every counter",
            remedy="one of the files is not of this device: remove it and restore again",
        )


def folder_error(path: Path, problem: OSError) -> SnapshotError:
    """What the system said about a folder, as a sentence with a remedy."""
    return SnapshotError(
        "the snapshot folder cannot be used",
        found=f"{path}: {problem.strerror or problem}",
        expected="a folder that can be written, with room for two snapshots",
        remedy="make room or correct the path; the last good slot is as it was",
    )
