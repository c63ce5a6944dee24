"""What of a step is written down so that it can be taken again, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from stategate.contract import Manifest, sha256
from stategate.contract.errors import RuntimeFault, SnapshotDamagedError
from stategate.runtime.base.buffers import Array, Buffers, Slot
from stategate.runtime.engines.engine import Engine
from stategate.runtime.keep.journal import Entry
from stategate.runtime.keep.snapshot import check_sense
from stategate.runtime.memory.banks import Memory

INPUTS, WRITE, STATES = 1, 2, 3  # kinds of records


def record_bytes(manifest: Manifest) -> tuple[str, int]:
    """What a model's record is, in words, and its bytes: `Replay`'s choice without an engine."""
    way = manifest.way
    is_split = way is not None and way.payload and manifest.graph_of("write") is not None
    if way is not None and is_split and all(state.gate for state in manifest.states):
        return "what a read hands to a write", way.payload_bytes
    inputs = sum(tensor.nbytes for tensor in manifest.step.inputs)
    if inputs < manifest.state_bytes:
        return "the inputs of a step", inputs
    return "the states", manifest.state_bytes


class Replay:
    """Notes what changes the memory, and does the same again.

    Attributes:
        engine: What steps.
        kind: Of the record of a step.
        identity: Of bundle and engine: bits may differ between two engines, or two versions of one.
    """

    def __init__(
        self, bundle_digest: str, buffers: Buffers, memory: Memory, engine: Engine
    ) -> None:
        """Choose what a record is: what a write needs, where there is one; else the inputs."""
        self.engine, self._memory, self._buffers = engine, memory, buffers
        self.identity = sha256(f"{bundle_digest} {engine.name}".encode())
        self._gated = sum(group.bit for group in buffers.groups if group.gate is not None)
        self._mask_bytes = -(-len(buffers.groups) // 8)
        shown = {g.gate.threshold_input for g in buffers.groups if g.gate is not None}
        thresholds = [slot for slot in buffers.constants if slot.name in shown]
        self._feeds: dict[int, tuple[Slot, ...]] = {INPUTS: (*buffers.inputs, *thresholds)}
        self.kind = INPUTS
        takes = getattr(engine, "write_takes", None)
        if takes is not None and not memory.has_ungated:
            slots = (*buffers.inputs, *buffers.constants, *buffers.outputs, *buffers.gates)
            every = {slot.name: slot for slot in (*slots, *buffers.payload)}
            self._feeds[WRITE] = tuple(every[name] for name in takes if name in every)
            self.kind = WRITE
        self._states_bytes = sum(state.spec.bytes for state in buffers.states)
        self.forget()

    def forget(self) -> None:
        """Everything so far is safe."""
        self._records: list[tuple[int, bytes]] = []
        self._size = 0
        self._parity, self._committed = self._memory.parity, self._memory.committed

    def note(self, is_one_step: bool) -> None:
        """Note what has changed since the last call."""
        memory = self._memory
        swapped = memory.parity ^ self._parity
        if not is_one_step or memory.committed != self._committed + 1 or not swapped:
            # Not steps alone: a reset, states of the caller's, a chunk; or one was not noted.
            self._size = self._states_bytes
        elif self._size < self._states_bytes:
            raw = swapped.to_bytes(self._mask_bytes, "little") + b"".join(
                slot.array.tobytes() for slot in self._feeds[self.kind]
            )
            self._records.append((self.kind, raw))
            self._size += len(raw)
        self._parity, self._committed = memory.parity, memory.committed

    def pass_by(self) -> None:
        """Note that a step changed nothing."""
        self._parity, self._committed = self._memory.parity, self._memory.committed

    def records(self) -> list[tuple[int, bytes]]:
        """What is enough for everything since `forget`: each change, or the states if smaller."""
        if self._size < self._states_bytes or not self._size:
            return list(self._records)
        return [(STATES, b"".join(a.tobytes() for a in self._memory.live().values()))]

    def checksum(self) -> int:
        """Of the states as they are."""
        crc = 0
        for array in self._memory.live().values():
            crc = crc32(array.reshape(-1).view(np.uint8).data, crc)
        return crc

    def replayed(
        self, states: dict[str, Array], entries: Sequence[Entry]
    ) -> tuple[dict[str, Array], int]:
        """The states after commits, and how many of these gave what they should.

        Memory and inputs are as before at the end, whatever happens.
        """
        memory, buffers = self._memory, self._buffers
        slots = (*buffers.inputs, *buffers.constants)
        inputs = [slot.array.copy() for slot in slots]
        before = _copied(memory.live())
        done = 0
        try:
            memory.put(states)
            for entry in entries:
                try:
                    for record in entry.records:
                        self._take(record.kind, record.payload)
                    check_sense(entry.commit.ledger, memory.live(), "the journal")
                except (RuntimeFault, SnapshotDamagedError):
                    break
                if self.checksum() != entry.commit.states_crc:
                    break
                states, done = _copied(memory.live()), done + 1
        finally:
            for slot, value in zip(slots, inputs, strict=True):
                np.copyto(slot.array, value)
            memory.put(before)
        return states, done

    def _take(self, kind: int, payload: bytes) -> None:
        memory = self._memory
        if kind == STATES:
            arrays = memory.live()
            at, states = 0, {}
            for name, array in arrays.items():
                states[name] = _array(payload, at, array)
                at += array.nbytes
            memory.put(states)
            return
        if kind not in self._feeds:
            raise SnapshotDamagedError("the journal has a record of an unknown kind", found=kind)
        swapped = int.from_bytes(payload[: self._mask_bytes], "little")
        at = self._mask_bytes
        for slot in self._feeds[kind]:
            np.copyto(slot.array, _array(payload, at, slot.array))
            at += slot.array.nbytes
        if kind == INPUTS:
            self.engine.run(memory.parity)
        if swapped & self._gated or memory.rings is not None:
            self.engine.write(memory.parity)
        if memory.rings is not None:
            # An append swaps nothing. A row counts only where the step moves the cursor past it.
            memory.rings.step(memory.parity, appends=True)
        memory.parity ^= swapped


def _array(raw: bytes, at: int, like: Array) -> Array:
    if at + like.nbytes > len(raw):
        raise SnapshotDamagedError("a record of the journal is too short", found=len(raw))
    return np.frombuffer(raw, like.dtype, like.size, at).reshape(like.shape)


def _copied(states: dict[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in states.items()}
