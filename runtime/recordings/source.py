"""What readers of recordings have in common: the fields that were found, and batches of them."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stategate.contract.errors import EpisodeError, StategateError
from stategate.contract.failures import failures
from stategate.contract.reading import printable
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import Map, Part

BLOCK_BYTES = 1 << 22
TYPICAL = 512
"""Messages of a field whose distances say what its usual one is."""
_SHOWN = 200
_MAGIC = b"\x89MCAP0\r\n"  # at both ends of a file


@dataclass(frozen=True, slots=True)
class Field:
    """Something that a recording holds at each of its moments."""

    name: str  # such as ``/joint_states.position`` or ``observation.state``
    kind: str  # what the recording calls its type
    dtype: str  # of its numbers
    shape: tuple[int, ...]  # at one moment
    count: int  # moments
    # usual time between two; None in recordings of rows, which have no times
    period_s: float | None = None
    elements: tuple[str, ...] = ()  # names of its elements, where the recording has them
    # whether the names come with each message, so that positions mean nothing
    by_name: bool = False


class Batch(NamedTuple):
    """Some moments of one part of the mapping, in the order of the recording."""

    part: int  # its place among the parts that were asked for
    times: Array  # int64 nanoseconds; numbers of rows where the recording has no times
    values: Array  # (moments, ...)


Block = list[Batch]
"""All that was recorded up to some message, or some rows of every part."""

Progress = Callable[[int], None]


@dataclass
class Steps:
    """Steps that follow one another, column by column."""

    episode: int  # number of the stretch without a reset or gap that they belong to
    frame: int  # number of the first one in it
    times: list[int]  # of each, nanoseconds since 1970
    # ``input.x``, ``output.y``, ``gate.g`` with ``(steps, elements)``; ``memory.h`` with root of
    # the mean square and largest element of a state; and ``step``, ``wrote``, ``fault``,
    # ``writes``, ``suppressed_writes`` with ``(steps,)``
    columns: dict[str, Array]

    @property
    def count(self) -> int:
        """Steps."""
        return len(self.times)


class Source(ABC):
    """An opened recording."""

    form = ""  # what it is, in words
    is_timed = False  # whether batches have times; else rows are steps, in blocks of every part
    rate_hz: float | None = None  # of its rows, if it says so
    settings = frozenset[str]()  # which of a map's ``time``, ``episode`` and ``order`` it follows

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # messages or rows in all; 0 where that is not known
        self.notes: list[str] = []  # what a reader of the result should know

    def clock_words(self, fields: Sequence[Field]) -> str:
        """Option that says which of its fields is the time, where it does not know."""
        return ""

    @abstractmethod
    def fields(self) -> list[Field]:
        """What is in it."""

    def follow(self, plan: Map, fields: list[Field]) -> list[Field]:
        """Take from a plan what times are; the fields, with usual times between two moments."""
        return fields

    @abstractmethod
    def episodes(
        self, parts: Sequence[Part], plan: Map, report: Progress
    ) -> Iterator[tuple[str, Iterator[Block]]]:
        """Name and blocks of each episode, one after the other."""


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn what a reading library raises into a sentence; ``form`` is what was expected."""
    try:
        yield
    except StategateError:
        raise
    except failures() as problem:  # libraries of others, and damaged files
        raise EpisodeError(
            f"{path} cannot be read",
            found=f"{type(problem).__name__}: {problem}",
            expected=form,
            remedy=_mend(path),
        ) from problem


def _mend(path: Path) -> str | None:
    """What helps against a file that begins as MCAP and does not end as it."""
    if path.suffix != ".mcap" or path.stat().st_size < len(_MAGIC):
        return None
    with path.open("rb") as file:
        begins = file.read(len(_MAGIC)) == _MAGIC
        file.seek(-len(_MAGIC), SEEK_END)
        is_cut = begins and file.read() != _MAGIC
    recover = f"mcap recover {shlex.quote(str(path))} -o whole.mcap"
    return f"it has no end, as after a loss of power: {recover}" if is_cut else None


def refuse(source: Source, what: str, fields: Sequence[Field], detail: str = "") -> EpisodeError:
    """An error with the table of what is in a recording, and a line to paste."""
    lines = [detail] * bool(detail) + table(fields, 18)
    return EpisodeError(
        what,
        found="\n".join(lines) or "no numbers",
        expected=f"fields of {source.path.name}; stategate episodes show {source.path} lists all",
        remedy=example(source, fields),
    )


def table(fields: Sequence[Field], most: int = _SHOWN) -> list[str]:
    """One line for each field."""
    rows = []
    for one in fields[:most]:
        rate = f"{1 / one.period_s:.4g} Hz" if one.period_s else "rows"
        names = f" {{{','.join(one.elements)}}}" if one.elements else ""
        shape = " x ".join(map(str, one.shape)) or "1"
        rows.append(
            printable(
                f"{one.name}: {shape} {one.dtype}, {one.count:,} at {rate}, {one.kind}{names}"
            )
        )
    return rows + [f"and {len(fields) - most} more fields"] * (len(fields) > most)


def example(source: Source, fields: Sequence[Field]) -> str:
    """Options that would take the first vector of a recording."""
    if not fields:
        return "record it with numbers in it"
    clock = source.clock_words(fields)
    named = [f for f in fields if not _is_clock(f, clock)] or fields
    one = max(named, key=lambda f: (f.dtype.startswith("float"), len(f.shape) == 1, f.by_name))
    part = Part(one.name, one.elements if one.by_name else ())
    words = [f"--map {shlex.quote(f'x={part}')}", *[clock] * bool(clock)]
    if source.rate_hz is None:
        words.append("--read rate_hz=50")
    return f"{' '.join(words)}, with your input's name for x"


def _is_clock(field: Field, clock: str) -> bool:
    """Whether a field is the time, and no input."""
    stamp = field.name.endswith((".stamp", ".timestamp", ".sec", ".nanosec", ".seconds", ".nanos"))
    return stamp or field.kind.startswith("timestamp") or f"time={field.name}[" in clock


def chosen(source: Source, fields: Sequence[Field], parts: Sequence[Part]) -> list[Field]:
    """The field of each part."""
    by_name = {one.name: one for one in fields}
    result = []
    for part in parts:
        one = by_name.get(part.field)
        if one is None:
            notes = "\n".join(note for note in source.notes if part.field in note)
            raise refuse(source, f"{source.path.name} has no field {part.field!r}", fields, notes)
        if one.by_name and not part.elements:
            raise EpisodeError(
                f"the elements of {part.field} stand in the order of each message",
                found=", ".join(one.elements),
                expected="their names, in the order that the model takes",
                remedy=f"--map {shlex.quote(f'x={Part(one.name, one.elements, part.unit)}')}",
            )
        unknown = [name for name in part.elements if name not in one.elements]
        if unknown:
            raise EpisodeError(
                f"{part.field} has no element of that name",
                found=", ".join(unknown),
                expected=", ".join(one.elements) or "no names: take the whole field",
            )
        result.append(one)
    return result


@dataclass
class Gather:
    """Single values of a field, gathered into batches."""

    name: str
    times: list[int] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    form: tuple[tuple[int, ...], Any] | None = None
    bytes: int = 0
    count: int = 0

    def add(self, time_ns: int, value: Array) -> bool:
        """One more; whether there is enough for a batch."""
        form = value.shape, value.dtype
        if self.form is None:
            self.form = form
        elif form != self.form:
            raise EpisodeError(
                f"{self.name} changes its shape or type in the recording",
                found=f"{form[1]} {list(form[0])} in message {self.count}",
                expected=f"{self.form[1]} {list(self.form[0])}, as before",
                remedy="cut the recording there, or map elements by name",
            )
        self.count += 1
        self.times.append(time_ns)
        self.values.append(value)
        self.bytes += value.nbytes
        return len(self.times) >= TYPICAL or self.bytes >= BLOCK_BYTES

    def take(self, part: int) -> Batch:
        """The batch."""
        batch = Batch(part, np.array(self.times, np.int64), np.stack(self.values))
        self.times, self.values, self.bytes = [], [], 0
        return batch


def period_of(times: Sequence[int]) -> float | None:
    """Usual time between two of them in seconds; None for fewer than two."""
    steps = np.abs(np.diff(np.asarray(times, np.int64)))
    return float(np.median(steps)) / 1e9 or None if len(steps) else None
