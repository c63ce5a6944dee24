"""Records in JSON files, read strictly, with one sentence for whatever is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stategate.contract.durable import write_whole
from stategate.contract.errors import StategateError
from stategate.contract.failures import failures
from stategate.contract.reading import RECORD_BYTES, decode_json, printable, read_bounded

T = TypeVar("T")


def load_record(
    path: str | Path,
    kind: type[T],
    error: type[StategateError],
    what: str,
    *,
    remedy: str | None = None,
    expected: str | None = None,
    version: int | None = None,
    version_key: str = "version",
) -> T:
    """Read a record."""
    try:
        raw = read_bounded(path, RECORD_BYTES)
        # Judged before the schema: a newer record deserves its own message.
        found = decode_json(raw, dict[str, Any]).get(version_key, version) if version else version
        if found == version:
            return decode_json(raw, kind)
    except failures(OSError, msgspec.MsgspecError) as problem:
        raise error(
            f"{what} cannot be read",
            found=f"{path}: {problem}",
            expected=expected,
            remedy=remedy,
        ) from problem
    newer = isinstance(found, int) and found > (version or 0)
    raise error(
        f"{what} is of another version",
        found=f"{printable(repr(found))} in {path}",
        expected=version,
        remedy="upgrade stategate" if newer else remedy,
    )


def canonical_json(record: Any) -> bytes:
    """The one way a record is written: sorted keys, two-space indent, a final newline."""
    raw = msgspec.json.encode(record, order="sorted")
    return msgspec.json.format(raw, indent=2) + b"\n"


def save_record(record: Any, path: str | Path) -> None:
    """Write a record as `canonical_json`, whole or not at all; `ResultError` if it does not go."""
    write_whole(Path(path), canonical_json(record))
