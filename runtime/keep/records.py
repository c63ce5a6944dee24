"""The record file: a file of fixed size that a process can be killed over at any byte.

It is a ring, filled block by block; a block that went to the medium is not touched again until the
ring comes around to it. All integers are little endian::

    block 0, the header: magic (8) | version | bytes of a block | blocks | 1, for a ring | life
        | purpose (each u32) | SHA-256 of the bundle (32) | zeros | CRC-32 (u32)
    block 1 + sequence % blocks: CRC-32 (u32) | life (u32) | sequence (u64)
        | CRC-32 of the block before (u32) | bytes in use (u16)
        | where the first record begins in it, or 0 (u16) | zeros (8) | records
    record: payload bytes (u32) | kind (u16) | flags (u16) | step (u64) | payload | up to 15 bytes,
        so that records begin at multiples of 16

A record goes on in the next block where it does not fit. A block counts where its checksum, its
life and its place are right; it follows another where its number does and it names that one's
checksum. So a torn block, one of an earlier round, of an earlier file in the same place, or one
that reached the medium before a block that never did, is not mistaken for what came next.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from stategate.contract.durable import whole_file
from stategate.contract.errors import SnapshotDamagedError, SnapshotError
from stategate.runtime.keep.medium import FileMedium

BLOCK_BYTES = 4096
MAGIC = b"SGREC\r\n\x1a"  # \r\n: a transfer in text mode breaks it visibly
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIIIII32s")
_BLOCK = struct.Struct("<IIQIHH8x")
_RECORD = struct.Struct("<IHHQ")
_CRC = struct.Struct("<I")
_ALIGN = 16  # so that no head of a record is split between two blocks
ROOM = BLOCK_BYTES - _BLOCK.size
"""Bytes of records in one block."""


def stored_bytes(payload_bytes: int) -> int:
    """What a record takes in its blocks."""
    return -(-(_RECORD.size + payload_bytes) // _ALIGN) * _ALIGN


@dataclass(frozen=True, slots=True)
class Header:
    """What a record file says about itself."""

    blocks: int  # blocks of 4 KiB for records
    life: int  # drawn by chance for each file, and named by each of its blocks
    purpose: int  # number of what it is for, so that no file is read as another kind
    bundle_sha256: str  # SHA-256 of the bundle, or of what of it counts for the owner

    @property
    def file_bytes(self) -> int:
        """Of the whole file, this header included."""
        return (1 + self.blocks) * BLOCK_BYTES

    def encode(self) -> bytes:
        """The header's block."""
        fields = (MAGIC, FORMAT_VERSION, BLOCK_BYTES, self.blocks, 1, self.life)
        raw = _HEADER.pack(*fields, self.purpose, bytes.fromhex(self.bundle_sha256))
        raw = raw.ljust(BLOCK_BYTES - _CRC.size, b"\0")
        return raw + _CRC.pack(crc32(raw))


@dataclass(frozen=True, slots=True)
class Record:
    """One record."""

    kind: int  # what it is; its owner knows
    step: int  # of the session, when it was appended
    payload: bytes  # its bytes
    flags: int  # sixteen bits of its owner
    block: int  # number of the block in which it begins


class RecordFile:
    """Appends records to a medium that has a header; see `create` and `resume`.

    After an OSError what was appended since the last block that went out is lost, and later blocks
    do not follow those before it: readers see the gap.

    Attributes:
        header: Of the file.
        medium: What it is written to.
    """

    def __init__(
        self,
        medium: FileMedium,
        header: Header,
        sequence: int = 0,
        before_crc: int = 0,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        """See `create` and `resume`; ``count`` gets bytes before they go to the medium."""
        self.header, self.medium = header, medium
        self._sequence, self._before_crc, self._count = sequence, before_crc, count
        self._block = bytearray(BLOCK_BYTES)
        self._view = memoryview(self._block)
        self._first = 0
        self._at = _BLOCK.size

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        blocks: int,
        bundle_sha256: str,
        purpose: int,
        count: Callable[[int], None] = lambda _: None,
    ) -> RecordFile:
        """Make a file of ``1 + blocks`` blocks of 4 KiB, allocated on the disk, and open it.

        What is at ``path`` is replaced, whole or not at all. An OSError passes: a disk that is too
        full says so here and not in the middle of a run.
        """
        life = int.from_bytes(os.urandom(4), "little")
        header = Header(blocks, life, purpose, bundle_sha256)
        count(BLOCK_BYTES)
        with whole_file(Path(path)) as file:
            file.write(header.encode())
            file.flush()
            file.truncate(header.file_bytes)
            if sys.platform != "darwin":
                os.posix_fallocate(file.fileno(), 0, header.file_bytes)
        return cls(FileMedium(path), header, count=count)

    @classmethod
    def resume(cls, medium: FileMedium, count: Callable[[int], None]) -> RecordFile:
        """Go on after the newest block that is there."""
        reader = RecordReader(medium)
        last = reader.runs[-1].last if reader.runs else -1
        before_crc = reader.crc_of(last) if last >= 0 else 0
        return cls(medium, reader.header, last + 1, before_crc, count)

    @property
    def next_block(self) -> int:
        """Number of the block that is being filled."""
        return self._sequence

    def append(
        self, kind: int, step: int, payload: bytes | bytearray | memoryview, flags: int = 0
    ) -> None:
        """Add a record; blocks that it fills go to the medium, and nothing else is called."""
        size = len(payload)
        at = self._at
        end = at + _RECORD.size + size
        if end > BLOCK_BYTES or at == BLOCK_BYTES:
            self._append_across(kind, step, payload, flags)
            return
        block = self._block
        _RECORD.pack_into(block, at, size, kind, flags, step)
        block[at + _RECORD.size : end] = payload
        # Last, so that an exception of a signal's handler leaves the record whole or not there.
        self._first = self._first or at
        self._at = -(-end // _ALIGN) * _ALIGN

    def _append_across(
        self, kind: int, step: int, payload: bytes | bytearray | memoryview, flags: int
    ) -> None:
        if _RECORD.size + len(payload) > (self.header.blocks - 1) * ROOM:
            raise SnapshotError(
                "the record file has no room for this record",
                found=f"{len(payload)} bytes",
                remedy="make the file larger",
            )
        if self._at == BLOCK_BYTES:
            self.flush()
        rest = memoryview(payload)
        at = self._at
        _RECORD.pack_into(self._block, at, len(rest), kind, flags, step)
        self._first = self._first or at
        at += _RECORD.size
        while True:
            part = rest[: BLOCK_BYTES - at]
            end = at + len(part)
            self._block[at:end] = part
            rest = rest[len(part) :]
            if not rest:
                self._at = -(-end // _ALIGN) * _ALIGN
                return
            self._at = BLOCK_BYTES
            self.flush()
            at = _BLOCK.size

    def flush(self, sync: bool = False) -> None:
        """Send the block that is being filled; what follows begins in a new one."""
        if self._at > _BLOCK.size:
            self._send()
        if sync:
            self.medium.sync()

    def _send(self) -> None:
        block, used, sequence, header = self._block, self._at, self._sequence, self.header
        block[used:] = bytes(BLOCK_BYTES - used)
        _BLOCK.pack_into(block, 0, 0, header.life, sequence, self._before_crc, used, self._first)
        crc = crc32(self._view[_CRC.size :])
        _CRC.pack_into(block, 0, crc)
        # A number is used once, even where the write fails or a signal's handler ends it half-way.
        self._sequence, self._before_crc = sequence + 1, 0
        self._first = 0
        self._at = _BLOCK.size
        self._count(BLOCK_BYTES)
        self.medium.write((1 + sequence % header.blocks) * BLOCK_BYTES, self._view)
        self._before_crc = crc

    def close(self) -> None:
        """Send what is left, and close the medium; a second call does nothing."""
        try:
            self.flush()
        finally:
            self.medium.close()


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks from number ``first`` to ``last``, without a gap."""

    first: int
    last: int


class RecordReader:
    """What is on a medium; nothing of it is believed before its checksum is right.

    Attributes:
        header: Of the file.
        runs: Blocks without a gap, the oldest run first.
        damaged: Places of blocks, from 0, that hold something and neither a block nor zeros.
    """

    def __init__(self, medium: FileMedium) -> None:
        self._medium = medium
        self.header = read_header(medium)
        self._crcs: dict[int, int] = {}
        before: dict[int, int] = {}
        self.damaged: list[int] = []
        for place in range(self.header.blocks):
            raw = self._medium.read((1 + place) * BLOCK_BYTES, BLOCK_BYTES)
            sequence = self._check(raw, place)
            if sequence is not None:
                self._crcs[sequence], _, _, before[sequence], _, _ = _BLOCK.unpack_from(raw)
            elif any(raw):
                self.damaged.append(place)
        self.runs: list[Run] = []
        for sequence in sorted(self._crcs):
            last = self.runs[-1].last if self.runs else -2
            if sequence == last + 1 and before[sequence] == self._crcs[last]:
                self.runs[-1] = Run(self.runs[-1].first, sequence)
            else:
                self.runs.append(Run(sequence, sequence))

    def _check(self, raw: bytes, place: int) -> int | None:
        """The number of the block in a place; None where there is none of this file."""
        if len(raw) < BLOCK_BYTES:
            return None
        crc, life, sequence, _, used, first = _BLOCK.unpack_from(raw)
        is_own = life == self.header.life and sequence % self.header.blocks == place
        has_sense = max(_BLOCK.size, first) <= used <= BLOCK_BYTES
        if not (is_own and has_sense) or crc != crc32(memoryview(raw)[_CRC.size :]):
            return None
        return int(sequence)

    def crc_of(self, sequence: int) -> int:
        """The checksum of a block that is there."""
        return self._crcs[sequence]

    def records(self, run: Run) -> Iterator[Record]:
        """The whole records of a run, in their order, read block by block."""
        pending: tuple[int, int, int, int] | None = None  # kind, step, flags, block
        parts = bytearray()
        missing = 0
        for sequence in range(run.first, run.last + 1):
            raw = self._medium.read((1 + sequence % self.header.blocks) * BLOCK_BYTES, BLOCK_BYTES)
            _, _, _, _, used, first = _BLOCK.unpack_from(raw)
            at = _BLOCK.size
            if pending is not None:
                end = min(at + missing, used)
                goes_on = first == 0 or first >= end
                if goes_on:
                    parts += raw[at:end]
                    missing -= end - at
                if goes_on and missing == 0:
                    kind, step, flags, block = pending
                    yield Record(kind, step, bytes(parts), flags, block)
                if missing == 0 or not goes_on:  # its end was never written
                    pending = None
            at = first or used
            while at + _RECORD.size <= used:
                size, kind, flags, step = _RECORD.unpack_from(raw, at)
                at += _RECORD.size
                if at + size > used:
                    pending, parts = (kind, step, flags, sequence), bytearray(raw[at:used])
                    missing = size - (used - at)
                    break
                yield Record(kind, step, raw[at : at + size], flags, sequence)
                at = -(-(at + size) // _ALIGN) * _ALIGN


def read_header(medium: FileMedium) -> Header:
    """The header of a record file."""
    raw = medium.read(0, BLOCK_BYTES)
    if len(raw) < BLOCK_BYTES or not raw.startswith(MAGIC):
        raise SnapshotDamagedError(
            "this is no record file", found=f"{medium.size_bytes} bytes, starting with {raw[:8]!r}"
        )
    _, version, block_bytes, blocks, ring, life, purpose, digest = _HEADER.unpack_from(raw)
    if version > FORMAT_VERSION:
        raise SnapshotError(
            "the record file is of another format",
            found=f"version {version}",
            expected=f"version {FORMAT_VERSION}",
            remedy="upgrade stategate here",
        )
    if _CRC.unpack(raw[-_CRC.size :])[0] != crc32(raw[: -_CRC.size]):
        raise SnapshotDamagedError(
            "the header of the record file is damaged", found="a checksum that does not match"
        )
    header = Header(blocks, life, purpose, digest.hex())
    is_whole = block_bytes == BLOCK_BYTES and blocks > 0 and medium.size_bytes >= header.file_bytes
    if ring != 1 or not is_whole:
        raise SnapshotDamagedError(
            "the record file is cut off, or of another kind",
            found=f"{medium.size_bytes} bytes",
            expected=f"a ring of {header.file_bytes} bytes",
            remedy="copy the whole file again",
        )
    return header
