"""The record file gives back what was committed, in order and without a hole, whatever ended it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stategate.contract.errors import SnapshotDamagedError, SnapshotError
from stategate.runtime.keep.medium import FileMedium
from stategate.runtime.keep.records import (
    BLOCK_BYTES,
    Header,
    Record,
    RecordFile,
    RecordReader,
)

DIGEST = "ab" * 32


class Power(Exception):
    """The power went."""


class Memory:
    """A medium that loses its power after so many bytes, and writes that are in `lost`."""

    def __init__(
        self, header: Header, dies_after: int | None = None, lost: frozenset[int] = frozenset()
    ):
        self.data = bytearray(header.file_bytes)
        self.data[:BLOCK_BYTES] = header.encode()
        self.size_bytes = len(self.data)
        self.bytes_left, self.lost, self.writes = dies_after, lost, 0

    def read(self, at: int, count: int) -> bytes:
        return bytes(self.data[at : at + count])

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        data = bytes(data)
        self.writes += 1
        if self.writes - 1 in self.lost:
            return
        if self.bytes_left is not None and self.bytes_left < len(data):
            self.data[at : at + self.bytes_left] = data[: self.bytes_left]
            self.bytes_left = 0
            raise Power
        if self.bytes_left is not None:
            self.bytes_left -= len(data)
        self.data[at : at + len(data)] = data

    def sync(self) -> None: ...

    def close(self) -> None: ...


records = st.lists(
    st.tuples(st.integers(0, 9000), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40
)


def payload(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "little") * (size // 4 + 1))[:size]


def fill(file: RecordFile, plan: list[tuple[int, bool, int]], start: int) -> list[bytes]:
    """Append records numbered from `start`; what was appended when the power went, or all."""
    done: list[bytes] = []
    for number, (size, flushes, kind) in enumerate(plan, start):
        done.append(payload(number, size))
        try:
            file.append(kind, number, done[-1])
            if flushes:
                file.flush()
        except Power:
            break
    return done


def read(medium: Memory) -> list[list[Record]]:
    reader = RecordReader(medium)
    return [list(reader.records(run)) for run in reader.runs]


def check(medium: Memory, appended: list[bytes]) -> None:
    """Every run is a stretch of what was appended, each record as it was."""
    for run in read(medium):
        numbers = [record.step for record in run]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        assert all(record.payload == appended[record.step] for record in run)


@settings(deadline=None, max_examples=40)
@given(records, st.integers(4, 12), st.integers(0, 60 * BLOCK_BYTES), records)
def test_what_is_read_after_a_torn_write_is_a_stretch_of_what_was_appended(
    plan: list[tuple[int, bool, int]],
    blocks: int,
    dies_after: int,
    more: list[tuple[int, bool, int]],
) -> None:
    header = Header(blocks, 7, 1, DIGEST)
    medium = Memory(header, dies_after)
    appended = fill(RecordFile(medium, header), plan, 0)
    check(medium, appended)
    # A second process goes on with what it finds, and what it appends is there too.
    medium.bytes_left = None
    file = RecordFile.resume(medium, lambda _: None)
    start = len(appended)
    again = fill(file, more, start)
    file.flush()
    after = read(medium)
    tail = after[-1][-1]
    assert (tail.step, tail.payload) == (start + len(again) - 1, again[-1])


@settings(deadline=None, max_examples=25)
@given(records, st.frozensets(st.integers(0, 60), max_size=5), st.integers(4, 12))
def test_blocks_that_never_reached_the_medium_end_a_run_and_are_not_jumped(
    plan: list[tuple[int, bool, int]], lost: frozenset[int], blocks: int
) -> None:
    header = Header(blocks, 7, 1, DIGEST)
    medium = Memory(header, lost=lost)
    check(medium, fill(RecordFile(medium, header), plan, 0))


def test_a_record_file_is_held_by_one_process_and_is_not_read_where_it_is_damaged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "box"
    file = RecordFile.create(path, blocks=4, bundle_sha256=DIGEST, purpose=1)
    with pytest.raises(SnapshotError, match="in use"):
        FileMedium(path)
    file.close()
    FileMedium(path).close()
    raw = path.read_bytes()
    for wrong in (b"", b"text", raw[:100], raw[:20] + b"\xff" + raw[21:], raw[:-1]):
        path.write_bytes(wrong)
        with pytest.raises(SnapshotDamagedError):
            RecordReader(FileMedium(path))
    path.write_bytes(raw[:8] + b"\x02" + raw[9:])
    with pytest.raises(SnapshotError, match="upgrade"):
        RecordReader(FileMedium(path))
