"""Numbers too small for a full mantissa count as zero while an engine computes.

A memory that decays in silence comes among the subnormal numbers and stays there, and an x86-64
CPU takes up to some hundred times as long for each of them. ONNX Runtime's own option
(``session.set_denormal_as_zero``) works for the first session of a process alone and never lets go
of the thread. So the thread's mode is set before a run and put back after it, through the C
library's <fenv.h>: below 1.18e-38 a float32, and below 2.2e-308 a float64, is zero.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Protocol

# Where fenv_t has the word that decides, and its bits: FTZ and DAZ of MXCSR behind 28 bytes of the
# x87 (Intel SDM volume 1, 10.2.3), FZ of FPCR (Arm ARM, C5.2.8). glibc and musl agree.
_WORDS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
_FENV_BYTES = 64  # more than any of them has


class Mode(Protocol):
    """A way to compute, for one thread at a time."""

    def enter(self) -> None:
        """From here on this thread computes so."""
        ...

    def leave(self) -> None:
        """As it was before; a second call does nothing more."""
        ...


class FlushToZero:
    """Subnormal numbers are zero between `enter` and `leave`; what else a thread set stays."""

    def __init__(self) -> None:
        """Look at how this thread computes.

        Raises:
            OSError: This system or CPU has no such mode that is known here.
        """
        word = _WORDS.get(platform.machine())
        if platform.system() != "Linux" or word is None:
            raise OSError("no mode is known for this system or CPU")
        library = ctypes.PyDLL(None)  # keeps the interpreter's lock: giving it away costs more
        self._get, self._set = library.fegetenv, library.fesetenv
        before, flushing = (ctypes.create_string_buffer(_FENV_BYTES) for _ in range(2))
        self._before, self._flushing = (ctypes.pointer(b) for b in (before, flushing))
        self._get(self._before)
        ctypes.memmove(flushing, before, _FENV_BYTES)
        offset, bits = word
        ctypes.c_uint32.from_buffer(flushing, offset).value |= bits

    def enter(self) -> None:
        """From here on this thread computes so."""
        self._get(self._before)
        self._set(self._flushing)

    def leave(self) -> None:
        """As it was before; a second call does nothing more."""
        self._set(self._before)


class AsItIs:
    """The mode of a system where none can be set."""

    def enter(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""


def flush_to_zero() -> Mode:
    """Subnormal numbers as zero, where that can be had."""
    try:
        return FlushToZero()
    except (AttributeError, OSError):  # the former where the C library lacks the functions
        return AsItIs()
