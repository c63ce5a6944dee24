"""The wear table: what each snapshot policy costs a medium, and which figures are estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stategate.common.flash import SECONDS_PER_DAY, Storage, bytes_per_day, years_at
from stategate.contract import Manifest
from stategate.contract.sessions import one_row
from stategate.runtime.keep.journal import Journal, blocks_of
from stategate.runtime.keep.records import BLOCK_BYTES
from stategate.runtime.keep.replay import record_bytes
from stategate.runtime.keep.snapshot import Codec

# Label and seconds of the policies that follow the clock.
_PERIODS = (("once a second", 1), ("every 10 s", 10), ("every minute", 60))


@dataclass(frozen=True, slots=True)
class WriteRate:
    """How often a gate opens."""

    share: float  # share of steps that write, in [0, 1]
    source: str  # who says so
    assumed: bool = False  # whether nobody measured it


@dataclass(frozen=True, slots=True)
class WearRow:
    """One snapshot policy on one medium."""

    policy: str  # when a snapshot is taken, or a commit made
    snapshots_per_second: float  # how often that is; never more often than there are steps
    bytes_per_day: float  # what the host writes
    years: float | None  # life of a new medium; None: it never wears out, for nothing is written
    estimate: bool  # whether any figure behind this row is an assumption
    assumed: tuple[str, ...]  # which ones: fields of the storage, and ``write_rate``


def write_rate(manifest: Manifest, known_share: float | None = None) -> WriteRate:
    """The share of steps that write, from the best source there is.

    Returns:
        The caller's share, else the manifest's; with several hard gates their sum, an upper bound;
        1 where nothing was measured, marked as assumed.
    """
    if known_share is not None:
        return WriteRate(known_share, "given with --write-rate")
    hard = [gate for gate in manifest.step.deciding_gates if gate.kind == "hard"]
    if not hard:
        return WriteRate(1.0, "the model has no hard gate, so every step writes")
    rates = [gate.expected_write_rate for gate in hard]
    measured = [rate for rate in rates if rate is not None]
    if len(measured) < len(rates):
        unknown = ", ".join(gate.name for gate in hard if gate.expected_write_rate is None)
        return WriteRate(
            1.0,
            f"it was not measured how often {unknown} opens; --write-rate takes a figure",
            assumed=True,
        )
    if len(hard) > 1:
        return WriteRate(
            min(1.0, sum(measured)), f"upper bound: the sum of {len(hard)} gates", assumed=True
        )
    return WriteRate(measured[0], hard[0].expected_from or "the manifest gives no source")


@dataclass(frozen=True, slots=True)
class StateBytes:
    """What one state costs, by the kind of its bytes."""

    state: str  # its name
    kind: Literal["written", "appended", "folded"]  # see docs/concepts/bytes.md
    each: int  # bytes of one write
    per_step: float  # at the write rate
    persisted: int  # in each snapshot


def state_bytes(manifest: Manifest, writes: WriteRate) -> tuple[StateBytes, ...]:
    """Bytes of each state of one session: rings take rows in all writes but those that fold."""
    states = manifest.states if manifest.sessions == 1 else one_row(manifest.states)
    turn = 1 + max((s.rows for s in states if s.cursor is not None), default=0)
    hard = manifest.step.thresholds
    costs = []
    for s in states:
        share = writes.share if s.gate in hard else 1.0
        each = s.next_value.nbytes
        if s.cursor is not None:
            share *= (turn - 1) / turn
        elif s.folds is not None:
            share /= turn
        kind: Literal["written", "appended", "folded"] = (
            "appended" if s.cursor is not None else "written" if s.folds is None else "folded"
        )
        costs.append(StateBytes(s.name, kind, each, each * share, s.bytes))
    return tuple(costs)


def state_lines(costs: tuple[StateBytes, ...]) -> list[tuple[str, str]]:
    """One line for each state, and one for all."""
    lines = [
        (
            "bytes" if i == 0 else "",
            f"{cost.state}: {cost.each:,} {cost.kind} at a time, {cost.per_step:,.0f} a step; "
            f"{cost.persisted:,} in a snapshot",
        )
        for i, cost in enumerate(costs)
    ]
    kinds = {kind: 0.0 for kind in ("written", "appended", "folded")}
    for cost in costs:
        kinds[cost.kind] += cost.per_step
    sums = ", ".join(f"{total:,.0f} {kind}" for kind, total in kinds.items() if total)
    return [*lines, ("", f"all states: {sums} a step")]


def wear_rows(
    storage: Storage, snapshot_bytes: int, rate_hz: float, writes: WriteRate
) -> tuple[WearRow, ...]:
    """What each snapshot policy costs.

    Args:
        storage: Where snapshots go.
        snapshot_bytes: Size of a snapshot, header included.
        rate_hz: Steps per second.
        writes: How many of them write.
    """
    policies = [
        ("every step", rate_hz, ()),
        ("every write", rate_hz * writes.share, ("write_rate",) if writes.assumed else ()),
        # Automatic snapshots are never taken when nothing changed, so never without a step.
        *((label, min(1 / seconds, rate_hz), ()) for label, seconds in _PERIODS),
    ]
    return tuple(
        _row(storage, label, per_second, bytes_per_day(storage, snapshot_bytes, per_second), extra)
        for label, per_second, extra in policies
    )


def journal_rows(
    storage: Storage, manifest: Manifest, rate_hz: float, writes: WriteRate
) -> tuple[WearRow, ...]:
    """What a journal costs by the same policies, its snapshots included."""
    codec, (_, change_bytes) = Codec(manifest), record_bytes(manifest)
    # A state that no hard gate guards changes in every step.
    is_gated = all(state.gate for state in manifest.states)
    every_write = rate_hz * writes.share
    changes = every_write if is_gated else rate_hz
    file_bytes = Journal.file_bytes(codec.cost_bytes, math.inf)
    snapshot_share = 2 * codec.cost_bytes / (file_bytes - BLOCK_BYTES)
    extra = ("write_rate",) if writes.assumed else ()
    policies = [("every write", every_write), *((label, 1 / each) for label, each in _PERIODS)]
    rows = []
    for label, most in policies:
        per_second = min(most, changes)
        payload = 0.0
        if per_second:
            payload = min(change_bytes * changes / per_second, manifest.state_bytes_per_session)
        nbytes = BLOCK_BYTES * blocks_of([math.ceil(payload), codec.commit_bytes])
        daily = nbytes * (1 + snapshot_share) * per_second * SECONDS_PER_DAY
        rows.append(_row(storage, f"journal, {label}", per_second, daily, extra))
    return tuple(rows)


def _row(
    storage: Storage, label: str, per_second: float, daily_bytes: float, extra: tuple[str, ...]
) -> WearRow:
    years = years_at(storage, daily_bytes)
    assumed = (*storage.assumed, *extra)
    return WearRow(
        policy=label,
        snapshots_per_second=per_second,
        bytes_per_day=daily_bytes,
        years=None if math.isinf(years) else years,
        estimate=bool(assumed),
        assumed=assumed,
    )


def years_text(years: float | None) -> str:
    """Years to two digits; a medium to which nothing is written never wears out."""
    return "for ever" if years is None else f"{years:,.0f}" if years >= 10 else f"{years:.2g}"
