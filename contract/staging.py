"""Places for what is not finished; what a killed process left in them is cleared away.

What is being written has a hidden name next to its place, and is locked. The lock ends with its
process, however that ends, so whoever writes there next can tell what nobody will finish.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCRATCH = re.compile(r"stategate-scratch-[0-9a-f]{16}")


@contextmanager
def staged(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file or folder next to ``path``, for this process alone; gone at the end.

    What a killed process left there is removed, and so is a link that somebody planted. A living
    one that writes to the same place is waited for.
    """
    place = shared = path.with_name(f".{path.name}.staged")
    while True:
        is_new = _make(place, folder)
        descriptor, locked = hold(place, wait=True)
        if descriptor is not None:
            if is_new and (locked or place != shared):
                break
            if is_new or locked:
                remove(place)
            if not locked:  # a file system without locks: a name that nobody else has
                place = path.with_name(f".{path.name}.{os.urandom(4).hex()}.staged")
            os.close(descriptor)
    try:
        yield place
    finally:
        # Once it was moved, another process may be at work under the name; or the old folder is.
        if not locked or _is_at(descriptor, place):
            remove(place)
        else:
            _remove_unheld(place)
        os.close(descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder among the system's temporary files; gone at the end.

    Those that killed processes of this user left are removed first.
    """
    import tempfile  # with what it needs, a tenth of the time to import the runtime

    parent = Path(tempfile.gettempdir())
    for entry in os.scandir(parent):
        with suppress(OSError):  # another process removes it too
            own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
            if own and _SCRATCH.fullmatch(entry.name):
                _remove_unheld(parent / entry.name)
    while True:
        place = parent / f"stategate-scratch-{os.urandom(8).hex()}"
        _make(place, folder=True)
        descriptor, _ = hold(place, wait=True)
        if descriptor is not None:
            break
    try:
        yield place
    finally:
        remove(place)
        os.close(descriptor)


def _remove_unheld(place: Path) -> None:
    with suppress(OSError):
        descriptor, locked = hold(place, wait=False)
        if locked:
            remove(place)
        if descriptor is not None:
            os.close(descriptor)


def _make(place: Path, folder: bool) -> bool:
    """Make a file or folder; False where something is there, which is no link afterwards."""
    try:
        if folder:
            place.mkdir(mode=0o700)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(place, flags, 0o666))
    except FileExistsError:
        with suppress(FileNotFoundError):
            kind = stat.S_IFMT(place.lstat().st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR):
                place.unlink()
        return False
    return True


def hold(place: Path, wait: bool) -> tuple[int | None, bool]:
    """Open and lock what is at ``place``.

    Returns:
        Its descriptor, None where it is gone or another process's; and whether it is locked.
    """
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, False
    locked = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        locked = False
    if _is_at(descriptor, place):
        return descriptor, locked
    os.close(descriptor)  # whoever held it until now has moved or removed it
    return None, False


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), place.lstat())
    except FileNotFoundError:
        return False


def remove(place: Path) -> None:
    """Remove a file or a whole folder, as far as that is possible."""
    import shutil

    with suppress(OSError):
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
