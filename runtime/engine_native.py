"""The native engine: a bundle's shared object, called through ctypes with pointers bound at open.

ctypes and not an extension module, because the library then needs no Python to be built and fits
every Python that comes later; docs/adr/0016 has the figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from stategate.contract import Bundle, FileRef
from stategate.contract.errors import EngineError
from stategate.contract.native import NativeRef, check_library, why_not_here
from stategate.runtime.buffers import Buffers, Slot

_MAX_PREMADE = 6  # 2**6 tables of some pointers, all made at open

_Pointers = ctypes.Array[ctypes.c_void_p]


class NativeEngine:
    """Steps a bundle by its own compiled code, on the session's buffers and nothing else."""

    def __init__(self, bundle: Bundle, native: NativeRef, buffers: Buffers) -> None:
        """Check the library's bytes, map it, and bind every buffer.

        Raises:
            EngineError: This machine cannot load the library, or it is not what the manifest says.
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
        check_library(data, native, bundle.manifest.step_graph.file.sha256)
        self.name = f"native {native.isa} ({native.compiler})"
        self._library = _mapped(bundle, file)
        self._compute: Any = self._library.stategate_compute
        self._compute.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._compute.restype = None
        self._buffers = buffers  # the tables point into this memory without owning it
        premade = len(buffers.groups) <= _MAX_PREMADE
        self._tables = [self._table(p) for p in range(1 << len(buffers.groups) if premade else 1)]
        self._calls = [_addresses(*pair) for pair in self._tables]
        self._bound_parity = None if premade else 0

    def run(self, parity: int) -> None:
        """Compute one step; see `Engine.run`. Next states behind a closed gate are left alone."""
        if self._bound_parity is None:
            self._compute(*self._calls[parity])
            return
        if parity != self._bound_parity:
            self._tables[0] = self._table(parity)
            self._calls[0] = _addresses(*self._tables[0])
            self._bound_parity = parity
        self._compute(*self._calls[0])

    def _table(self, parity: int) -> tuple[_Pointers, _Pointers]:
        """Where a step reads and writes, in the order of the signature."""
        buffers = self._buffers
        live = [bool(parity & buffers.bit_of(state)) for state in buffers.states]
        banks = list(zip(buffers.states, live, strict=True))
        taken = [*buffers.inputs, *buffers.constants, *(s.banks[bank] for s, bank in banks)]
        given = [*buffers.outputs, *buffers.gates, *(s.banks[not bank] for s, bank in banks)]
        return _pointers(taken), _pointers(given)

    def close(self) -> None:
        """Let go of the buffers; a mapped library stays mapped until the process ends."""
        self._tables, self._calls = [], []


def _pointers(slots: Sequence[Slot]) -> _Pointers:
    return (ctypes.c_void_p * len(slots))(*(slot.array.ctypes.data for slot in slots))


def _addresses(taken: _Pointers, given: _Pointers) -> tuple[int, int]:
    return ctypes.addressof(taken), ctypes.addressof(given)


def _mapped(bundle: Bundle, file: FileRef) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str((bundle.path / file.path).resolve()))
    except OSError as problem:
        raise EngineError(
            f"the system cannot load {file.path}",
            found=problem,
            remedy="build it again here: stategate build-native BUNDLE",
        ) from problem
