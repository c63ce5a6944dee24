"""The snapshot format: one file, checked as a whole before a byte of it is believed.

    magic (8) | format version (u32) | header bytes (u32) | payload bytes (u64)
    header: JSON, padded with spaces to a fixed size
    payload: the live bank of every state, in the manifest's order, C order, little endian
    SHA-256 of everything before it (32)

All integers are little endian. The file of one session has the same size every time, so that what
a snapshot costs the storage is known before it is written.
"""

from __future__ import annotations

import hashlib
import struct
import time
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import numpy as np

from stategate.common.flash import METADATA_BYTES_ESTIMATE
from stategate.contract import (
    Manifest,
    ObservationContract,
    StateSpec,
    canonical_json,
    sha256,
)
from stategate.contract.errors import SnapshotDamagedError, SnapshotError
from stategate.contract.reading import decode_json
from stategate.contract.sessions import one_row
from stategate.runtime.base.buffers import Array, is_finite
from stategate.runtime.base.ledger import Ledger, refuse_unknown_counters
from stategate.runtime.keep.account import RECORD_BYTES

MAGIC = b"SGSNAP\r\n"  # \r\n: a transfer in text mode breaks it visibly
FORMAT_VERSION = 1
_FIXED = struct.Struct("<8sIIQ")
UNLIMITED_BYTES = 1e300  # left of a wear budget that there is not; JSON has no infinity
_DIGEST_BYTES = 32
BLOCK_BYTES = 4096


LeftBy = Annotated[tuple[float, ...], msgspec.Meta(min_length=3, max_length=5)]
"""What a governor leaves; see `Governor.save`."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a snapshot says about itself.

    Attributes:
        memory_sha256: Which memory it is of; see `memory_identity`.
        sequence: Grows by one with every snapshot in a folder.
        unix_s: Wall time of the snapshot.
        ledger: Counters, this snapshot included.
        governor: Tokens in the write buckets, and the threshold's shift; None without a budget.
        persist_tokens: Bytes left in the wear budget's bucket, `UNLIMITED_BYTES` where there is no
            such budget; the folder's account counts where it has one.
        bundle_sha256: Which bundle wrote it, where a reset rule asks for that; else empty, so that
            an older runtime reads it.
        journal: What the journal of the folder was called then; see `Journal.mark`. 0 for none.
    """

    memory_sha256: str
    sequence: int
    unix_s: int
    ledger: Ledger
    governor: LeftBy | None
    persist_tokens: float
    bundle_sha256: str = ""
    journal: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A header and its states.

    Attributes:
        header: What it says about itself.
        states: By name, of the shapes in the manifest.
    """

    header: Header
    states: dict[str, Array]


def memory_identity(manifest: Manifest) -> str:
    """Digest of what makes two memories interchangeable: weights, form of states, and gates.

    A bundle with another threshold, target, build time or number of sessions keeps its memory.
    """
    states = [(s.name, s.shape, s.dtype, s.layout, s.gate) for s in _states(manifest)]
    # Gates by name and granularity, because the ledger counts by them; thresholds may move.
    gates = [(g.name, g.kind, g.granularity) for g in manifest.gates]
    return sha256(canonical_json([manifest.model.sha256, states, gates]))


def _states(manifest: Manifest) -> tuple[StateSpec, ...]:
    return manifest.states if manifest.sessions == 1 else one_row(manifest.states)


def next_header(
    codec: Codec,
    sequence: int,
    ledger: Ledger,
    governor: tuple[float, ...] | None = None,
    persist_tokens: float = UNLIMITED_BYTES,
    journal: int = 0,
) -> Header:
    """The header of a snapshot that is about to be written: its ledger counts it already."""
    ledger = replace(
        ledger,
        snapshots=ledger.snapshots + 1,
        persisted_bytes=ledger.persisted_bytes + codec.stored_bytes,
    )
    now, bundle = int(time.time()), codec.bundle_sha256
    identity = codec.identity
    return Header(identity, sequence, now, ledger, governor, persist_tokens, bundle, journal)


class Codec:
    """Encodes and decodes snapshots of one memory; of a pool's bundle, those of one row.

    Attributes:
        identity: See `memory_identity`.
        file_bytes: Size of every snapshot.
        most_bytes: What is read of a file at most.
        stored_bytes: The same in whole blocks of 4 KiB: what `persisted_bytes` counts.
        bundle_sha256: What a snapshot says of its bundle; see `Header`.
        commit_bytes: Size of the record that ends a commit of the journal.
        cost_bytes: With an estimate of journal and metadata, and the record of the charge itself:
            what the wear budget is charged.
    """

    def __init__(self, manifest: Manifest, bundle_sha256: str = "") -> None:
        self._rules = (manifest.observation or ObservationContract()).resets
        self.bundle_sha256 = bundle_sha256 if self._rules.on_switch else ""
        self.identity = memory_identity(manifest)
        self._specs = _states(manifest)
        # Room for every counter at twenty digits, and for the names of states and gates.
        names = sum(len(s.name.encode()) for s in manifest.states)
        names += sum(len(g.name.encode()) for g in manifest.gates)
        entries = len(manifest.states) + len(manifest.gates)
        room = 2048 + 6 * names + 32 * entries
        self.commit_bytes = 1024 + 2 * names + 64 * entries
        self._header_bytes = -(-room // BLOCK_BYTES) * BLOCK_BYTES - _FIXED.size
        self._payload_bytes = manifest.state_bytes_per_session
        self.file_bytes = _FIXED.size + self._header_bytes + self._payload_bytes + _DIGEST_BYTES
        # A newer format may need more, and shall be called newer rather than too large.
        self.most_bytes = 2 * self.file_bytes + (1 << 20)
        self.stored_bytes = -(-self.file_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self.cost_bytes = self.stored_bytes + METADATA_BYTES_ESTIMATE + RECORD_BYTES
        self._buffer = bytearray(self.file_bytes)

    def staleness(self, header: Header) -> str:
        """The reset rule by which a snapshot's memory is too old to go on from; empty for none."""
        rules = self._rules
        if rules.on_restore:
            return "on_restore"
        if rules.on_switch and header.bundle_sha256 != self.bundle_sha256:
            return "on_switch"
        if rules.idle_seconds is not None:
            age_s = time.time() - header.unix_s
            # The second of the snapshot is known, not the fraction. A clock behind says nothing.
            if age_s < 0 or age_s - 1 > rules.idle_seconds:
                return "idle_seconds"
        return ""

    def encode(self, snapshot: Snapshot) -> memoryview:
        """The file's bytes; the next call overwrites them."""
        header = msgspec.json.encode(snapshot.header)
        if len(header) > self._header_bytes:
            raise SnapshotDamagedError(
                "the snapshot's header outgrew its room",
                found=f"{len(header)} bytes",
                expected=f"at most {self._header_bytes}",
            )
        _FIXED.pack_into(
            self._buffer, 0, MAGIC, FORMAT_VERSION, self._header_bytes, self._payload_bytes
        )
        at = _FIXED.size
        self._buffer[at : at + self._header_bytes] = header.ljust(self._header_bytes)
        at += self._header_bytes
        for spec in self._specs:
            raw = snapshot.states[spec.name]
            little = raw.astype(raw.dtype.newbyteorder("<"), copy=False)
            self._buffer[at : at + spec.bytes] = little.tobytes()
            at += spec.bytes
        view = memoryview(self._buffer)
        view[at:] = hashlib.sha256(view[:at]).digest()
        return view

    def decode(self, raw: bytes, name: str) -> Snapshot:
        """Read a snapshot, believing nothing.

        Args:
            raw: The whole file; of a longer one than ``file_bytes``, its beginning is enough.
            name: What to call it in errors.
        """
        if len(raw) < _FIXED.size + _DIGEST_BYTES or not raw.startswith(MAGIC):
            raise SnapshotDamagedError(
                f"{name} is no snapshot", found=f"{len(raw)} bytes, starting with {raw[:8]!r}"
            )
        # Every version ends in a digest of all before it, so this can come first. What is longer
        # than a snapshot of this memory may not be all of the file: its header says whose it is.
        whole = hashlib.sha256(raw[:-_DIGEST_BYTES]).digest() == raw[-_DIGEST_BYTES:]
        if not whole and len(raw) <= self.file_bytes:
            raise SnapshotDamagedError(f"{name} is damaged", found="a checksum that does not match")
        _, version, header_bytes, payload_bytes = _FIXED.unpack_from(raw)
        if version != FORMAT_VERSION:
            raise SnapshotError(
                f"{name} is of another format",
                found=f"version {version}",
                expected=f"version {FORMAT_VERSION}",
                remedy="upgrade stategate on this device",
            )
        end = _FIXED.size + header_bytes
        try:
            header = decode_json(raw[_FIXED.size : end], Header)
            refuse_unknown_counters(raw[_FIXED.size : end])
        except msgspec.MsgspecError as problem:
            raise SnapshotDamagedError(f"{name} has no header", found=str(problem)) from problem
        if header.memory_sha256 != self.identity:
            raise SnapshotError(
                f"{name} is of another memory",
                found=header.memory_sha256[:12],
                expected=self.identity[:12],
                remedy="give each model a snapshot folder of its own",
            )
        if payload_bytes != self._payload_bytes or len(raw) != end + payload_bytes + _DIGEST_BYTES:
            raise SnapshotDamagedError(
                f"{name} has the wrong size",
                found=f"{payload_bytes} bytes of state",
                expected=f"{self._payload_bytes}",
            )
        states = {}
        for spec in self._specs:
            flat = np.frombuffer(raw, dtype=np.uint8, count=spec.bytes, offset=end)
            little = flat.view(np.dtype(spec.dtype).newbyteorder("<"))
            states[spec.name] = little.astype(spec.dtype).reshape(spec.shape)
            end += spec.bytes
        check_sense(header.ledger, states, name)
        return Snapshot(header, states)


def check_sense(ledger: Ledger, states: dict[str, Array], name: str) -> None:
    """What no session ever writes is not taken back, even under a right checksum."""
    odd = [state for state, array in states.items() if not is_finite(array.reshape(-1))]
    if odd:
        raise SnapshotDamagedError(f"{name} holds NaN or Inf", found=", ".join(odd))
    split = ledger.writes + ledger.quiet_steps + ledger.suppressed_writes
    if ledger.goes_back_from(Ledger()) or ledger.steps != split:
        raise SnapshotDamagedError(
            f"{name} has a ledger that no session could have counted",
            found=f"{ledger.steps} steps, {split} accounted for",
        )
