"""Writing a black box beside a session's steps: what it calls before and after each of them."""

from __future__ import annotations

import shlex
import time
import warnings
from pathlib import Path

import numpy as np

from stategate.contract import Budget, Bundle, canonical_json
from stategate.contract.errors import (
    EngineError,
    EpisodeError,
    PersistBudgetError,
    ResultError,
    SnapshotError,
    SnapshotWarning,
    SpecError,
)
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.base.ledger import Counters
from stategate.runtime.keep import black_box
from stategate.runtime.keep.keeper import Keeper
from stategate.runtime.keep.medium import FileMedium
from stategate.runtime.keep.records import (
    BLOCK_BYTES,
    RecordFile,
    RecordReader,
    Run,
    stored_bytes,
)
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.governor import Governor

_LOT_BYTES = 64 * BLOCK_BYTES


class _NotAffordable(Exception):
    """The wear budget does not allow the next block."""


class BlackBoxWriter:
    """Records one session; called before and after each step.

    Attributes:
        step: Number of the step that was recorded last, over all processes of the file.
        lost_steps: Steps of this process that the file does not have.
        problem: Why it does not, in words; None where it has all.
        path: The file.
    """

    def __init__(
        self,
        policy: black_box.BlackBox,
        bundle: Bundle,
        buffers: Buffers,
        memory: Memory,
        counters: Counters,
        governor: Governor | None,
        keeper: Keeper | None,
        budget: Budget,
        engine: str,
    ) -> None:
        """Open or make the file."""
        self._memory, self._counters, self._governor = memory, counters, governor
        self._keeper, self._raises = keeper, budget.on_persisted == "raise"
        limit = budget.persisted_limit_per_day
        if limit is not None and keeper is None:
            raise SpecError(
                "a black box under a wear budget needs the account of a snapshot folder",
                found=f"{limit:.0f} bytes a day",
                remedy="Session.open(path, snapshots='folder', black_box=...)",
            )
        self._lot_bytes = 0
        if limit is not None:
            self._lot_bytes = max(1, min(_LOT_BYTES, int(limit) // 16) // BLOCK_BYTES) * BLOCK_BYTES
        self._paid_bytes = 0
        self.lost_steps, self._unsent = 0, 0
        self.problem: str | None = None
        self.path = Path(policy.path).resolve()
        blocks, self._interval = policy.geometry(bundle.manifest)
        self._is_held = self._is_refused = False
        self._file: RecordFile | None = None
        self._file, self.step = self._open_file(black_box.graph_digest(bundle.manifest), blocks)
        self._steps, self._changes = counters.steps, -1  # a keyframe comes before the first step
        self._since = self._flags = 0
        self._shift = 0.0
        sizes = [slot.array.nbytes for slot in buffers.inputs]
        self._payload = bytearray(black_box.STEP_HEAD.size + sum(sizes))
        self._places: list[tuple[Array, Array]] = []
        at = black_box.STEP_HEAD.size
        for slot, size in zip(buffers.inputs, sizes, strict=True):
            place = np.frombuffer(memoryview(self._payload)[at : at + size], slot.flat.dtype)
            self._places.append((place, slot.flat))
            at += size
        self._step_bytes = stored_bytes(len(self._payload))
        self._about = canonical_json(
            {
                "bundle": bundle.digest,
                "model": bundle.manifest.model.name,
                "engine": engine,
                "budget": budget,
                "unix_s": int(time.time()),
                "ledger_steps": counters.read().steps,
            }
        )
        self._append(black_box.OPENED, self._about, 0)

    def _open_file(self, digest: str, blocks: int) -> tuple[RecordFile | None, int]:
        """The file, and the number of its last step; None where the wear budget allows no new one.

        Raises:
            PersistBudgetError: The same, where that is the budget's policy.
        """
        path = self.path
        try:
            if not path.exists():
                file = RecordFile.create(
                    path,
                    blocks=blocks,
                    bundle_sha256=digest,
                    purpose=black_box.PURPOSE,
                    count=self._charge,
                )
                return file, 0
            if not path.is_file():
                raise ResultError(
                    "the black box is no file",
                    found=f"{path}, a folder or a device",
                    expected="a path where a file is or can be made",
                )
            medium = FileMedium(path)
        except _NotAffordable as refusal:
            self.problem = "the wear budget did not allow a new file"
            if self._raises:
                raise PersistBudgetError(self.problem, found=f"{path}, a black box") from refusal
            return None, 0
        except failures(OSError) as problem:
            raise ResultError(
                "the black box cannot be written",
                found=f"{path}: {problem.strerror or problem}",
                expected=f"room for {(1 + blocks) * BLOCK_BYTES:,} bytes",
                remedy="make room or correct the path",
            ) from problem
        try:
            step = last_step(_checked_reader(medium, path.name, digest, blocks))
            return RecordFile.resume(medium, self._charge), step
        except (SnapshotError, EpisodeError) as problem:
            medium.close()
            remedy = f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"
            raise EpisodeError(
                "what is at the path of the black box is not replaced",
                found=problem.reason,
                expected="a black box of this bundle and of this size, or no file",
                remedy=remedy,
            ) from problem
        except BaseException:
            medium.close()
            raise

    def before(self) -> None:
        """Before a step whose inputs are taken, once the governor has looked at its buckets."""
        if self._file is None:
            return
        governor, counters = self._governor, self._counters
        if governor is not None:
            self._flags = black_box.OVERDRAWN if governor.overdrawn else 0
            self._shift = governor.tokens[2]
        changes = self._memory.replacements
        # Steps that were counted and not recorded: an exception of a signal's handler came between.
        is_missed = counters.steps != self._steps
        if changes != self._changes or is_missed or self._since >= self._interval:
            self._keyframe(changes)

    def _keyframe(self, changes: int) -> None:
        """Put down the states as the next step will see them."""
        if self._is_held:
            if self._keeper is None or not self._keeper.allowance.affords(self._lot_bytes):
                return
            self._is_held = False
        counters, memory = self._counters, self._memory
        flags = black_box.MISSED if counters.steps != self._steps else 0
        flags |= black_box.REPLACED if changes != self._changes else 0
        if not flags or self._since >= self._interval:
            self._append(black_box.OPENED, self._about, black_box.AGAIN)
        head = black_box.KEYFRAME_HEAD.pack(memory.chain, time.time_ns())
        live = [array.tobytes() for array in memory.live().values()]
        if memory.is_initial and live == [array.tobytes() for array in memory.initial().values()]:
            self._append(black_box.KEYFRAME, head, flags | black_box.INITIAL)
        else:
            self._append(black_box.KEYFRAME, b"".join((head, *live)), flags)
        self._steps, self._changes, self._since = counters.steps, changes, 0

    def after(self, wrote: bool, fault: Exception | None = None) -> None:
        """After a step that was taken, and before anything else changes the states.

        Raises:
            PersistBudgetError: The wear budget is used up, and its policy is ``raise``; once, until
                recording goes on.
        """
        if self._file is None:
            self.lost_steps += 1
            return
        self._memory.chain_up()
        self.step += 1
        if self._is_held:
            self.lost_steps += 1
        else:
            black_box.STEP_HEAD.pack_into(self._payload, 0, self._memory.chain, self._shift)
            for place, values in self._places:
                place[...] = values
            flags = self._flags | (black_box.WROTE if wrote else 0)
            if fault is not None:
                flags |= black_box.SKIPPED if isinstance(fault, EngineError) else black_box.FAULT
            self._unsent += 1
            self._append(black_box.STEP, self._payload, flags)
            self._since += self._step_bytes
        # Last: where something ended this before, or the record was lost, a keyframe comes first.
        self._steps = -1 if self._is_held else self._counters.steps
        if fault is None:
            self._refuse_once()

    def _refuse_once(self) -> None:
        if self._is_refused:
            self._is_refused = False
            raise PersistBudgetError(
                "the wear budget is used up; the black box has a gap from here",
                found=f"{self.lost_steps} steps lost at step {self.step}",
                expected=f"{self._lot_bytes} bytes ahead",
            )

    def _append(self, kind: int, payload: bytes | bytearray, flags: int) -> None:
        if self._file is None:  # it failed a record ago
            return
        try:
            self._file.append(kind, self.step, payload, flags)
        except _NotAffordable:
            self._lose("the wear budget did not allow more")
            self._is_held, self._is_refused, self._steps = True, self._raises, -1
        except failures(OSError, SnapshotError) as problem:
            self._end(f"{self.path}: {getattr(problem, 'strerror', None) or problem}")

    def _lose(self, problem: str) -> None:
        self.problem = problem
        self.lost_steps += self._unsent
        self._unsent = 0

    def _end(self, problem: str) -> None:
        """A medium that fails costs the recording, and never a step."""
        self._lose(problem)
        self._counters.faults += 1
        warnings.warn(f"the black box records no more: {problem}", SnapshotWarning, stacklevel=6)
        file, self._file = self._file, None
        if file is not None:
            file.medium.close()

    def _charge(self, nbytes: int) -> None:
        """Before a block goes out: pay for it, then count it."""
        if self._lot_bytes and self._keeper is not None:
            if self._paid_bytes < nbytes:
                if not self._keeper.allowance.pay_ahead(self._lot_bytes, "black box"):
                    raise _NotAffordable
                self._paid_bytes += self._lot_bytes
            self._paid_bytes -= nbytes
        self._counters.persisted_bytes += nbytes
        self._unsent = 0

    def close(self) -> None:
        """Put what is left on the medium; a second call does nothing."""
        if self._file is not None and self._since and not self._is_held:
            self._keyframe(self._memory.replacements)  # engines of other bits are compared by it
        if self._file is not None:
            try:
                self._file.close()
            except _NotAffordable:
                self._lose("the wear budget did not allow the last block")
            except failures(OSError) as problem:
                self._lose(f"{self.path}: {problem.strerror or problem}")
            self._file = None


def _checked_reader(medium: FileMedium, name: str, digest: str, blocks: int) -> RecordReader:
    reader = RecordReader(medium)
    header = reader.header
    check_purpose(reader, name)
    if header.bundle_sha256 != digest:
        raise EpisodeError(
            f"{name} is of another bundle",
            found=f"graph {header.bundle_sha256[:12]}",
            expected=f"graph {digest[:12]}",
        )
    if header.blocks != blocks:
        sizes = [f"{(1 + count) * BLOCK_BYTES:,} bytes" for count in (header.blocks, blocks)]
        raise EpisodeError(f"{name} is of another size", found=sizes[0], expected=sizes[1])
    return reader


def check_purpose(reader: RecordReader, name: str) -> None:
    """Refuse a record file that is not a black box."""
    if reader.header.purpose != black_box.PURPOSE:
        raise EpisodeError(
            f"{name} is no black box",
            found=f"a record file of kind {reader.header.purpose}",
            expected=f"kind {black_box.PURPOSE}",
        )


def last_step(reader: RecordReader) -> int:
    """Number of the step that was recorded last; 0 where there is none."""
    for run in reversed(reader.runs):
        for first in range(run.last, run.first - 1, -1):
            records = list(reader.records(Run(first, run.last)))
            if records:
                return records[-1].step
    return 0
