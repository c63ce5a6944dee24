"""Files that a stranger may have written: looked at before they are read, and read strictly.

Every loader comes through here. A path may name a pipe, a device, or a file of 200 GB that takes no
room on the disk; a record may say one thing twice, or hide an escape sequence in a name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

T = TypeVar("T")

RECORD_BYTES = 1 << 26
"""Of a record in JSON. A manifest with 20,000 states has 8 MB; the parsed form takes ten times as
much memory as the text, and 64 MiB of text are what a small device can still take."""

FILE_BYTES = 1 << 32
"""Of any other file. An ONNX graph holds 2 GiB at most, an array that is loaded whole 4 GiB."""

LINE_CHARACTERS = 200
"""Of one value in a table; what is longer is cut, and is whole in ``--json``."""

_CHUNK_BYTES = 1 << 20
# What moves the cursor, breaks a line, turns the direction of writing (Unicode TR 9), or is half a
# character.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def open_regular(path: str | Path, limit: int = FILE_BYTES) -> BinaryIO:
    """Open a file for reading, if it is one and no larger than ``limit`` bytes."""
    # Opening alone makes some devices do something, so the kind is asked before and after.
    _check_kind(Path(path).stat(), limit)
    # The file closes its descriptor once; by hand it could be another one's, if interrupted.
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    try:
        _check_kind(os.fstat(file.fileno()), limit)
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_kind(status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(f"it is {kind} and not a file")
    if status.st_size > limit:
        raise OSError(f"it has {status.st_size:,} bytes, and at most {limit:,} are read")


def read_bounded(path: str | Path, limit: int = FILE_BYTES) -> bytes:
    """All bytes of a file, if it is one and holds no more than ``limit``."""
    with open_regular(path, limit) as file:
        size = os.fstat(file.fileno()).st_size  # asking for more would allocate more
        raw = file.read(size + 1)
    if len(raw) > size:
        raise OSError(f"it grew past its {size:,} bytes while it was read")
    return raw


def file_sha256(path: str | Path, limit: int = FILE_BYTES) -> tuple[str, int]:
    """Hex digest and size in bytes of a file, in constant memory."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path, limit) as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise OSError(f"it grew past {limit:,} bytes while it was read")
            digest.update(chunk)
    return digest.hexdigest(), size


def decode_json(raw: bytes, kind: type[T], free: tuple[str, ...] = ()) -> T:
    """A record of JSON that says everything once, and nothing that a terminal would obey."""
    try:
        record = msgspec.json.decode(raw, type=kind)
        plain = json.loads(raw, object_pairs_hook=_without_repeats)
        controlled = text_with_controls(plain, free)
    except msgspec.MsgspecError:
        raise
    except RecursionError as problem:
        raise msgspec.DecodeError("it is nested too deeply") from problem
    except ValueError as problem:  # not UTF-8, or a number of thousands of digits
        raise msgspec.DecodeError(str(problem)) from problem
    if controlled is not None:
        raise msgspec.ValidationError(f"a control character in {printable(controlled)}")
    return record


def read_json(path: Path, kind: type[T], limit: int = RECORD_BYTES) -> T:
    """A record in a file; see `decode_json`."""
    return decode_json(read_bounded(path, limit), kind)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise msgspec.ValidationError(f"two values under the key {printable(twice)}")
    return record


def text_with_controls(record: Any, free: tuple[str, ...] = ()) -> str | None:
    """The first text of a record, keys included, with a character that a terminal would obey."""
    if isinstance(record, dict):
        record = {key: None if key in free else value for key, value in record.items()}
    return next((text for text in _texts(record) if _CONTROLS.search(text)), None)


def _texts(record: Any) -> Iterator[str]:
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict):
        for key, value in record.items():
            yield key
            yield from _texts(value)
    elif isinstance(record, (list, tuple)):
        for item in record:
            yield from _texts(item)


def printable(text: object, longest: int = LINE_CHARACTERS) -> str:
    """A text on one line, in which nothing moves the cursor, colours, or turns the direction."""
    whole = str(text)
    shown = _CONTROLS.sub(_escaped, whole[:longest])
    return shown if len(whole) <= longest else f"{shown}... ({len(whole):,} characters)"


def _escaped(control: re.Match[str]) -> str:
    return control.group().encode("unicode_escape").decode()
