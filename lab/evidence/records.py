"""Results as files: strict rows in, one row a line out, each with the digest of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stategate.contract import canonical_json, sha256
from stategate.contract.durable import write_whole
from stategate.contract.errors import SpecError

R = TypeVar("R", bound=msgspec.Struct)


def digest_of(*question: Any) -> str:
    """Identity of a question: 16 hexadecimal digits over its canonical JSON."""
    return sha256(canonical_json(msgspec.to_builtins(question)))[:16]


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of a file; none where there is no file.

    Raises:
        SpecError: The file is not rows of that kind.
    """
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    except msgspec.MsgspecError as problem:
        raise SpecError(
            f"{path} does not hold results of this kind",
            found=problem,
            expected=f"a list of {kind.__name__}",
            remedy="take the file of the repository, or remove it and measure again",
        ) from problem


def write_rows(path: Path, rows: Iterable[R], order: Callable[[R], Any]) -> None:
    """Write all rows in order, whole or not at all."""
    lines = (msgspec.json.encode(row).decode() for row in sorted(rows, key=order))
    write_whole(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
