"""Reading a black box: its steps and keyframes in their order, and where it has gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from stategate.contract import Budget, Bundle, Manifest, StateSpec, TensorSpec
from stategate.contract.errors import BundleError, EpisodeError, SnapshotDamagedError
from stategate.contract.failures import failures
from stategate.contract.reading import decode_json
from stategate.runtime.base.buffers import Array
from stategate.runtime.keep.black_box import (
    AGAIN,
    FAULT,
    INITIAL,
    KEYFRAME,
    KEYFRAME_HEAD,
    MISSED,
    OPENED,
    OVERDRAWN,
    PURPOSE,
    REPLACED,
    SKIPPED,
    STEP,
    STEP_HEAD,
    WROTE,
    graph_digest,
)
from stategate.runtime.keep.medium import FileMedium
from stategate.runtime.keep.records import MAGIC, Record, RecordReader, Run


class Opening(msgspec.Struct, frozen=True):
    """What a process says of itself when it begins to record."""

    engine: str  # what stepped it; ``c`` for a program that was linked with the bundle's C
    bundle: str = ""  # digest of the bundle; empty where C code recorded, which does not know it
    model: str = ""  # its name
    budget: Budget | None = None  # limits in force; None for a C program, whose own hook decides
    unix_s: int = 0  # Wall time
    ledger_steps: int = 0  # what the ledger had counted

    @property
    def is_native(self) -> bool:
        """Whether compiled C stepped it."""
        return self.engine.split(" ")[0] in ("native", "c")


@dataclass(frozen=True, slots=True)
class Keyframe:
    """States as the next step found them."""

    step: int  # number of the step before
    chain: int  # the chain of hashes then
    unix_ns: int  # Wall time
    states: dict[str, Array] | None  # by name; None for the initial ones
    is_jump: bool  # whether something else than the steps before led to them
    is_begin: bool  # whether a reset, other states or a snapshot did


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it was recorded."""

    step: int  # its number, from 1 on
    chain: int  # the chain of hashes after it
    shift: float  # how far the gate's threshold was moved
    inputs: dict[str, Array]  # by name
    overdrawn: bool  # whether the write budget was used up
    wrote: bool  # whether a state was written
    failed: bool  # whether NaN or Inf refused it
    skipped: bool  # whether the engine failed, so that it never was a step


@dataclass(frozen=True, slots=True)
class Gap:
    """Steps that were recorded once and cannot be read, or never were."""

    after: int  # number of the last step before it
    before: int  # number of the first step that is there again
    why: str  # in words


class Recording:
    """An opened black box.

    Attributes:
        path: The file.
        graph_sha256: Of the graph that was stepped.
        opening: The newest process that recorded; None where the file does not say.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file and check every block of it."""
        self.path = Path(path)
        try:
            self._medium = FileMedium(self.path, writes=False)
            self._reader = RecordReader(self._medium)
        except failures(OSError) as problem:
            raise EpisodeError(
                "the black box cannot be read", found=f"{path}: {problem.strerror or problem}"
            ) from problem
        except SnapshotDamagedError as problem:
            if not self._medium.read(0, len(MAGIC)).startswith(MAGIC):
                raise EpisodeError(
                    f"{self.path.name} is no black box",
                    found=f"{self._medium.size_bytes} bytes of something else",
                    expected="a file of Session.open(..., black_box=) or of run --black-box",
                ) from problem
            raise SnapshotDamagedError(
                f"{self.path.name} cannot be replayed",
                found=problem.reason,
                expected="a black box, whole",
                remedy="copy it again from the robot, with its session closed or killed",
            ) from problem
        header = self._reader.header
        if header.purpose != PURPOSE:
            raise EpisodeError(
                f"{self.path.name} is no black box", found=f"a record file of kind {header.purpose}"
            )
        self.graph_sha256 = header.bundle_sha256
        self._damaged = len(self._reader.damaged)
        self.opening = next(
            reversed([_opening(r) for r in map(self._opened, self._reader.runs) if r]), None
        )

    def _opened(self, run: Run) -> Record | None:
        """What the first process of a run says of itself."""
        return next((r for r in self._reader.records(run) if r.kind == OPENED), None)

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle that has not stepped this recording."""
        digest = graph_digest(bundle.manifest)
        if self.graph_sha256 == digest:
            return
        opening, remedy = self.opening, None
        if opening is not None and opening.bundle:
            remedy = f"find the bundle: sha256sum */manifest.json | grep {opening.bundle}"
        raise BundleError(
            f"{self.path.name} is the recording of another bundle",
            found=f"graph {digest[:12]}, of {bundle.path}",
            expected=f"graph {self.graph_sha256[:12]}{f', of {opening.model}' if opening else ''}",
            remedy=remedy,
        )

    def events(self, manifest: Manifest) -> Iterator[Opening | Keyframe | Step | Gap]:
        """All that can be stepped again, in its order: keyframes come before their steps.

        What is left of a ring before its first keyframe is passed over.
        """
        last: int | None = None  # number of the last step, once one could be stepped again
        newest: Opening | None = None
        for run in self._reader.runs:
            begun = is_new = False
            if (opened := self._opened(run)) is not None:
                before, newest = newest, _opening(opened)
                # A process that says it again may be on both sides of a gap.
                if opened.flags & AGAIN == 0 or newest != before:
                    yield newest
            for record in self._reader.records(run):
                if record.kind == OPENED and record.flags & AGAIN == 0 and begun:
                    is_new, newest = True, _opening(record)
                    yield newest
                elif record.kind == KEYFRAME:
                    keyframe = _keyframe(record, manifest.states, not begun)
                    is_missed = record.flags & MISSED or not begun or record.step != last
                    # What a process lost at its end is no gap: it was killed, and says no more.
                    if last is not None and is_missed and not is_new:
                        yield Gap(last, record.step + 1, self._why(begun))
                    begun, is_new, last = True, False, record.step
                    yield keyframe
                elif record.kind == STEP and begun and last is not None and record.step != last + 1:
                    begun = False  # until a keyframe
                elif record.kind == STEP and begun:
                    last = record.step
                    yield _step(record, manifest.inputs)

    def span(self, manifest: Manifest) -> tuple[int, int] | None:
        """Numbers of the first and the last step that can be stepped again; None without one."""
        steps = [event.step for event in self.events(manifest) if isinstance(event, Step)]
        return (steps[0], steps[-1]) if steps else None

    def nothing(self) -> EpisodeError:
        """The error where no step can be stepped again."""
        return EpisodeError(
            f"{self.path.name} holds no step that could be stepped again",
            expected="a step after a keyframe",
            remedy="record longer: a block of 4 KiB goes out when it is full, or at the end",
        )

    def _why(self, begun: bool) -> str:
        if begun:
            return "they were not recorded"
        damaged = f"damaged blocks: {self._damaged}"
        return damaged if self._damaged else "their blocks are missing"


def _opening(record: Record) -> Opening:
    try:
        return decode_json(record.payload, Opening)
    except msgspec.MsgspecError as problem:
        raise SnapshotDamagedError(
            f"what began before step {record.step + 1} cannot be read", found=str(problem)
        ) from problem


def _keyframe(record: Record, specs: tuple[StateSpec, ...], is_first: bool) -> Keyframe:
    states = None
    if not record.flags & INITIAL:
        states = _arrays(record, KEYFRAME_HEAD.size, specs)
    chain, unix_ns = KEYFRAME_HEAD.unpack_from(_long_enough(record, KEYFRAME_HEAD.size))
    is_begin = bool(record.flags & REPLACED)
    is_jump = is_begin or is_first or bool(record.flags & MISSED)
    return Keyframe(record.step, chain, unix_ns, states, is_jump, is_begin)


def _step(record: Record, specs: tuple[TensorSpec, ...]) -> Step:
    inputs = _arrays(record, STEP_HEAD.size, specs)
    chain, shift = STEP_HEAD.unpack_from(record.payload)
    bits = [bool(record.flags & bit) for bit in (OVERDRAWN, WROTE, FAULT, SKIPPED)]
    return Step(record.step, chain, shift, inputs, *bits)


def _long_enough(record: Record, least: int) -> bytes:
    if len(record.payload) < least:
        raise SnapshotDamagedError(
            f"the record of step {record.step} is too short",
            found=f"{len(record.payload)} bytes",
            expected=f"at least {least}",
        )
    return record.payload


def _arrays(
    record: Record, at: int, specs: tuple[TensorSpec, ...] | tuple[StateSpec, ...]
) -> dict[str, Array]:
    arrays = {}
    for spec in specs:
        little = np.dtype(spec.dtype).newbyteorder("<")
        count = math.prod(spec.shape)
        payload = _long_enough(record, at + count * little.itemsize)
        flat = np.frombuffer(payload, little, count, at)
        arrays[spec.name] = flat.astype(spec.dtype).reshape(spec.shape)
        at += flat.nbytes
    return arrays
