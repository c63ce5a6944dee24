"""The record of an installation: which bundle lies in which slot, and how an update stands.

One small file, ``installed``, is replaced as a whole: written beside, synced, renamed, the folder
synced. It holds the record twice, each with its digest, so that rotten bytes in one leave the
other. Who changes it holds the folder's lock for that moment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stategate.contract.bundle import INSTALLED, SLOTS
from stategate.contract.durable import try_lock, write_whole
from stategate.contract.errors import InstallError, SpecError
from stategate.contract.failures import failures
from stategate.contract.numbers import bounded
from stategate.contract.reading import decode_json, printable, read_bounded
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.install.decide import Event, Slots, decide

MEMORY = "memory"
_LOCK = "lock"
_BYTES = 1 << 20
_DIGITS = 64  # of a digest
_WHY = 4096  # characters; what is longer is cut


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an update must keep to, before it acts and while it does.

    Attributes:
        shadow_steps: Steps beside the running bundle, whose answers are compared and not acted on.
        difference: Largest difference of an output in the shadow run and on trial, as a share of
            the largest magnitude that the output reached.
        steps: Length of the trial; a bundle that kept to everything for so long is confirmed.
        faults: Steps that may fail on trial.
        late: Share of steps on trial that may miss the bundle's deadline.
        write_rate: Share of steps on trial that may write; None is twice that of the running
            bundle in the shadow run, and 0.01.
        by_hand: Whether only a person confirms.
    """

    shadow_steps: int = 1000
    difference: float = 0.1
    steps: int = 10_000
    faults: int = 0
    late: float = 0.01
    write_rate: float | None = None
    by_hand: bool = False

    def __post_init__(self) -> None:
        """Check every limit: one that is NaN would hold nothing back."""
        if type(self.by_hand) is not bool:
            raise SpecError("by_hand must be True or False", found=repr(self.by_hand))
        for name in ("shadow_steps", "steps", "faults"):
            if type(getattr(self, name)) is not int:
                raise SpecError(f"{name} must be a whole number", found=repr(getattr(self, name)))
        for name in ("shadow_steps", "steps", "faults", "difference"):
            bounded(name, getattr(self, name), sys.float_info.max)
        for name in ("late", "write_rate"):
            if (share := getattr(self, name)) is not None:
                bounded(name, share, 1)


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record.

    Attributes:
        number: Grows by one with every change.
        slots: What is decided on.
        digests: Of the bundles in both slots; empty where a slot was never filled.
        memories: Number of the folder in ``memory`` that each slot's snapshots go to.
        trial: Limits of the update at hand.
        write_rate: What ``trial.write_rate`` came to.
        retired: Counters of memories that are no longer kept.
        why: What led to the last change.
    """

    number: int = 0
    slots: Slots = Slots()
    digests: tuple[str, str] = ("", "")
    memories: tuple[int, int] = (0, 0)
    trial: Trial = Trial()
    write_rate: float | None = None
    retired: Ledger = Ledger()
    why: str = ""


class InstallFolder:
    """The folder of an installation, for whoever reads or changes its record.

    Attributes:
        path: Where it is.
        quoted: The same, to be pasted into a shell.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.quoted = shlex.quote(str(self.path))

    def slot(self, number: int) -> Path:
        """The folder of a slot's bundle."""
        return self.path / SLOTS[number]

    def memory(self, record: Installed, slot: int) -> Path:
        """The folder of a slot's snapshots."""
        return self.path / MEMORY / str(record.memories[slot])

    def version(self) -> tuple[int, int]:
        """What changes with the record, for one system call; zeros where there is none."""
        try:
            status = os.stat(self.path / INSTALLED)  # noqa: PTH116  (this is asked in a loop)
        except failures(OSError):
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    def read(self) -> Installed:
        """The record; an empty one where nothing is installed.

        Raises:
            InstallError: It cannot be read, or neither copy of it is whole.
        """
        path = self.path / INSTALLED
        try:
            raw = read_bounded(path, _BYTES)
        except FileNotFoundError:
            return Installed()
        except failures(OSError) as problem:
            raise self._unreadable(str(problem)) from problem
        for line in raw.split(b"\n"):
            digest, text = line[:_DIGITS], line[_DIGITS + 1 :]
            if hashlib.sha256(text).hexdigest().encode() == digest:
                try:
                    return decode_json(text, Installed)
                except msgspec.MsgspecError as problem:
                    raise self._unreadable(f"of another version: {problem}") from problem
        raise self._unreadable("bytes that are not what was written")

    def _unreadable(self, reason: str) -> InstallError:
        return InstallError(
            "the record of the installation cannot be read",
            found=f"{self.path / INSTALLED}: {reason}",
            remedy=f"both bundles are still there: install the one that shall run into a new "
            f"folder, such as stategate install {self.quoted}/{SLOTS[0]} --into NEW",
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while the record is read and changed; others wait."""
        with self._open_lock(_LOCK) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except failures(OSError):
                pass  # a file system without locks has one writer, or the user's own order
            yield

    @contextmanager
    def exclusive(self, what: str, remedy: str) -> Iterator[None]:
        """Be the only process that does something with the folder, or be refused."""
        with self._open_lock(f".{what}") as descriptor:
            if try_lock(descriptor) == "in use":
                raise InstallError(
                    f"another process is {what} this installation", found=self.path, remedy=remedy
                )
            yield

    @contextmanager
    def _open_lock(self, name: str) -> Iterator[int]:
        self.check()
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Refuse a folder that is missing or somebody else's: not even a lock is put there."""
        if not self.path.is_dir():
            raise InstallError(
                "nothing is installed here",
                found=f"{self.path}: no such folder",
                remedy=f"stategate install BUNDLE --into {self.quoted}",
            )
        if (self.path / INSTALLED).exists():
            return
        # Hidden ones are this package's: locks, and what a killed process was writing.
        names = sorted(place.name for place in self.path.iterdir())
        if strangers := [name for name in names if not name.startswith(".") and name != _LOCK]:
            raise InstallError(
                "the folder holds something that is no installation",
                found=", ".join(strangers[:5]),
                expected="an installation, or a new or an empty folder",
                remedy="choose another folder; nothing was changed",
            )

    def write(self, record: Installed) -> None:
        """Put a record in the place of the one before; the disk has it then."""
        text = msgspec.json.encode(record)
        decode_json(text, Installed)  # what cannot be read again would leave neither bundle
        line = hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"
        write_whole(self.path / INSTALLED, line + line, self.path / f".{INSTALLED}.new")

    def change(
        self,
        event: Event,
        why: str,
        *,
        release: int = 0,
        older_allowed: bool = False,
        only_at: int | None = None,
        **fields: Any,
    ) -> Installed | None:
        """Decide on an event and write what follows, where something does.

        Args:
            event: What happened.
            why: In words, for whoever asks what became of an update.
            release: See `decide`.
            older_allowed: See `decide`.
            only_at: Number of the record that the event is about; another one is not changed.
            **fields: What else of the record changes.

        Returns:
            The record as it is then; None where the event is not permitted.
        """
        with self.locked():
            before = self.read()
            if only_at is not None and before.number != only_at:
                return None
            slots = decide(before.slots, event, release, older_allowed)
            if slots is None:
                return None
            if slots == before.slots and not fields:
                return before
            after = msgspec.structs.replace(
                before, number=before.number + 1, slots=slots, why=printable(why, _WHY), **fields
            )
            self.write(after)
            return after
