"""The native engine: a bundle's shared object, called through ctypes with pointers bound at open.

ctypes and not an extension module, because the library then needs no Python to be built and fits
every Python that comes later; docs/adr/0016 has the figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from stategate.contract import Bundle, FileRef
from stategate.contract.errors import EngineError
from stategate.contract.native import NativeRef, check_library, tag, why_not_here
from stategate.runtime.buffers import Array, Buffers
from stategate.runtime.feeds import refuse_not_finite

_MAX_PREMADE = 6  # 2**6 tables of some pointers, all made at open
# A step that takes less keeps the interpreter's lock: to give it away and to fetch it again takes
# 20 ns, and where another thread computes, up to the interpreter's switch interval of 5 ms.
_SHORT_US = 50.0

_Pointers = ctypes.Array[ctypes.c_void_p]


class NativeEngine:
    """Steps a bundle by its own compiled code, on the session's buffers and nothing else.

    Attributes:
        checks_inputs: It looks for NaN and infinity in the inputs, so that nobody else need.
    """

    checks_inputs = True

    def __init__(self, bundle: Bundle, native: NativeRef, buffers: Buffers) -> None:
        """Check the library's bytes, map it, and bind every buffer.

        Raises:
            EngineError: This machine cannot load the library, it is not what the manifest says, or
                this process has mapped another one from the same path.
            DigestError: It was altered.
        """
        obstacle = why_not_here(native)
        if obstacle is not None:
            raise EngineError(
                "the native engine cannot step this bundle here",
                found=obstacle,
                remedy="stategate build-native BUNDLE on this machine, or engine='onnxruntime'",
            )
        file = next(f for f in bundle.manifest.files if f.path == native.library)
        data = bundle.read(file)
        graph = bundle.manifest.step_graph.file.sha256
        check_library(data, native, graph)
        self.name = f"native {native.isa} ({native.compiler})"
        short = native.step_us.get("native", _SHORT_US) < _SHORT_US
        self._library = _mapped(bundle, file, ctypes.PyDLL if short else ctypes.CDLL)
        # The system hands out what it once mapped from a path, whatever lies there by now.
        self._library.stategate_tag.restype = ctypes.c_char_p
        if self._library.stategate_tag() != tag(native.abi, graph):
            raise EngineError(
                "this process has mapped the library of another bundle from the same path",
                found=bundle.path / file.path,
                remedy="open the bundle in a new process, or from another folder",
            )
        self._buffers = buffers  # the tables point into this memory without owning it
        self._steps: Any = (
            [self._step(parity) for parity in range(1 << len(buffers.groups))]
            if len(buffers.groups) <= _MAX_PREMADE
            else _Rebinding(self._step)
        )

    def run(self, parity: int) -> None:
        """Compute one step; see `Engine.run`. Next states behind a closed gate are left alone.

        Raises:
            NonFiniteInputError: An input holds NaN or infinity; nothing was computed.
        """
        if self._steps[parity]():
            refuse_not_finite(self._buffers.inputs)

    def write(self, parity: int) -> None:
        """Nothing: `run` has written what an open gate lets through."""

    def _step(self, parity: int) -> Callable[[], int]:
        """The call for one parity, its tables bound and kept alive by it."""
        # References made beforehand, and no `argtypes`: converting two integers in every call
        # takes 50 ns more.
        return partial(self._library.stategate_compute, *map(ctypes.byref, self._table(parity)))

    def _table(self, parity: int) -> tuple[_Pointers, _Pointers]:
        """Where a step reads and writes, in the order of the signature."""
        buffers = self._buffers
        live = [bool(parity & buffers.bit_of(state)) for state in buffers.states]
        banks = list(zip(buffers.states, live, strict=True))
        taken = [*buffers.inputs, *buffers.constants, *(s.banks[bank] for s, bank in banks)]
        given = [*buffers.outputs, *buffers.gates, *(s.banks[not bank] for s, bank in banks)]
        return pointers([slot.array for slot in taken]), pointers([slot.array for slot in given])

    def close(self) -> None:
        """Let go of the buffers; a mapped library stays mapped until the process ends."""
        self._steps = []


def pointers(arrays: Sequence[Array]) -> _Pointers:
    """Where some arrays lie, as a table in C; it does not keep them alive."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class _Rebinding:
    """Calls by parity where there are too many parities: one, bound anew when another is asked."""

    def __init__(self, bind: Callable[[int], Callable[[], int]]) -> None:
        self._bind, self._parity, self._step = bind, 0, bind(0)

    def __getitem__(self, parity: int) -> Callable[[], int]:
        if parity != self._parity:
            self._parity, self._step = parity, self._bind(parity)
        return self._step


def _mapped(bundle: Bundle, file: FileRef, loader: type[ctypes.CDLL]) -> ctypes.CDLL:
    try:
        return loader(str((bundle.path / file.path).resolve()))
    except OSError as problem:
        raise EngineError(
            f"the system cannot load {file.path}",
            found=problem,
            remedy="build it again here: stategate build-native BUNDLE",
        ) from problem
