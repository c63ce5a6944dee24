"""The ledger: what the memory did, in integers that only grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from stategate.runtime.base.buffers import Group


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counters of one session at one moment, over all restarts that its snapshots bridge.

    Every step that ran is a write, a quiet step or a suppressed write:
    ``steps == writes + quiet_steps + suppressed_writes``.

    Attributes:
        steps: Steps that ran, refused ones included.
        writes: Steps in which a gate opened and its states changed; in a model without hard
            gates, every step.
        quiet_steps: Steps in which every gate stayed closed.
        suppressed_writes: Steps whose write was refused, by the governor or because a state was
            not finite; the old state stayed.
        budget_overruns: Writes, snapshots and times of too much resident memory that the policy
            ``warn`` let through.
        memory_bytes_written: Bytes of state written in memory, ungated states included.
        appends: Steps that appended a row to each ring.
        appended_bytes: Those of ``memory_bytes_written`` that were rows of rings.
        folded_bytes: Those that were states into which rings were folded.
        snapshots: Snapshots written.
        persisted_bytes: Bytes of those snapshots, and of files of `save_state`.
        restores: Snapshots taken back.
        resets: Episodes begun anew: calls of ``reset``, ``load_state`` and ``begin``, resets after
            a fault, and those of the bundle's reset rules.
        faults: Steps that ended in an error of the engine, or in NaN or Inf in a gate, a next
            state or an output; and automatic snapshots that failed.
        clock_faults: Times that the clock was seen going backwards.
        deadline_misses: Steps over their deadline, and periods that a loop missed.
        ungated_writes: Steps that replaced the states that no hard gate guards.
        gate_openings: Openings of each hard gate, in steps, heads, slots or channels by its
            granularity. One of n stands for 1/n of the bytes that the gate guards, unless a state
            says how many.
        rewound_steps: Steps that were taken back, by `rewind` or at the end of a `branch`; they
            stay counted as steps and writes.
        health_alarms: Times that the stream left what the bundle's health envelope knows.
        state_bytes_written: ``memory_bytes_written``, by state.
    """

    steps: int = 0
    writes: int = 0
    quiet_steps: int = 0
    suppressed_writes: int = 0
    budget_overruns: int = 0
    memory_bytes_written: int = 0
    appends: int = 0
    appended_bytes: int = 0
    folded_bytes: int = 0
    snapshots: int = 0
    persisted_bytes: int = 0
    restores: int = 0
    resets: int = 0
    faults: int = 0
    clock_faults: int = 0
    deadline_misses: int = 0
    ungated_writes: int = 0
    rewound_steps: int = 0
    health_alarms: int = 0
    gate_openings: dict[str, int] = field(default_factory=dict)
    state_bytes_written: dict[str, int] = field(default_factory=dict)

    @property
    def write_ratio(self) -> float | None:
        """Steps per write: how many times fewer writes than writing always; None before one."""
        return self.steps / self.writes if self.writes else None

    def after(self, past: Ledger) -> Ledger:
        """This ledger and what was counted before it, as one history: every counter is their sum.

        A gate or a state that this ledger does not know is left out.
        """
        return self._combined(past, 1)

    def since(self, earlier: Ledger) -> Ledger:
        """What was counted between an earlier moment of the same history and this one."""
        return self._combined(earlier, -1)

    def _combined(self, other: Ledger, sign: int) -> Ledger:
        counted: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            own, its = getattr(self, name), getattr(other, name)
            if isinstance(own, dict):
                counted[name] = {key: n + sign * its.get(key, 0) for key, n in own.items()}
            else:
                counted[name] = own + sign * its
        return Ledger(**counted)

    def goes_back_from(self, earlier: Ledger) -> list[str]:
        """Names of counters that are smaller than they were in an earlier ledger."""
        pairs = [(f.name, getattr(self, f.name), getattr(earlier, f.name)) for f in fields(self)]
        flat = []
        for name, now, before in pairs:
            if isinstance(now, dict):
                flat += [(f"{name}.{k}", now.get(k, 0), v) for k, v in before.items()]
            else:
                flat.append((name, now, before))
        return [name for name, now, before in flat if now < before]


# What follows from the others and the openings; every other field of a ledger is counted.
_FOLLOWS = (
    "quiet_steps",
    "memory_bytes_written",
    "appended_bytes",
    "folded_bytes",
    "gate_openings",
    "state_bytes_written",
)
COUNTED = tuple(name for name in Ledger.__dataclass_fields__ if name not in _FOLLOWS)


class Counters:
    """The counters while they count; what follows from others is worked out when they are read.

    Attributes:
        openings: Open elements of each hard gate.
        past: What was counted before, by earlier sessions; `read` adds it. Replaced as a whole, so
            that an exception of a signal handler cannot leave half of it added.
    """

    __slots__ = (*COUNTED, "_groups", "openings", "past")

    steps: int
    writes: int
    suppressed_writes: int
    budget_overruns: int
    snapshots: int
    persisted_bytes: int
    restores: int
    resets: int
    faults: int
    clock_faults: int
    deadline_misses: int
    ungated_writes: int
    appends: int
    rewound_steps: int
    health_alarms: int

    def __init__(self, groups: Sequence[Group]) -> None:
        for name in COUNTED:
            setattr(self, name, 0)
        self._groups = tuple(groups)
        self.openings = [0] * sum(group.gate is not None for group in groups)
        self.past = Ledger()

    def with_openings(self, opened: Sequence[tuple[int, int]]) -> list[int]:
        """What `openings` are after a step; ``opened`` has position and elements of each gate."""
        openings = self.openings.copy()
        for i, count in opened:
            openings[i] += count
        return openings

    def add_misses(self, periods: int) -> None:
        """Count periods that a loop missed."""
        self.deadline_misses += periods

    def add_overrun(self) -> None:
        """Count memory of the process beyond its budget, under the policy ``warn``."""
        self.budget_overruns += 1

    def add_persisted(self, nbytes: int) -> None:
        """Count bytes that are about to be written to a medium."""
        self.persisted_bytes += nbytes

    def add_clock_fault(self) -> None:
        """Count a clock that was seen going backwards."""
        self.clock_faults += 1

    def read(self) -> Ledger:
        """A copy that no longer counts."""
        return self.own().after(self.past)

    def own(self) -> Ledger:
        """The same without what was counted before."""
        # Steps last: a reader in another thread then never sees more writes than steps.
        counted = {name: getattr(self, name) for name in reversed(COUNTED)}
        return tally(self._groups, counted, self.openings)

    def begin_anew(self) -> None:
        """Let the ledger be zero now, and count on from there."""
        own = self.own()
        self.past = own.since(own).since(own)


class _Counted(msgspec.Struct):
    ledger: dict[str, msgspec.Raw]


def refuse_unknown_counters(raw: bytes) -> None:
    """Refuse a record whose ledger has other counters: they would be lost in the next one.

    Args:
        raw: In JSON, and read already; msgspec passes over what a dataclass does not have.
    """
    counters = msgspec.json.decode(raw, type=_Counted).ledger
    unknown = sorted(set(counters) - {field.name for field in fields(Ledger)})
    if unknown:
        raise msgspec.ValidationError(f"the ledger has an unknown counter {unknown[0]!r}")


def tally(
    groups: Sequence[Group], counted: dict[str, int], openings: Sequence[int], rows: int = 1
) -> Ledger:
    """A ledger from what was counted; the rest follows.

    Args:
        groups: States and what decides over them, gated groups first.
        counted: Counters by name, of those in ``COUNTED``; 0 where one is missing.
        openings: Open gate elements of each gated group.
        rows: Sessions that share the groups' tensors, of which this ledger is for one.
    """
    by_gate: dict[str, int] = {}
    nbytes: dict[str, int] = {}
    appended = folded = 0
    for i, group in enumerate(groups):
        elements, times = 1, counted.get("ungated_writes", 0)
        if group.gate is not None and group.gate_slot is not None:
            times = openings[i]
            if not group.whole:
                elements = group.gate_slot.flat.size // rows
            by_gate[group.gate.name] = times
        for state in group.states:
            spec = state.spec
            once = times * spec.write_bytes
            nbytes[spec.name] = once or times * (spec.bytes // rows) // elements
            if state.row is not None:  # one row of all heads, however many of them are open
                nbytes[spec.name] = counted.get("appends", 0) * (spec.next_value.nbytes // rows)
                appended += nbytes[spec.name]
            if spec.folds is not None:
                folded += nbytes[spec.name]
    past = {name: counted.get(name, 0) for name in COUNTED}
    return Ledger(
        quiet_steps=past["steps"] - past["writes"] - past["suppressed_writes"],
        memory_bytes_written=sum(nbytes.values()),
        appended_bytes=appended,
        folded_bytes=folded,
        gate_openings=by_gate,
        state_bytes_written=nbytes,
        **past,
    )
