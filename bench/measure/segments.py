"""What has been measured so far, on disk in pieces, so that a killed measurement goes on.

``DIR/bench.part/plan.json`` says what is being measured; ``segment-0000.bin`` and so on hold a few
seconds of bursts each. A segment is whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stategate.bench.record import Moment
from stategate.contract.durable import try_lock, write_whole
from stategate.contract.errors import ResultError
from stategate.contract.reading import read_bounded

Array = NDArray[Any]


class Burst(msgspec.Struct, frozen=True):
    """One burst of one subject; the loop that steps nothing has no more than its times."""

    round: int  # which round it belongs to
    at_s: float  # when it ended, in seconds of measuring
    subject: int  # position in the plan; -1 is the loop that steps nothing
    life: int  # how many times the measurement had been taken up before
    raw_ns: bytes  # of `ns`
    raw_wrote: bytes  # of `wrote`
    pace_us: float = 0.0  # time of the fixed piece of Python before it
    steps: int = 0  # steps made, untimed ones included
    writes: int = 0  # of which writes, by the ledger
    memory_bytes_written: int = 0  # bytes of state replaced
    appended_bytes: int = 0  # of those, into rings
    folded_bytes: int = 0  # of those, from rings
    rss_bytes: int = 0  # resident memory of the process after it
    joules: float | None = None  # energy taken meanwhile
    seconds: float = 0.0  # how long it took

    @property
    def ns(self) -> Array:
        """Time of each timed step, in nanoseconds, uint32."""
        return np.frombuffer(self.raw_ns, np.uint32)

    @property
    def wrote(self) -> Array:
        """1 for each of them that wrote, uint8."""
        return np.frombuffer(self.raw_wrote, np.uint8)


class _Segment(msgspec.Struct, frozen=True):
    bursts: list[Burst]
    moment: Moment


def _checksum(raw: bytes) -> bytes:
    return zlib.crc32(raw).to_bytes(4, "big")


COUNTED = ("writes", "memory_bytes_written", "appended_bytes", "folded_bytes")
"""What a burst has of the ledger."""


class Segments:
    """The pieces of one measurement."""

    def __init__(self, folder: Path, plan: dict[str, Any], fresh: bool = False) -> None:
        """Take up what was begun in a folder, or begin; ``fresh`` throws away what was begun."""
        self._folder = folder
        self._lock()
        if fresh:
            self.discard()
        written = folder / "plan.json"
        text = json.dumps(plan, indent=1, sort_keys=True)
        begun = written.read_bytes() if written.exists() else text.encode()
        if begun != text.encode():
            try:
                old = dict(json.loads(begun))
            except (ValueError, TypeError):
                old = {}
            differing = [key for key, now in json.loads(text).items() if old.get(key) != now]
            raise ResultError(
                f"another measurement was begun in {folder}",
                found=f"other {', '.join(differing)}",
                expected="the command that was interrupted",
                remedy="give that command again, or --fresh to throw it away",
            )
        write_whole(written, text.encode())
        self.moments: list[Moment] = []  # one a piece
        self._bursts: list[Burst] = []
        for path in sorted(folder.glob("segment-*.bin")):
            self._read(path)
        self._count = len(list(folder.glob("segment-*.bin")))

    def _lock(self) -> None:
        # The folder above is held, not a file in it: what was begun may be thrown away.
        above = self._folder.parent
        above.mkdir(parents=True, exist_ok=True)
        handle = os.open(above, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        if try_lock(handle) == "in use":  # where there are no locks, nobody can be kept away
            raise ResultError(
                f"another process is measuring into {above}",
                found="a lock on the folder",
                remedy="wait for it, or give another folder: --out",
            )

    def _read(self, path: Path) -> None:
        try:
            whole = read_bounded(path)
            if _checksum(whole[4:]) != whole[:4]:
                raise ValueError("its checksum does not fit")
            segment = msgspec.msgpack.decode(whole[4:], type=_Segment)
        except (OSError, ValueError) as problem:
            raise ResultError(
                "a piece of an interrupted measurement cannot be read",
                found=f"{path}: {problem}",
                remedy="--fresh throws the measurement away",
            ) from problem
        self.moments.append(segment.moment)
        self._bursts += segment.bursts

    def add(self, bursts: list[Burst], moment: Moment) -> None:
        """Keep a piece."""
        raw = msgspec.msgpack.encode(_Segment(bursts, moment))
        write_whole(self._folder / f"segment-{self._count:04d}.bin", _checksum(raw) + raw)
        self._count += 1
        self._bursts += bursts
        self.moments.append(moment)

    @property
    def lives(self) -> int:
        """How many times the measurement was begun or taken up."""
        return max((burst.life for burst in self._bursts), default=-1) + 1

    @property
    def rounds(self) -> int:
        """Rounds that are kept."""
        return max((burst.round for burst in self._bursts), default=-1) + 1

    @property
    def measured_s(self) -> float:
        """Seconds of measuring that are kept."""
        return max((burst.at_s for burst in self._bursts), default=0.0)

    def of(self, subject: int) -> list[Burst]:
        """All bursts of a subject, in order of time."""
        return [burst for burst in self._bursts if burst.subject == subject]

    def samples(self, names: list[str]) -> Iterator[tuple[str, Array]]:
        """Raw samples by name, for the ``.npz`` beside the result."""
        for subject, name in [(-1, "empty"), *enumerate(names)]:
            bursts = self.of(subject)
            yield f"{name}.ns", np.concatenate([burst.ns for burst in bursts])
            yield f"{name}.wrote", np.concatenate([burst.wrote for burst in bursts])
            yield f"{name}.burst", np.array([len(burst.ns) for burst in bursts])

    def discard(self) -> None:
        """Remove the pieces."""
        shutil.rmtree(self._folder, ignore_errors=True)
