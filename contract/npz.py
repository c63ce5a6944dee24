"""Arrays of an ``.npz`` without loading it: its headers, then as many rows as are wanted.

An ``.npz`` is a zip of ``.npy`` members, deflated or not; a member begins with its dtype and shape.
Everything a header says is held against what the zip says before a byte is allocated for it, and
nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import EpisodeError
from stategate.contract.failures import failures
from stategate.contract.reading import open_regular, printable, read_bounded

Array = NDArray[Any]

WHOLE_BYTES = 4 * 2**30
"""The most that is loaded in one piece; more is read in blocks."""

MEMBERS = 1 << 16
"""Arrays of one file: a golden episode of 20,000 states has some 40,000. The list of a hostile one
with millions would fill the memory before a single array is looked at."""

FILE_BYTES = 1 << 50  # recordings may be as long as a disk; they are read in blocks
_HEADER_BYTES = 1 << 14  # NumPy itself refuses headers of more than 10,000 bytes
_CHUNK_BYTES = 2**16
_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True)
class Member:
    """What the header of one array says, found to agree with the zip."""

    dtype: np.dtype[Any]  # of its elements; never an object
    shape: tuple[int, ...]  # all its axes
    fortran: bool  # whether the last axis is the slowest, so that rows are not together
    start: int  # bytes of the header

    @property
    def bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open ``.npz``; use it in a ``with``.

    Attributes:
        name: What messages call it.
        members: Headers by key.

    Args:
        source: The file, or its bytes.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        self.name = "the episode" if isinstance(source, bytes) else str(source)
        with ExitStack() as opened:
            with self._reading():
                file: BinaryIO = (
                    io.BytesIO(source)
                    if isinstance(source, bytes)
                    else opened.enter_context(open_regular(source, FILE_BYTES))
                )
                _check_count(file)
                self._zip = opened.enter_context(zipfile.ZipFile(file))
                infos = self._zip.infolist()
                self._infos = {info.filename.removesuffix(_SUFFIX): info for info in infos}
                if len(self._infos) < len(infos):
                    raise ValueError("it has two members of one name")
                self.members = {key: self._header(info) for key, info in self._infos.items()}
            self._opened = opened.pop_all()

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def check_whole(self) -> None:
        """Refuse what unpacks to too much; a zip's size on the disk says little about that."""
        refuse_too_large(self.name, sum(member.bytes for member in self.members.values()))

    def load(self, key: str) -> Array:
        """One whole array."""
        member = self.members[key]
        with self._reading():
            if member.bytes > WHOLE_BYTES:
                raise ValueError(f"{key} has {member.bytes:,} bytes, more than is loaded at once")
            with self._open(key) as file:
                flat = _take(file, key, member.dtype, math.prod(member.shape))
                _expect_end(file, key)
            return flat.reshape(member.shape, order="F" if member.fortran else "C")

    def blocks(self, keys: Iterable[str], rows: int) -> Iterator[dict[str, Array]]:
        """Several arrays side by side, some rows at a time.

        Checksums stand at the end of a zip's member: what is damaged raises at the last block, if
        its length does not give it away before.
        """
        chosen = {key: self.members[key] for key in keys}
        total = min((m.shape[0] for m in chosen.values()), default=0)
        with ExitStack() as stack:
            with self._reading():
                for key, member in chosen.items():
                    if member.fortran and len(member.shape) > 1:
                        raise ValueError(
                            f"{key} is in Fortran order, so its rows are not together; "
                            "save np.ascontiguousarray of it"
                        )
                files = {key: stack.enter_context(self._open(key)) for key in chosen}
            for first in range(0, total, rows):
                count = min(rows, total - first)
                with self._reading():
                    block = {
                        key: _take(
                            files[key], key, member.dtype, count * math.prod(member.shape[1:])
                        ).reshape(count, *member.shape[1:])
                        for key, member in chosen.items()
                    }
                    if first + count == total:
                        for key, file in files.items():
                            _expect_end(file, key)
                yield block

    def _header(self, info: zipfile.ZipInfo) -> Member:
        name = printable(info.filename)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in a way that NumPy never uses")
        with self._zip.open(info) as packed:
            return _member(packed.read(_HEADER_BYTES), info.file_size, name)

    @contextmanager
    def _open(self, key: str) -> Iterator[IO[bytes]]:
        with self._zip.open(self._infos[key]) as file:
            file.read(self.members[key].start)
            yield file

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """NumPy, zipfile, zlib and the disk raise a dozen unrelated types."""
        try:
            yield
        except failures() as problem:
            raise EpisodeError(
                f"{self.name} cannot be read",
                found=f"{type(problem).__name__}: {problem}",
                expected="an .npz file with input.<name> arrays",
            ) from problem


def refuse_too_large(
    name: object,
    size: int,
    remedy: str = "cut it into several files, or read it with EpisodeFile.blocks",
) -> None:
    """Raise where something has more bytes than may be loaded in one piece."""
    if size > WHOLE_BYTES:
        raise EpisodeError(
            f"{name} is too large to be loaded at once",
            found=f"{size:,} bytes unpacked",
            expected=f"at most {WHOLE_BYTES:,}",
            remedy=remedy,
        )


def load_npy(path: str | Path) -> Array:
    """The array of one ``.npy``."""
    try:
        raw = read_bounded(path, WHOLE_BYTES)
        _member(raw[:_HEADER_BYTES], len(raw), printable(path))
        array: Array = np.load(io.BytesIO(raw), allow_pickle=False)
    except failures() as problem:  # NumPy raises unrelated types
        raise EpisodeError(
            f"{path} cannot be read",
            found=f"{type(problem).__name__}: {problem}",
            expected="one array, as np.save writes it",
        ) from problem
    return array


def _member(start: bytes, size: int, name: str) -> Member:
    """What the first bytes of a ``.npy`` of ``size`` bytes say."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"{name} is in version {version} of .npy")
    member = Member(dtype, shape, fortran, file.tell())
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are never loaded")
    promised = member.start + member.bytes
    if min(shape, default=0) < 0 or promised != size:
        raise ValueError(f"the header of {name} promises {promised:,} bytes, and it has {size:,}")
    return member


def _check_count(file: BinaryIO) -> None:
    """Hold what a zip's first bytes and its list of members say, before it is read."""
    if not file.read(4).startswith((b"PK\3\4", b"PK\5\6")):  # zipfile looks at the end alone
        raise ValueError("it is not a zip file: its first bytes are others")
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 98))  # the longest comment, and both ends
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\5\6")  # section 4.3.16 of the format, APPNOTE.TXT
    if at < 0 or len(tail) < at + 20:
        return  # zipfile says so
    count, length = struct.unpack_from("<HL", tail, at + 10)
    wide = at - 76  # section 4.3.14, with the locator of 20 bytes behind it
    if wide >= 0 and tail.startswith(b"PK\6\6", wide):
        count, length = struct.unpack_from("<QQ", tail, wide + 32)
    # Each is an entry of 46 bytes and a name; numpy's own extra field has 20.
    if count > MEMBERS or length > MEMBERS * 512:
        raise ValueError(f"it lists {count:,} arrays in {length:,} bytes, more than {MEMBERS:,}")


def _take(file: IO[bytes], key: str, dtype: np.dtype[Any], count: int) -> Array:
    """The next ``count`` elements, by way of small chunks: zipfile copies whatever it gives."""
    array = np.empty(count, dtype)
    raw = array.view(np.uint8) if array.nbytes else np.empty(0, np.uint8)
    at = 0
    while at < len(raw):
        data = file.read(min(_CHUNK_BYTES, len(raw) - at))
        if not data:
            raise EOFError(f"{key} ends {len(raw) - at:,} bytes early")
        raw[at : at + len(data)] = np.frombuffer(data, np.uint8)
        at += len(data)
    return array


def _expect_end(file: IO[bytes], key: str) -> None:
    """Reading past the end is what makes zipfile compare the checksum."""
    if file.read(1):
        raise ValueError(f"{key} goes on after its end")
