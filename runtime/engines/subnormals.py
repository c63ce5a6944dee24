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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

# Where fenv_t has the word that decides, and its bits: FTZ and DAZ of MXCSR behind 28 bytes of the
# x87 (Intel SDM volume 1, 10.2.3), FZ of FPCR (Arm ARM, C5.2.8). glibc and musl agree.
_WORDS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
_FENV_BYTES = 64  # more than any of them has


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to compute, one thread at a time; three calls, and none of Python between them."""

    note: Callable[[], object]  # note how this thread computes
    # from here on it takes subnormal numbers for zero; what else it does stays
    enter: Callable[[], object]
    leave: Callable[[], object]  # as it was when it was noted last; a second call does nothing more


def flush_to_zero() -> Mode:
    """Subnormal numbers as zero, where that can be had; elsewhere a mode that changes nothing."""
    word = _WORDS.get(platform.machine())
    try:
        if platform.system() != "Linux" or word is None:
            raise OSError("no mode is known for this system or CPU")
        library = ctypes.PyDLL(None)  # keeps the interpreter's lock: giving it away costs more
        get, put = library.fegetenv, library.fesetenv
    except (AttributeError, OSError):  # the former where the C library lacks the functions
        return Mode(_nothing, _nothing, _nothing)
    get.restype = put.restype = None
    before, flushing = (ctypes.create_string_buffer(_FENV_BYTES) for _ in range(2))
    get(before)
    ctypes.memmove(flushing, before, _FENV_BYTES)
    offset, bits = word
    ctypes.c_uint32.from_buffer(flushing, offset).value |= bits
    noted = ctypes.byref(before)
    return Mode(partial(get, noted), partial(put, ctypes.byref(flushing)), partial(put, noted))


def _nothing() -> None:
    """What a system without such a mode does."""
