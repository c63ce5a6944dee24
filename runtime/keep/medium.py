"""Where the blocks of a record file are: a file that one process holds."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from stategate.contract.durable import try_lock
from stategate.contract.errors import SnapshotError


class FileMedium:
    """A file as a medium, held by one process at a time.

    Attributes:
        path: Where it is.
        size_bytes: Of the file.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        """Open a file; ``writes`` asks for the lock too. An OSError passes."""
        self.path = Path(path).resolve()  # a daemon changes its working directory
        flags = os.O_RDWR if writes else os.O_RDONLY
        self._file = os.open(self.path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        let_go_in_child(self)
        try:
            if writes and try_lock(self._file) == "in use":
                raise SnapshotError(
                    "the record file is in use",
                    found=self.path,
                    expected="one process at a time",
                    remedy="close the other session, or give this one a file of its own",
                )
            self.size_bytes = os.fstat(self._file).st_size
        except BaseException:
            self.close()
            raise

    def read(self, at: int, count: int) -> bytes:
        """``count`` bytes from ``at`` on; an OSError where that fails."""
        return os.pread(self._file, count, at)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put ``data`` at ``at``."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file, view, at)
            view, at = view[done:], at + done

    def sync(self) -> None:
        """Return when the medium has what was written."""
        getattr(os, "fdatasync", os.fsync)(self._file)

    def close(self) -> None:
        """Close and unlock the file; a second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()


_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


def let_go_in_child(holder: Any) -> None:
    """Close what this process holds in a forked child: it would stay locked after its parent."""
    _OPEN.add(holder)


def _close_all() -> None:
    for holder in list(_OPEN):
        holder.close()


os.register_at_fork(after_in_child=_close_all)
