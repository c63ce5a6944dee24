"""Files and folders that outlive a loss of power: whole and on the disk, or not there.

Everything that is put in the place of something else goes through here: written beside it, synced,
renamed, and the folder synced. A rename alone can leave an empty file after a power cut, because
the name reaches the disk before the content does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from stategate.contract import staging
from stategate.contract.errors import ResultError
from stategate.contract.failures import failures

# What a file cannot be read for although nothing is wrong with it.
OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


@contextmanager
def whole_file(path: Path, staged: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which is at ``path`` when the block ends, and durable.

    Any exception inside leaves what was at ``path`` as it was. Folders on the way are made.
    """
    obstacle = _not_replaced(path)
    if obstacle is not None:
        raise FileExistsError(errno.EEXIST, obstacle, os.fspath(path))
    make_folder(path.parent)
    with staging.staged(path) if staged is None else _own(staged) as place:
        with _naming(path), place.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place.replace(path)
    sync_folder(path.parent)


def _not_replaced(path: Path) -> str | None:
    """Why a file must not be put at ``path``; None where it may.

    A rename puts a file in the place of anything but a folder, and root may do that in ``/dev``.
    """
    if not path.exists() or path.is_file() or path.is_dir():
        return None
    return "a device, a pipe or a socket is there, and not a file"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have a failed write say which file it was; the system names only what it cannot open."""
    try:
        yield
    except failures(OSError) as problem:  # what a signal's handler raised keeps its own attributes
        problem.filename = problem.filename or os.fspath(path)
        raise


@contextmanager
def _own(staged: Path) -> Iterator[Path]:
    staged.unlink(missing_ok=True)
    try:
        staged.touch(exist_ok=False)  # exclusive: a link that somebody put there is not followed
        yield staged
    finally:
        try:
            staged.unlink(missing_ok=True)
        except failures(OSError):
            pass  # the next one replaces it


def write_whole(path: Path, data: bytes | memoryview, staged: Path | None = None) -> None:
    """Write a file beside and move it into place; return when the disk has it."""
    with whole_file(path, staged) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file, and the folder that it is in; return when the disk has its bytes."""
    make_folder(path.parent)
    with _naming(path), path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing; the disk has their names then."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Return when the disk has the names that are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # a file system that syncs no folders says so with this
            raise
    finally:
        os.close(descriptor)


def move_into_place(staged: Path, path: Path) -> None:
    """Put the folder ``staged`` at ``path``, durably; what was there ends up at ``staged``.

    A file replaces what was there.
    """
    try:
        staged.rename(path)
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _swap(staged, path)
    sync_folder(path.parent)


def _swap(staged: Path, path: Path) -> None:
    if _exchange(staged, path):
        return
    # Without an atomic exchange there is a moment with neither; the old one is kept beside.
    old = staged.with_name(staged.name + ".old")
    staging.remove(old)  # of a process that was killed at this very place
    path.rename(old)
    try:
        staged.rename(path)
    except OSError:
        old.rename(path)
        raise
    staging.remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step, where the system can (Linux 3.15, glibc 2.28)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd, exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    failed: int = renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), exchange)
    return not failed


def try_lock(descriptor: int) -> Literal["held", "in use", "no locks"]:
    """Try to lock an open file or folder for this process alone, without waiting.

    Returns:
        ``held``; ``in use`` where another one holds it; ``no locks`` where the file system has
        none, as some of NFS and FUSE.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return "in use"
        if problem.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return "no locks"
        raise
    return "held"


def check_writable(path: Path) -> None:
    """Find out before the work whether a file or folder can be made at ``path`` after it."""
    folder = path.absolute().parent
    try:
        path.exists()  # a name may be too long
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
    except failures(OSError) as problem:
        raise ResultError(
            "nothing can be written there", found=str(problem), expected="the name of a new file"
        ) from None
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResultError(
            "nothing can be written there",
            found=f"{path}: {folder} is {'read-only' if folder.is_dir() else 'not a folder'}",
            expected="a path below a folder that can be written",
        )
    obstacle = _not_replaced(path)
    if obstacle is not None:
        raise ResultError("nothing can be written there", found=f"{path}: {obstacle}")
