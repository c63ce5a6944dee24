"""The fleet's table: a parquet file for each state of a robot's folder, with the ledger's columns.

A row is a robot's ledger at one moment, a recording that it brought home, or what could not be
read. A file is named by the digest of what it was made of, so that whatever is collected twice is
the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stategate.contract.errors import ResultError
from stategate.runtime.base.ledger import Ledger

PARTS = "robots"
_MAP = pa.map_(pa.string(), pa.int64())
_COUNTERS = {f.name: _MAP if f.type.startswith("dict") else pa.int64() for f in fields(Ledger)}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What the table says beside the counters."""

    robot: str  # its name: that of its folder
    kind: str  # snapshot, journal, retired, metrics, recording or problem
    place: str  # file, from the robot's folder
    sha256: str  # of that file
    state: str = ""  # of the robot's folder: the digest of all that was read then; the file's name
    model: str = ""  # its name
    bundle_sha256: str = ""  # whose memory it is
    clock: str = ""  # what seconds count from; only rows of one clock tell a rate
    seconds: float | None = None  # when it was
    rate_hz: float | None = None  # steps a second that the bundle is made for
    target: str = ""  # device that it is made for
    writes_per_1000_steps: float | None = None  # budget of the bundle
    expected: dict[str, float] = {}  # share of steps that each gate opens in, of calibration
    problem: str = ""  # what cannot be read, in words
    ledger: Ledger = Ledger()


_KINDS = {"str": pa.string(), "float | None": pa.float64()}
_KINDS["dict[str, float]"] = pa.map_(pa.string(), pa.float64())
_OWN = {n: _KINDS[k] for n, k in Row.__annotations__.items() if n not in ("state", "ledger")}
_SCHEMA = pa.schema([*_OWN.items(), *_COUNTERS.items()])


def to_parquet(rows: Sequence[Row]) -> bytes:
    """The bytes of a file: equal for equal rows in one version of pyarrow."""
    flat = []
    for row in rows:
        record: dict[str, Any] = msgspec.structs.asdict(row)
        ledger = record.pop("ledger")
        record.pop("state")
        record |= {name: getattr(ledger, name) for name in _COUNTERS}
        maps = {n: list(v.items()) for n, v in record.items() if isinstance(v, dict)}
        flat.append(record | maps)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(flat, _SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())


def rows_in(folder: Path) -> Iterator[Row]:
    """All rows of a fleet's folder, in the order of their files' names."""
    parts = sorted((folder / PARTS).glob("*.parquet"))
    if not parts:
        raise ResultError(
            f"{folder} holds no fleet",
            expected=f"files {PARTS}/*.parquet",
            remedy=f"stategate fleet collect ROBOTS --out {folder}",
        )
    for part in parts:
        try:
            table = pq.read_table(part)
            # A later version's columns are left out, an earlier one's are zero.
            records = table.select([n for n in table.column_names if n in _SCHEMA.names])
            for record in records.to_pylist():
                counters: dict[str, Any] = {}
                for name, kind in _COUNTERS.items():
                    value = record.pop(name, None)
                    counters[name] = dict(value or ()) if kind == _MAP else value or 0
                expected = dict(record.pop("expected", None) or ())
                ledger = Ledger(**counters)
                yield Row(**record, expected=expected, ledger=ledger, state=part.stem)
        except (pa.ArrowException, OSError, TypeError, ValueError) as problem:
            raise ResultError(
                f"{part.name} is no table of a fleet",
                found=str(problem).splitlines()[0],
                remedy=f"remove {part}, and collect again: it is written anew",
            ) from problem
