"""What the operating system says about this process."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

from stategate.contract.failures import failures

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except failures(OSError):
        return 0


def give_back_freed_memory() -> None:
    """Give the system what was freed but is still resident, where the C library can.

    The GNU C library keeps freed memory when it lies between pieces in use, and how much that is
    depends on the order and the sizes of what was freed before. Other C libraries lack the call.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_rss_bytes() -> int:
    """Most resident memory that this process ever had; 0 where the system does not tell."""
    # Not ru_maxrss, which a process inherits from the one that started it.
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except failures(OSError):
        pass
    return 0
