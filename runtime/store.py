"""Two slots in a folder: a new snapshot never touches the newest good one.

Each write goes to a file beside, is synced, renamed over the older slot, and the folder is synced.
One process holds the folder at a time.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stategate.contract.errors import (
    SnapshotDamagedError,
    SnapshotError,
    SnapshotLockedError,
    SnapshotMismatchError,
)
from stategate.contract.reading import read_bounded
from stategate.runtime.snapshot import Codec, Snapshot

SLOTS = ("slot-a.snap", "slot-b.snap")
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Found:
    """The snapshot that a folder gives back, and why that one.

    Attributes:
        snapshot: Its content.
        slot: File that it was in.
        reason: Why it was taken, in words.
    """

    snapshot: Snapshot
    slot: str
    reason: str


class SnapshotStore:
    """A snapshot folder, held by this process until it is closed."""

    def __init__(self, folder: str | Path, codec: Codec) -> None:
        """Take hold of a folder; it is made if it is not there.

        Raises:
            SnapshotLockedError: Another process, or another session, holds it.
            SnapshotError: It cannot be made or opened.
        """
        self.folder = Path(folder).resolve()  # a daemon changes its working directory
        self._owner = os.getpid()
        self._codec = codec
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            raise _failed(self.folder, problem) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._lock)
            self._lock = -1
            raise SnapshotLockedError(
                "the snapshot folder is in use",
                found=self.folder,
                expected="one session at a time",
                remedy="close the other session, or give this one a folder of its own",
            ) from problem

    def newest(self) -> Found | None:
        """The newest good snapshot; see `newest_in`."""
        return newest_in(self.folder, self._codec)

    @staticmethod
    def slot_after(found: Found | None) -> str:
        """The slot to write next: never the one that holds the newest good snapshot."""
        return SLOTS[0] if found is None else SLOTS[1 - SLOTS.index(found.slot)]

    def write(self, snapshot: Snapshot, over: str) -> None:
        """Write a snapshot over one slot; the other is not touched.

        Raises:
            SnapshotError: The folder is gone, replaced, read-only or full; the other slot is as
                it was. If only the last sync of the folder failed, the new snapshot is in place
                but may not outlive a loss of power.
        """
        self._check_hold()
        target = self.folder / over
        staged = self.folder / f".{over}.new"
        try:
            # A link that somebody planted there would lead the bytes out of the folder.
            staged.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(staged, flags, 0o644)
            try:
                with os.fdopen(descriptor, "wb", buffering=0, closefd=False) as file:
                    rest = self._codec.encode(snapshot)
                    while rest:
                        rest = rest[file.write(rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            staged.replace(target)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as problem:
            with suppress(OSError):
                staged.unlink()
            raise _failed(self.folder, problem) from problem

    def _check_hold(self) -> None:
        """The lock must still be this process's, and the folder's."""
        held = False
        with suppress(OSError):
            there, ours = (self.folder / _LOCK).stat(), os.fstat(self._lock)
            held = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        if not held or os.getpid() != self._owner:
            raise SnapshotError(
                "the snapshot folder is no longer held by this session",
                found=f"{self.folder}: No such file, another folder in its place, or a fork",
                expected="the folder that was opened, in the process that opened it",
                remedy="open the session again, in this process",
            )

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            self.close()

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def newest_in(folder: Path, codec: Codec) -> Found | None:
    """The newest good snapshot in a folder, or None where none was ever written.

    Takes no lock: a snapshot that is replaced meanwhile is read whole, as it was or as it is.

    Raises:
        SnapshotDamagedError: There are slots, and all of them are damaged.
        SnapshotVersionError, SnapshotMismatchError: A slot is of a newer format or of another
            memory, whatever the other one is: going on would overwrite it. Or the newer ledger is
            behind the older one.
        SnapshotError: A slot cannot be read.
    """
    good: list[tuple[str, Snapshot]] = []
    bad: list[tuple[str, SnapshotError]] = []
    for name in SLOTS:
        try:
            raw = read_bounded(folder / name, codec.most_bytes)
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise _failed(folder / name, problem) from problem
        try:
            good.append((name, codec.decode(raw, name)))
        except SnapshotDamagedError as problem:
            bad.append((name, problem))
    if not good:
        if not bad:
            return None
        raise bad[0][1]
    good.sort(key=lambda item: item[1].header.sequence)
    name, newest = good[-1]
    if len(good) == 2:
        behind = newest.header.ledger.goes_back_from(good[0][1].header.ledger)
        if behind:
            raise SnapshotMismatchError(
                "the newer snapshot's ledger goes backwards",
                found=", ".join(behind),
                expected=f"{name} at or ahead of {good[0][0]} in every counter",
                remedy="one of the files is not of this device: remove it and restore again",
            )
        return Found(newest, name, "the newer of two good slots")
    if bad:
        other, why = bad[0]
        first_line = str(why).splitlines()[0]
        return Found(newest, name, f"{other} cannot be used: {first_line}")
    return Found(newest, name, "the only slot")


def _failed(path: Path, problem: OSError) -> SnapshotError:
    return SnapshotError(
        "the snapshot folder cannot be used",
        found=f"{path}: {problem.strerror or problem}",
        expected="a folder that can be written, with room for two snapshots",
        remedy="make room or correct the path; the last good slot is as it was",
    )
