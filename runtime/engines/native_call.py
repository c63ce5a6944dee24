"""Calling a bundle's library: a function of CPython made of an address, without a compiler here.

ctypes converts what it is given in every call. So it is used once, at open, to have CPython make a
built-in function of the library's code; the library's side is ``export/c/python.c``, and
docs/adr/0016 has the figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stategate.runtime.base.buffers import Array, Buffers, Slot

Pointers = ctypes.Array[ctypes.c_void_p]
FINITE = -1  # computed, and every result is finite
_TYPES = {"float16": 1, "float32": 2, "float64": 3}  # enum stategate_type
_METH_FASTCALL = 0x0080  # Include/methodobject.h; part of the stable ABI


class _MethodDef(ctypes.Structure):
    """``PyMethodDef`` of the stable ABI."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("code", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _Input(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.py_object),
        ("buffer", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("rank", ctypes.c_ssize_t),
        ("format", ctypes.c_char),
    )


class _Filling(ctypes.Structure):
    _fields_ = (
        ("array_type", ctypes.py_object),
        ("inputs", ctypes.POINTER(_Input)),
        ("count", ctypes.c_ssize_t),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("bytes", ctypes.c_ssize_t),
        ("type", ctypes.c_ssize_t),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("taken", ctypes.POINTER(ctypes.c_void_p)),
        ("given", ctypes.POINTER(ctypes.c_void_p)),
        ("gives_lock_away", ctypes.c_ssize_t),
        ("results", ctypes.POINTER(_Result)),
        ("count", ctypes.c_ssize_t),
    )


class _State(ctypes.Structure):
    _fields_ = (
        ("banks", ctypes.c_void_p * 2),
        ("bytes", ctypes.c_ssize_t),
        ("bit", ctypes.c_uint64),
    )


class _Memory(ctypes.Structure):
    _fields_ = (("states", ctypes.POINTER(_State)), ("count", ctypes.c_ssize_t))


class _Address(int):
    """Where something lies, which it keeps alive."""

    owner: object


def pointers(arrays: Sequence[Array]) -> Pointers:
    """Where some arrays lie, as a table in C; it does not keep them alive."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def stepping(
    library: ctypes.CDLL,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    gives_lock_away: bool,
    results: Sequence[Array],
) -> Callable[[], int]:
    """One step between fixed arrays.

    What it returns is that of ``stategate_compute``, or `FINITE` in place of 0.
    """
    checks = (_Result * len(results))(
        *(_Result(a.ctypes.data, a.nbytes, _TYPES.get(a.dtype.name, 0)) for a in results)
    )
    data = _Step(pointers(inputs), pointers(outputs), gives_lock_away, checks, len(results))
    # A library of the first edition does not look, and takes no notice of ``results``.
    run = getattr(library, "stategate_python_look", None) or library.stategate_python_run
    return _function(run, data, (*inputs, *outputs, *results))


def filling(library: ctypes.CDLL, slots: Sequence[Slot]) -> Callable[[dict[str, Array]], int]:
    """Copies inputs into their buffers; not 0 where one is missing or not what its buffer is."""
    inputs = (_Input * len(slots))(
        *(
            _Input(
                slot.name,
                slot.array.ctypes.data,
                slot.array.ctypes.shape,
                slot.array.ndim,
                slot.array.data.format.encode(),
            )
            for slot in slots
        )
    )
    data = _Filling(np.ndarray, inputs, len(slots))
    return _function(library.stategate_python_fill, data, slots)


def chaining(library: ctypes.CDLL, buffers: Buffers) -> Callable[[int, int], int] | None:
    """Takes a chain of hashes and a parity, and returns the chain with the live states.

    None where the library was made before it could.
    """
    run = getattr(library, "stategate_python_chain", None)
    if run is None:
        return None
    states = (_State * len(buffers.states))(
        *(
            _State(pointers([bank.array for bank in s.banks]), s.spec.bytes, buffers.bit_of(s))
            for s in buffers.states
        )
    )
    return _function(run, _Memory(states, len(states)), buffers)


def _function(code: Any, data: ctypes.Structure, owner: object) -> Callable[..., int]:
    """A built-in function whose ``self`` is the address of ``data``."""
    method = _MethodDef(b"step", ctypes.cast(code, ctypes.c_void_p), _METH_FASTCALL, None)
    new = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p
    )(("PyCFunction_NewEx", ctypes.pythonapi))
    address = _Address(ctypes.addressof(data))
    address.owner = (method, data, owner)
    function: Callable[..., int] = new(method, address, None)
    return function
