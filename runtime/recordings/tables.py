"""Tables: CSV and Parquet, read and written a block of rows at a time."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import UNITS, Map, Part
from stategate.runtime.recordings.source import (
    TYPICAL,
    Batch,
    Block,
    Field,
    Progress,
    Source,
    chosen,
    period_of,
    reading,
)

try:
    import pyarrow
    from pyarrow import csv, parquet
except ImportError as missing:
    raise MissingDependencyError("pyarrow", "recordings") from missing

_ROWS = 4096


def column(name: str, values: Any) -> Array:
    """A column of a batch as an array, ``(rows, ...)``."""
    if values.null_count:
        raise EpisodeError(
            f"column {name!r} has empty cells",
            found=f"{values.null_count} in a block of {len(values)} rows",
            expected="a number in each row",
            remedy="cut these rows out, and split the table there: a gap is filled by nobody",
        )
    if isinstance(values, pyarrow.ExtensionArray):
        values = values.storage
    kind = values.type
    if pyarrow.types.is_timestamp(kind):
        array: Array = values.cast(pyarrow.timestamp("ns")).cast(pyarrow.int64()).to_numpy()
        return array
    if isinstance(values, pyarrow.FixedSizeListArray | pyarrow.ListArray | pyarrow.LargeListArray):
        lengths = (
            {kind.list_size}
            if hasattr(kind, "list_size")
            else set(values.value_lengths().to_pylist())
        )
        if len(lengths) != 1:
            raise EpisodeError(
                f"the lists of column {name!r} differ in length", found=sorted(lengths)[:8]
            )
        rows = column(name, values.flatten())
        return rows.reshape(len(values), lengths.pop(), *rows.shape[1:])
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "biuf":
        raise EpisodeError(f"column {name!r} holds no numbers", found=str(kind))
    return array


class Table(Source):
    """Files of one table, row by row."""

    settings = frozenset({"time", "episode"})

    def __init__(self, path: Path, files: Sequence[Path], form: str) -> None:
        super().__init__(path)
        self._files, self.form = files, form
        self.elements: dict[str, tuple[str, ...]] = {}

    def _blocks(self, columns: list[str] | None) -> Iterator[Any]:
        with reading(self.path, "a table whose columns keep their types"):
            for file in self._files:
                if file.suffix == ".csv":
                    options = csv.ConvertOptions(include_columns=columns or [])
                    with csv.open_csv(file, convert_options=options) as reader:
                        for block in reader:
                            if block.num_rows:
                                yield block
                else:
                    with parquet.ParquetFile(file) as opened:
                        yield from opened.iter_batches(_ROWS, columns=columns)

    def fields(self) -> list[Field]:
        """Columns of numbers, by the first block; rows of CSV are counted by reading them."""
        result: list[Field] = []
        first: Any = None
        self.size = 0
        for block in self._blocks(None):
            first = block if first is None else first
            self.size += block.num_rows
        for name in first.schema.names if first is not None else ():
            try:
                values = column(name, first.column(name).slice(0, TYPICAL))
            except EpisodeError as problem:
                self.notes.append(problem.reason)
                continue
            kind = str(first.schema.field(name).type)
            shape, elements = values.shape[1:], self.elements.get(name, ())
            named = elements if elements and shape == (len(elements),) else ()
            dtype = str(values.dtype)
            result.append(Field(name, kind, dtype, shape, self.size, None, named))
        return result

    def episodes(
        self, parts: Sequence[Part], plan: Map, report: Progress
    ) -> Iterator[tuple[str, Iterator[Block]]]:
        """One, or as many as a column of numbers of episodes has runs."""
        fields = self.fields()
        columns = chosen(self, fields, parts)
        names = list(dict.fromkeys(one.name for one in columns))
        clock = self._clock(plan, fields)
        marks = self._marks(plan, fields)
        keys = list(dict.fromkeys([*names, *marks, *([clock.field] if clock else [])]))
        runs = _runs(self._blocks(keys), marks[0] if marks else None, report)
        for number, run in groupby(runs, itemgetter(0)):
            name = self.path.stem if number is None else f"{self.path.stem}-episode-{number}"
            yield name, self._batches((block for _, block in run), parts, columns, clock)

    def follow(self, plan: Map, fields: list[Field]) -> list[Field]:
        """See `Source.follow`."""
        clock = self._clock(plan, fields)
        self.is_timed = clock is not None
        if clock is None:
            return fields
        first = next(self._blocks([clock.field]))
        period = period_of(_times(clock, first)[:TYPICAL].tolist())
        return [replace(one, period_s=period) for one in fields]

    def _clock(self, plan: Map, fields: list[Field]) -> Part | None:
        """The column of times, with its unit."""
        if plan.time == "rows" or (not plan.time and self.rate_hz):
            return None
        by_name = {one.name: one for one in fields}
        try:
            clock = Part.parse(plan.time or "?")
        except ValueError:
            clock = Part("?")
        one = by_name.get(clock.field)
        stamped = one is not None and one.kind.startswith("timestamp")
        if one is None or not (stamped or UNITS.get(clock.unit, "")[:1] == ("time",)):
            names = [f.name for f in fields if not f.shape]
            like = next((n for n in names if _like_time(n)), "t")
            raise EpisodeError(
                f"which column of {self.path.name} is the time?",
                found=plan.time or ", ".join(names[:20]),
                expected=f"a column with its unit, such as {like}[s], {like}[ms] or {like}[ns]; or "
                "rows, where each row is a step",
                remedy=f"--read 'time={like}[s]'",
            )
        return Part(clock.field, unit="ns" if stamped else clock.unit)

    def clock_words(self, fields: Sequence[Field]) -> str:
        """``--read`` with the column that looks like a time, or that rows are steps."""
        if self.rate_hz:
            return ""
        like = next((f for f in fields if not f.shape and _like_time(f.name)), None)
        if like is None:
            return "--read time=rows"
        unit = next((u for u in ("ns", "us", "ms") if re.search(rf"(^|[^a-z]){u}$", like.name)), "")
        if not unit and not like.kind.startswith("timestamp"):
            first = column(like.name, next(self._blocks([like.name])).column(like.name))
            # By size, if they count from 1970; else seconds.
            digits = np.log10(max(1.0, abs(float(first[0]))))
            unit = "ns" if digits > 17 else "us" if digits > 14 else "ms" if digits > 11 else "s"
        return f"--read {shlex.quote(f'time={Part(like.name, unit=unit)}')}"

    def _marks(self, plan: Map, fields: list[Field]) -> list[str]:
        if plan.episode and plan.episode not in [one.name for one in fields]:
            raise EpisodeError(
                f"{self.path.name} has no column {plan.episode!r}",
                expected=", ".join(one.name for one in fields),
            )
        return [plan.episode] if plan.episode else []

    def _batches(
        self, blocks: Iterator[Any], parts: Sequence[Part], columns: list[Field],
        clock: Part | None,
    ) -> Iterator[Block]:  # fmt: skip
        row = 0
        for block in blocks:
            times = np.arange(row, row + block.num_rows, dtype=np.int64)
            row += block.num_rows
            if clock is not None:
                times = _times(clock, block)
            arrays = {n: column(n, block.column(n)) for n in {one.name for one in columns}}
            block_of_parts = []
            for i, (part, one) in enumerate(zip(parts, columns, strict=True)):
                values = arrays[one.name]
                if part.elements:
                    values = values[:, [one.elements.index(name) for name in part.elements]]
                block_of_parts.append(Batch(i, times, values))
            yield block_of_parts


def _like_time(name: str) -> bool:
    return bool(re.search(r"time|stamp|(^|[^a-z])t($|[^a-z])", name.lower()))


def _times(clock: Part, block: Any) -> Array:
    """A column of times as nanoseconds; whole numbers stay exact."""
    times = column(clock.field, block.column(clock.field))
    if not np.isfinite(times).all():
        raise EpisodeError(f"a time of {clock.field} is not finite")
    scale = round(UNITS[clock.unit][1] * 1e9)
    rough = times.dtype == np.float32
    times = times.astype(np.int64 if times.dtype.kind in "biu" else np.float64)
    far = np.abs(times.astype(np.float64)).max(initial=0.0) * scale
    if far >= 2.0**63:
        raise EpisodeError(
            f"the times of {clock} are too far from 1970",
            found=f"{far / scale:g} {clock.unit}, {far / 3.156e16:,.0f} years",
            expected="the unit in which they were recorded",
            remedy=f"--read 'time={clock.field}[ns]', or us or ms",
        )
    if rough and far * 2.0**-24 > 1e5:
        raise EpisodeError(
            f"the times of {clock} have too few digits",
            found=f"float32, {far * 2.0**-23:g} ns apart", expected="float64, or whole numbers",
        )  # fmt: skip
    scaled = times * scale if times.dtype.kind == "i" else np.round(times * float(scale))
    nanoseconds: Array = scaled.astype(np.int64)
    return nanoseconds


def _runs(
    blocks: Iterator[Any], mark: str | None, report: Progress
) -> Iterator[tuple[int | None, Any]]:
    """Blocks of a table, cut where the number of the episode changes, each with its number."""
    done, earlier, last = 0, set[int](), None
    for block in blocks:
        if mark is None:
            yield None, block
        else:
            numbers = column(mark, block.column(mark))
            if not np.array_equal(numbers, numbers.astype(np.int64)):
                raise EpisodeError(
                    f"the numbers of episodes in {mark!r} are not whole",
                    found=numbers[:4], expected="whole numbers, such as 0, 0, 1",
                )  # fmt: skip
            edges = np.flatnonzero(np.diff(numbers)) + 1
            for first, end in zip([0, *edges], [*edges, len(numbers)], strict=True):
                number = int(numbers[first])
                if number != last and number in earlier:
                    raise EpisodeError(
                        f"rows of episode {number} stand in two places",
                        expected="the rows of an episode one after the other",
                    )
                earlier.add(number)
                last = number
                yield number, block.slice(int(first), int(end - first))
        done += block.num_rows
        report(done)


class TableWriter:
    """A Parquet file that is written block by block.

    Args:
        path: The file; its folder is made.
        facts: What the file says of itself.
    """

    def __init__(self, path: Path, facts: Mapping[str, str] | None = None) -> None:
        self._path, self._facts = path, facts or {}
        self._writer: Any = None

    def add(self, columns: Mapping[str, Array | list[Any]]) -> None:
        """More rows: numbers ``(rows,)`` or ``(rows, elements)``, or lists of anything else."""
        arrays = {}
        for name, rows in columns.items():
            if isinstance(rows, list):
                arrays[name] = pyarrow.array(rows)
                continue
            flat = pyarrow.array(np.ascontiguousarray(rows).reshape(-1))
            wide = rows.ndim > 1
            arrays[name] = (
                pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]) if wide else flat
            )
        table = pyarrow.table(arrays).replace_schema_metadata(self._facts)
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is not None:
            self._writer.close()


def rows_of(files: Sequence[Path]) -> int:
    """Rows of Parquet files, by their ends."""
    return sum(parquet.read_metadata(file).num_rows for file in files)


def open_table(path: Path) -> Table:
    """A CSV or Parquet file."""
    return Table(path, [path], f"a table ({path.suffix[1:].lower()})")
