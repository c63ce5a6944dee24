"""What happens around a door: a folder that it may use, and a watch over all else."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.attack.places import PLACE

MEMORY_BYTES = 1 << 30
"""More than a process needs for any small file. What asks for more is a file that was believed."""


class Broken(AssertionError):
    """A door did what none may do."""


_PATHS_OF = {
    "open": 1, "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2,
    "os.symlink": 2, "os.truncate": 1, "os.chmod": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
_NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen",
)  # fmt: skip
_READABLE = tuple(
    str(Path(str(place)).resolve())
    for place in (
        sys.prefix,
        sys.base_prefix,
        PLACE.parents[1],
        Path(np.__file__).parents[1],
        "/proc",
        "/sys",
    )
)


class Watch:
    """Notes what a door does to the machine outside of its folder: an audit hook of Python."""

    def __init__(self) -> None:
        """Start; a hook stays for the life of the process."""
        self.folder: str | None = None
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in _PATHS_OF or event in _NEVER):
            return
        folder, self.folder = self.folder, None  # what is asked here is not the door's doing
        try:
            if event in _NEVER:
                if event == "ctypes.dlopen" and args[0] is None:
                    return  # the process itself
                self.events.append(f"{event} {args[:2]!r:.200}")
                return
            writes = event != "open" or bool(
                isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            for path in args[: _PATHS_OF[event]]:
                if isinstance(path, str | bytes | os.PathLike):
                    full = os.path.realpath(os.fsdecode(path))
                    allowed = (folder,) if writes else (folder, *_READABLE)
                    if not any(full == a or full.startswith(f"{a}/") for a in allowed):
                        self.events.append(f"{event} {full!r:.200}")
        except ValueError:
            pass  # a name with a zero byte, which nothing opens
        finally:
            self.folder = folder


@cache
def watch() -> Watch:
    """The only one of this process."""
    return Watch()


@cache
def _place() -> Path:
    """A folder of this process, in memory where the machine has such a place."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="stategate-door-", dir=fast))
    atexit.register(shutil.rmtree, path, True)
    return path


@contextmanager
def empty_folder() -> Iterator[Path]:
    """One that is emptied afterwards."""
    path = _place() / str(len(list(_place().iterdir())))
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and notes: thousands of files a second have thousands of them."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
