"""The native engine: a bundle's shared object, called on buffers that are bound at open."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from itertools import count
from typing import Any

from stategate.common.c_library import check_library, load_obstacle
from stategate.contract import Bundle, FileRef
from stategate.contract.c_library import ABI, NativeRef
from stategate.contract.errors import EngineError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Buffers
from stategate.runtime.engines.feeds import refuse_not_finite
from stategate.runtime.engines.native_call import FINITE, chaining, filling, stepping
from stategate.runtime.trust import code

_MAX_PREMADE = 6  # 2**6 tables of some pointers, all made at open
# A step that takes less keeps the interpreter's lock: to give it away and to fetch it again takes
# 20 ns, and where another thread computes, up to the interpreter's switch interval of 5 ms.
_SHORT_US = 50.0

# A library stays mapped until the process ends; by its digest, equal bytes are mapped once.
_MAPPED: dict[str, int] = {}
_SLASHES = count(1)


class NativeEngine:
    """Steps a bundle by its own compiled code, on the session's buffers and nothing else.

    Attributes:
        fill: See `stategate.runtime.engines.engine.Filling`.
    """

    def __init__(self, bundle: Bundle, native: NativeRef, buffers: Buffers) -> None:
        """Check the library's bytes and who accepts them, map them, and bind every buffer."""
        obstacle = load_obstacle(native)
        if obstacle is not None:
            raise EngineError(
                "the native engine cannot step this bundle here",
                found=obstacle,
                expected=f"interface {ABI}" if native.abi != ABI else None,
                remedy="export the model again, or engine='onnxruntime'"
                if native.abi != ABI
                else "stategate device build-native BUNDLE here, or engine='onnxruntime'",
            )
        file = next(f for f in bundle.manifest.files if f.path == native.library)
        data = bundle.read(file)
        check_library(data, native, bundle.manifest.step_graph.file.sha256)
        refusal = code.refusal(bundle)
        if refusal is not None:
            raise EngineError(
                "the native code of this bundle is not run",
                found=refusal,
                expected="code that was made on this machine, or that somebody here vouches for",
                remedy=code.remedy(bundle),
            )
        self.name = f"native {native.isa} ({native.compiler})"
        self._library = ctypes.CDLL(file.path, handle=_mapped(data, file))
        self._is_long = native.step_us.get("native", _SHORT_US) >= _SHORT_US
        try:
            self.fill = filling(self._library, buffers.inputs)
        except AttributeError as missing:
            raise EngineError(
                "the native library lacks what the runtime calls",
                found=missing,
                remedy="build it here: stategate device build-native BUNDLE",
            ) from missing
        self._buffers = buffers
        self._steps: Any = (
            [self._step(parity) for parity in range(1 << len(buffers.groups))]
            if len(buffers.groups) <= _MAX_PREMADE
            else _Rebinding(self._step)
        )

    def run(self, parity: int) -> bool:
        """Compute one step; see `Engine.run`. Next states behind a closed gate are left alone."""
        status = self._steps[parity]()
        if status == FINITE:
            return True
        if status:
            refuse_not_finite(self._buffers.inputs)
        return False

    def write(self, parity: int) -> None:
        """Nothing: `run` has written what an open gate lets through."""

    def chaining(self) -> Callable[[int, int], int] | None:
        """See `stategate.runtime.engines.engine.Chaining`."""
        return chaining(self._library, self._buffers)

    def _step(self, parity: int) -> Callable[[], int]:
        """The call for one parity."""
        buffers = self._buffers
        live = [bool(parity & buffers.bit_of(state)) for state in buffers.states]
        banks = list(zip(buffers.states, live, strict=True))
        inputs = [*buffers.inputs, *buffers.constants, *(s.banks[bank] for s, bank in banks)]
        outputs = [*buffers.outputs, *buffers.gates, *(s.target(bank) for s, bank in banks)]
        takes, gives = [slot.array for slot in inputs], [slot.array for slot in outputs]
        results = [slot.array for slot in (*buffers.outputs, *buffers.gates)]
        return stepping(self._library, takes, gives, self._is_long, results)

    def close(self) -> None:
        """Let go of the buffers; a mapped library stays mapped until the process ends."""
        self._steps = []


class _Rebinding:
    """Calls by parity where there are too many parities: one, bound anew when another is asked."""

    def __init__(self, bind: Callable[[int], Callable[[], int]]) -> None:
        self._bind, self._parity, self._step = bind, 0, bind(0)

    def __getitem__(self, parity: int) -> Callable[[], int]:
        if parity != self._parity:
            self._parity, self._step = parity, self._bind(parity)
        return self._step


def _mapped(data: bytes, file: FileRef) -> int:
    """The handle of a library of these bytes, mapped once a process.

    They come from memory and not from the bundle's path: what was checked is what runs, whatever
    lies there by now, and no folder need be writable or allow execution.
    """
    if file.sha256 in _MAPPED:
        return _MAPPED[file.sha256]
    try:
        with os.fdopen(os.memfd_create(file.path), "wb") as memory:
            memory.write(data)
            memory.flush()
            # The system hands out what it once mapped from a path, and numbers of closed files come
            # again: one more slash makes a path that was never there.
            path = f"/proc/self/fd{'/' * next(_SLASHES)}{memory.fileno()}"
            _MAPPED[file.sha256] = ctypes.CDLL(path)._handle
    except failures(OSError) as problem:  # such as a C library older than the one it needs
        raise EngineError(
            f"the system cannot load {file.path}",
            found=problem,
            remedy="build it here: stategate device build-native BUNDLE; or engine='onnxruntime'",
        ) from problem
    return _MAPPED[file.sha256]
