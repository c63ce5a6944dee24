"""States of a model in one file, in the safetensors format; written and read here by ourselves.

A device has NumPy and no package for the format: eight bytes with the length of a header, the
header in JSON with dtype, shape and place of each tensor, then the bytes, little endian. A file of
another program is welcome. It is read as from a stranger: nothing is allocated that the file does
not hold, and every byte belongs to one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import SnapshotDamagedError
from stategate.contract.failures import failures
from stategate.contract.reading import FILE_BYTES, RECORD_BYTES, decode_json, read_bounded

Array = NDArray[Any]

_DTYPES = {
    "BOOL": "bool",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def encode_states(states: Mapping[str, Array], facts: Mapping[str, str]) -> bytes:
    """A file of states, in their order, with texts for its metadata."""
    header: dict[str, Any] = {_METADATA: dict(facts)}
    end = 0
    for name, array in states.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[str(array.dtype)],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = msgspec.json.encode(header)
    text = text.ljust(-(-len(text) // 8) * 8)  # so that the numbers are aligned in the file
    parts = [
        array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        for array in states.values()
    ]
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load_states(
    path: str | Path, limit: int = FILE_BYTES
) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors by name, and the texts of the file's metadata."""
    try:
        return decode_states(read_bounded(path, limit))
    except failures(OSError, ValueError, msgspec.MsgspecError) as problem:
        raise SnapshotDamagedError(
            "the file of states cannot be read",
            found=f"{path}: {problem}",
            expected="a safetensors file, such as save_state writes",
        ) from problem


def decode_states(raw: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The same of a file's bytes."""
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > min(len(raw) - 8, RECORD_BYTES):
        raise ValueError(f"{len(raw):,} bytes, which end within the header")
    header = decode_json(raw[8 : 8 + size], dict[str, msgspec.Raw])
    facts: dict[str, str] = {}
    if _METADATA in header:
        facts = msgspec.json.decode(header.pop(_METADATA), type=dict[str, str])
    body = memoryview(raw)[8 + size :]
    entries = {name: msgspec.json.decode(text, type=_Entry) for name, text in header.items()}
    arrays: dict[str, Array] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{name!r} is of dtype {entry.dtype}, which no state has")
        dtype = np.dtype(_DTYPES[entry.dtype]).newbyteorder("<")
        start, stop = entry.data_offsets
        fits = min(entry.shape, default=0) >= 0 and start == end and start <= stop <= len(body)
        if not fits or stop - start != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError(
                f"{name!r} is {entry.dtype} {list(entry.shape)} at {start} to {stop}, which is "
                f"another size, or not behind byte {end} of {len(body):,}"
            )
        flat = np.frombuffer(body[start:stop], dtype)
        if entry.dtype == "BOOL" and np.frombuffer(body[start:stop], np.uint8).max(initial=0) > 1:
            raise ValueError(f"{name!r} holds truth values that are neither 0 nor 1")
        arrays[name] = flat.astype(dtype.newbyteorder("=")).reshape(entry.shape)
        end = stop
    if end != len(body):
        raise ValueError(f"{len(body) - end:,} bytes belong to no tensor")
    return {name: arrays[name] for name in entries}, facts
