"""The steps of a session as somebody looks at them: a row each, and what writes changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from operator import attrgetter
from typing import Any

import numpy as np

from stategate.runtime.base.buffers import Array, Slot
from stategate.runtime.base.ledger import Counters
from stategate.runtime.base.tensor import Tensor
from stategate.runtime.memory.banks import Memory

WROTE, SUPPRESSED, FAULT, LATE, ALARM, BEGAN = 1, 2, 4, 8, 16, 32  # flags of a row
EVENTS = WROTE | SUPPRESSED | FAULT | LATE | ALARM | BEGAN
MOST_ROWS = 20_000  # of a page
_ROWS = 8192
_MOMENTS = 64
_MOMENT_BYTES = 1 << 18  # larger memories are not copied in every step
_FLAGS = (
    ("writes", WROTE),
    ("suppressed_writes", SUPPRESSED),
    ("faults", FAULT),
    ("deadline_misses", LATE),
    ("health_alarms", ALARM),
    ("resets", BEGAN),
)

Row = list[Any]
"""Number of the step, its microseconds or None, its flags, and the largest element of each gate."""


@dataclass(slots=True)
class Moment:
    """One step: what it was given, what it gave, and the memory before and after."""

    step: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    gates: Mapping[str, Array]
    before: Mapping[str, Array]
    after: Mapping[str, Array]
    wrote: bool
    fault: str = ""

    def record(self) -> dict[str, Any]:
        """In numbers that a page shows; of a state what changed."""
        kinds = {"inputs": self.inputs, "outputs": self.outputs, "gates": self.gates}
        shown = {kind: {n: looked_at(a) for n, a in each.items()} for kind, each in kinds.items()}
        states = {n: _change(self.before.get(n), array) for n, array in self.after.items()}
        facts = {"step": self.step, "wrote": self.wrote, "fault": self.fault}
        return {**facts, **shown, "states": states}


def looked_at(array: Array) -> dict[str, Any]:
    """A tensor for JSON, which knows neither NaN nor infinity."""
    tensor = asdict(Tensor.of(array))
    tensor["values"] = [number(value) for value in tensor["values"]]
    return {key: number(v) if isinstance(v, float) else v for key, v in tensor.items()}


def number(value: float) -> float | None:
    """A finite number, or None."""
    return float(f"{value:.7g}") if isfinite(value) else None


def _change(before: Array | None, after: Array) -> dict[str, Any]:
    shown = looked_at(after)
    if before is None:
        return shown
    is_changed = (before != after).reshape(-1)
    distance = np.abs(after.astype(np.float64) - before.astype(np.float64)).reshape(-1)
    where = int(distance.argmax()) if distance.size else 0
    more: dict[str, Any] = {"changed": int(is_changed.sum()), "elements": int(distance.size)}
    if distance.size:
        more["rms_before"] = number(Tensor.of(before).rms)
        more["largest_change"] = number(float(distance[where]))
        more["at"] = [int(i) for i in np.unravel_index(where, after.shape)]
    return shown | more


def gate_values(gates: Iterable[Array]) -> list[float | None]:
    """The largest element of each gate: it alone decides whether any is open."""
    return [number(float(array.max())) for array in gates]


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """No more rows than ``most``, evenly taken; those of events before all others."""
    if len(rows) <= most:
        return list(rows)
    events = [row for row in rows if row[2] & EVENTS]
    if len(events) >= most:
        return [events[i * len(events) // most] for i in range(most)]
    quiet = [row for row in rows if not row[2] & EVENTS]
    room = most - len(events)
    return sorted(events + [quiet[i * len(quiet) // room] for i in range(room)])


def drawn(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """As many rows as a page takes, and a note where that is not all."""
    shown = thinned(rows, MOST_ROWS)
    note = f"{len(shown):,} of {len(rows):,} steps are drawn, writes first"
    return shown, {"note": note} if len(shown) < len(rows) else {}


class Tap:
    """Notes steps while somebody looks.

    `note` is called by the thread that steps; everything else by those that serve pages, which find
    whole rows and nothing that a step goes on changing.

    Attributes:
        viewers: How many look; with none a step is not noted.
        count: Rows that were ever noted.
    """

    def __init__(
        self,
        counters: Counters,
        memory: Memory,
        inputs: Sequence[Slot],
        outputs: Mapping[str, Array],
        gates: Mapping[str, Array],
        state_bytes: int,
    ) -> None:
        self._counters, self._memory = counters, memory
        self._inputs, self._outputs, self._gates = inputs, outputs, gates
        self._flags = [(name, flag) for name, flag in _FLAGS if hasattr(counters, name)]
        self._totals = attrgetter(*(name for name, _ in self._flags))
        self._last_totals = self._totals(counters)
        self._rows: deque[Row] = deque(maxlen=_ROWS)
        self._moments: deque[Moment] = deque(maxlen=_MOMENTS)
        self._keeps_states = state_bytes <= _MOMENT_BYTES
        self._before: dict[str, Array] = {}
        self.viewers = self.count = 0

    def note(self, elapsed_ns: int) -> None:
        """A step has ended."""
        totals_before, self._last_totals = self._last_totals, self._totals(self._counters)
        if not self.viewers:
            self._before = {}
            return
        flags = 0
        for now, before, (_, flag) in zip(
            self._last_totals, totals_before, self._flags, strict=True
        ):
            flags |= flag * (now != before)
        step = self._counters.steps + self._counters.past.steps
        values = gate_values(self._gates.values())
        if self._keeps_states:
            after = {name: array.copy() for name, array in self._memory.live().items()}
            if flags & EVENTS:
                inputs = {slot.name: slot.array.copy() for slot in self._inputs}
                outputs, gates = (
                    {name: array.copy() for name, array in each.items()}
                    for each in (self._outputs, self._gates)
                )
                wrote = bool(flags & WROTE)
                parts = (step, inputs, outputs, gates, self._before, after, wrote)
                self._moments.append(Moment(*parts))
            self._before = after
        self._rows.append([step, elapsed_ns // 1000, flags, *values])
        self.count += 1

    def since(self, count: int) -> tuple[list[Row], int]:
        """Rows after the first ``count``, as far as they are kept, and how many there were."""
        rows, now = self._copied(self._rows), self.count
        return rows[len(rows) - min(len(rows), max(0, now - count)) :], now

    def moment(self, step: int) -> dict[str, Any] | None:
        """What is kept of one step; None where nothing is."""
        matches = (m for m in reversed(self._copied(self._moments)) if m.step == step)
        moment = next(matches, None)
        return moment.record() if moment is not None else None

    def moments(self) -> dict[int, dict[str, Any]]:
        """All that is kept, by step."""
        return {moment.step: moment.record() for moment in self._copied(self._moments)}

    @staticmethod
    def _copied(ring: deque[Any]) -> list[Any]:
        while True:
            try:
                return list(ring)
            except RuntimeError:  # a step was noted meanwhile
                continue
