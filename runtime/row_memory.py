"""The memory of a pool: what each row remembers, and which rows of a step may change it.

The engine always reads the first bank of a state and writes the second. Rows that write are then
copied back under a mask; the bytes of every other row are not even stored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stategate.contract.errors import MissingInputError, UnknownInputError
from stategate.runtime.buffers import Array, Buffers, Group, StateBanks, is_finite
from stategate.runtime.feeds import fits, misfit, not_finite
from stategate.runtime.rows import RowCounters, RowTensor


@dataclass(frozen=True, slots=True)
class RowState:
    """One state of every session.

    Attributes:
        live: What the next step reads.
        coming: What the last step computed, committed or not.
        initial: What a session starts with.
    """

    live: RowTensor
    coming: RowTensor
    initial: RowTensor

    @classmethod
    def of(cls, state: StateBanks) -> RowState:
        """The rows of a state's banks."""
        arrays = (state.banks[0].array, state.banks[1].array, state.initial)
        return cls(*(RowTensor.of(state.spec.name, array) for array in arrays))


class RowGroup:
    """States that one gate guards, and the rows in which it is open.

    Attributes:
        states: The states, possibly none.
        gated: Whether a hard gate decides; otherwise every step of a row writes.
        writes: Mask ``(rows,)`` of the rows that write in this step.
        openings: Open elements of the gate in each row, ``(rows,)`` int64.
    """

    def __init__(self, group: Group, rows: int) -> None:
        self.states = tuple(RowState.of(state) for state in group.states)
        self.gated = group.gate is not None
        self._whole = group.whole
        self.writes = np.zeros(rows, dtype=bool)
        self._column = self.writes[:, np.newaxis]
        slot = group.gate_slot
        self._gate = RowTensor.of(slot.name, slot.array) if slot is not None else None
        self.openings = np.zeros(rows, dtype=np.int64)
        self._open = np.zeros(self._gate.table.shape if self._gate else (rows, 1), dtype=bool)
        threshold = group.gate.threshold if group.gate is not None else None
        # An array: a Python float would become a new one in every comparison.
        self._threshold = np.full(1, threshold or 0.0, dtype=np.float32)

    def decide(self, stepped: Array) -> None:
        """Fill ``writes``: the stepped rows whose gate is above the threshold anywhere."""
        if self._gate is None:
            np.copyto(self.writes, stepped)
            return
        np.greater(self._gate.table, self._threshold, out=self._open)
        np.add.reduce(self._open, axis=1, dtype=np.int64, out=self.openings)
        if self._whole:
            np.minimum(self.openings, 1, out=self.openings)
        np.logical_and(self.openings, stepped, out=self.writes)

    def faults(self, stepped: Array) -> Iterator[tuple[int, str]]:
        """Rows whose gate or next state is not finite, and which of the two it is."""
        if self._gate is not None:
            for row in self._gate.not_finite(stepped):
                yield row, f"gate {self._gate.name!r}"
        for state in self.states:
            for row in state.coming.not_finite(self.writes):
                yield row, f"next state {state.coming.name!r}"

    def commit(self, sound: Array) -> None:
        """Copy the rows that write and are sound; ``writes`` keeps no others."""
        np.logical_and(self.writes, sound, out=self.writes)
        for state in self.states:
            np.copyto(state.live.table, state.coming.table, where=self._column)


class RowMemory:
    """States, gates and counters of all rows.

    Attributes:
        counters: A ledger for each row.
    """

    def __init__(self, buffers: Buffers, rows: int) -> None:
        self._groups = tuple(RowGroup(group, rows) for group in buffers.groups)
        self._gated = tuple(group for group in self._groups if group.gated)
        self._states = {s.live.name: s for group in self._groups for s in group.states}
        self.counters = RowCounters(buffers.groups, rows)
        # Made once, so that no step makes an array.
        self._refused, self._sound, self._wrote = (np.zeros(rows, dtype=bool) for _ in range(3))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states."""
        return tuple(self._states)

    def begin(self, row: int) -> None:
        """Put every state of a row to its initial value."""
        for state in self._states.values():
            np.copyto(state.live.rows[row], state.initial.rows[row])

    def view(self, row: int, name: str) -> Array:
        """One state of one row, ``(1, ...)``; a view.

        Raises:
            UnknownInputError: There is no state of that name.
        """
        if name not in self._states:
            raise UnknownInputError(f"there is no state {name!r}", expected=", ".join(self._states))
        return self._states[name].live.array[row : row + 1]

    def load(self, row: int, states: Mapping[str, Array]) -> None:
        """Replace every state of a row; see `Pool.load_state`."""
        for name in states:
            self.view(row, name)
        for name in self._states:
            value, place = states.get(name), self.view(row, name)
            if value is None:
                raise MissingInputError(
                    f"state {name!r} is missing",
                    found=", ".join(sorted(states)) or "no states",
                    expected=", ".join(self._states),
                )
            if not fits(value, place):
                raise misfit(f"state {name!r}", value, place)
            if not is_finite(value.reshape(-1)):
                raise not_finite(f"state {name!r}", value.reshape(-1))
        for name, value in states.items():
            np.copyto(self.view(row, name), value)

    def commit(self, stepped: Array) -> dict[int, str]:
        """Decide over a step that the engine has computed, row by row, and count it.

        Every gate is asked and every next state looked at before anything is copied: a row of
        which one part is not finite keeps all its states.

        Args:
            stepped: Mask ``(rows,)``; other rows keep every byte and every counter.

        Returns:
            What was found in each row that was refused.
        """
        refused: dict[int, str] = {}
        self._refused.fill(False)
        for group in self._groups:
            group.decide(stepped)
            for row, what in group.faults(stepped):
                refused.setdefault(row, what)
                self._refused[row] = True
        # Of truth values, "greater" is "and not".
        np.greater(stepped, self._refused, out=self._sound)
        if self._gated:
            self._wrote.fill(False)
        else:
            np.copyto(self._wrote, self._sound)
        for group in self._groups:
            group.commit(self._sound)
            if group.gated:
                np.logical_or(self._wrote, group.writes, out=self._wrote)
        self._count(stepped)
        return refused

    def _count(self, stepped: Array) -> None:
        add = self.counters.add
        add("steps", stepped)
        add("writes", self._wrote)
        add("suppressed_writes", self._refused)
        add("faults", self._refused)
        for i, group in enumerate(self._groups):
            if group.gated:
                self.counters.add_openings(i, group.writes, group.openings)
            else:
                add("ungated_writes", group.writes)
