"""Disks that fail, disks that are full, and files that are damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from lab.attack.places import observation
from lab.power_loss import POLICIES, RING_BYTES, Device
from stategate.contract import Bundle
from stategate.contract.errors import SnapshotError, StateFault, StategateError
from stategate.contract.staging import scratch_folder
from stategate.runtime.keep.journal import Journal

CALLS = ("open", "pwrite", "fsync", "fdatasync", "replace", "rename", "ftruncate")
ERRORS = (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EFBIG)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEPS_OF_A_FOLDER = 200  # then another one is begun


class Disk:
    """The functions of `os` that change a folder, any of which may fail.

    Attributes:
        next_failure: Calls until one fails; below zero where none shall.
        error: Number of what it fails with.
        stretch: How many fail from then on.
        failures: How many have failed.
    """

    def __init__(self) -> None:
        """Nothing fails yet."""
        self.next_failure, self.error, self.stretch, self.failures = -1, errno.EIO, 1, 0

    @contextmanager
    def installed(self) -> Iterator[Disk]:
        """Everything that this process does inside goes to this disk."""
        real = {name: getattr(os, name) for name in CALLS}
        for name, call in real.items():
            setattr(os, name, self._failing(name, call))
        try:
            yield self
        finally:
            for name, call in real.items():
                setattr(os, name, call)

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            changes = name != "open" or bool(args[1] & _WRITES)
            if changes and self.next_failure >= 0:
                self.next_failure -= 1
                if -self.stretch <= self.next_failure < 0:
                    self.failures += 1
                    if self.next_failure > -self.stretch:
                        self.next_failure = 0  # the next one fails too
                        self.stretch -= 1
                    raise OSError(self.error, os.strerror(self.error))
            return real(*args, **named)

        return call


def failing_disks(bundle: Path, tried: int, seed: int, full: bool) -> tuple[int, int]:
    """Step and save while the disk fails, and restart after each failure.

    Args:
        bundle: What is stepped.
        tried: Failures in all.
        seed: Of chance.
        full: The disk is full for several calls, instead of one call failing in one of many ways.

    Returns:
        How many failures there were, and after how many of them the newest safe state was gone.
    """
    rng = random.Random(seed)
    done = lost = 0
    while done < tried and not lost:
        for policy in POLICIES.values():
            device = Device(bundle, policy)
            failures, losses = _one_folder(device, rng, full)
            done, lost = done + failures, lost + losses
    return done, lost


def _one_folder(device: Device, rng: random.Random, full: bool) -> tuple[int, int]:
    session, disk = device.session, Disk()
    failures = lost = 0
    with scratch_folder() as root, patch.object(Journal, "file_bytes", lambda *_: RING_BYTES):
        folder, copy = root / "folder", root / "copy"
        with closing(device.keeper(folder)) as keeper:
            keeper.restore()
            session.reset()
            session._keeper = keeper
            allowed: set[str | None] = {None}  # the newest safe state, and those since then
            for t in range(_STEPS_OF_A_FOLDER):
                before = keeper._saved_changes
                if t % 2:
                    disk.next_failure = rng.randrange(6)
                    disk.error = errno.ENOSPC if full else rng.choice(ERRORS)
                    disk.stretch = rng.randrange(2, 9) if full else 1
                happened = disk.failures
                with disk.installed(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        session.step(**inputs_of(device, rng))
                    except StateFault:
                        raise
                    except (StategateError, OSError):
                        pass  # the step is committed; its snapshot is not
                disk.next_failure = -1
                digest = device.digest()
                allowed = {digest} if keeper._saved_changes != before else allowed | {digest}
                if disk.failures != happened:
                    failures += 1
                    shutil.copytree(folder, copy)
                    lost += _restart(device, keeper, copy) not in allowed
                    shutil.rmtree(copy)
        session._keeper = None
    return failures, lost


def _restart(device: Device, keeper: Any, copy: Path) -> str | None:
    """The states that a restart finds; the session then goes on as it was."""
    session = device.session
    before = {name: array.copy() for name, array in session._memory.live().items()}
    session._keeper = None
    try:
        return device.recover(copy)[0]
    except SnapshotError:
        return "refused"
    finally:
        session._memory.put(before)
        session._keeper = keeper


def inputs_of(device: Device, rng: random.Random) -> dict[str, np.ndarray]:
    """Inputs of one step; two of three open the gate."""
    (tensor,) = device.manifest.step.inputs
    x = observation(rng.randrange(1000))
    return {tensor.name: x.astype(tensor.dtype)}


def damaged_bundles(bundle: Path, tried: int, seed: int) -> tuple[int, int]:
    """Open bundles with one damaged file; a loss is one that opens.

    Returns:
        How many, and how many opened.
    """
    rng, lost = random.Random(seed), 0
    with scratch_folder() as root:
        copy = root / "bundle"
        shutil.copytree(bundle, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        for _ in range(tried):
            file = rng.choice(files)
            raw = file.read_bytes()
            file.write_bytes(damage(raw, rng))
            try:
                Bundle.open(copy)
                lost += 1
            except StategateError:
                pass
            file.write_bytes(raw)
    return tried, lost


def damaged_memories(bundle: Path, tried: int, seed: int) -> tuple[int, int]:
    """Restart in folders of which one file is damaged.

    Returns:
        How many, and how often states came back that were never committed, or older ones than the
        newest without a word.
    """
    rng, done, lost = random.Random(seed), 0, 0
    for policy in POLICIES.values():
        device, marks = Device(bundle, policy), [""]
        with scratch_folder() as root, patch.object(Journal, "file_bytes", lambda *_: RING_BYTES):
            folder, copy = root / "folder", root / "copy"
            device.run(folder, 40, marks.append)
            names = sorted(
                p.name for p in folder.iterdir() if p.name != "lock" and p.stat().st_size
            )
            for _ in range(tried // len(POLICIES)):
                shutil.copytree(folder, copy)
                name = rng.choice(names)
                (copy / name).write_bytes(damage((copy / name).read_bytes(), rng))
                try:
                    digest, says = device.recover(copy)
                except SnapshotError:
                    digest, says = marks[-1], True
                lost += (digest or "") not in marks or (digest != marks[-1] and not says)
                done += 1
                shutil.rmtree(copy)
    return done, lost


def damage(raw: bytes, rng: random.Random) -> bytes:
    """A file with a bit turned, a stretch of zeros or noise, or another length."""
    data, at = bytearray(raw), rng.randrange(len(raw))
    choice = rng.randrange(5)
    if choice == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif choice == 1:
        size = rng.choice((1, 16, 512, 4096))
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif choice == 2:
        data[at : at + 16] = rng.randbytes(len(data[at : at + 16]))
    elif choice == 3:
        del data[at:]
    else:
        data += rng.randbytes(rng.choice((1, 100)))
    return bytes(data) if data != raw else damage(raw, rng)
