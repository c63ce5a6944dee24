"""The memory of a pool: what each row remembers, and which rows of a step may change it.

The engine always reads the first bank of a state and writes the second. Rows that write are then
copied back under a mask; the bytes of every other row are not even stored again.

A signal's handler may raise between any two calls. So a transition is prepared first: what comes,
for which rows, and what it counts. Then one line says that it is owed, and `RowMemory.settle` pays.
Where paying is interrupted, whoever uses the memory next pays again from the start, which changes
nothing that is paid already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stategate.contract import TensorSpec
from stategate.contract.errors import StepInputError
from stategate.contract.write_rule import opens
from stategate.runtime.base.buffers import Array, Buffers, Group, StateBanks
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.rows import RowCounters, RowTensor
from stategate.runtime.engines.feeds import check_states


@dataclass(frozen=True, slots=True)
class RowState:
    """One state of every session."""

    live: RowTensor  # what the next step reads
    coming: RowTensor  # what the last step computed, committed or not
    initial: RowTensor  # what a session starts with

    @classmethod
    def of(cls, state: StateBanks) -> RowState:
        """The rows of a state's banks."""
        arrays = (state.banks[0].array, state.banks[1].array, state.initial)
        return cls(*(RowTensor.of(state.spec.name, array) for array in arrays))


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """An output or gate of every session."""

    computed: RowTensor  # what the engine gave last, for whatever rows
    shown: RowTensor  # what each row answered in its last good step
    start: RowTensor  # what a row shows before the first good step of its episode

    @classmethod
    def of(cls, name: str, array: Array, safe: Array | None) -> RowAnswer:
        """The rows of an engine's buffer; zeros at the start where no values are safe."""
        start = np.zeros_like(array) if safe is None else safe
        arrays = (array, start.copy(), start)
        return cls(*(RowTensor.of(name, each) for each in arrays))


class RowGroup:
    """States that one gate guards, and the rows in which it is open.

    Attributes:
        states: The states, possibly none.
        gate: The hard gate that decides; None where every step of a row writes.
        writes: Mask ``(rows,)`` of the rows that write in this step.
        openings: Open elements of the gate in each row, ``(rows,)`` int64.
    """

    def __init__(self, group: Group, rows: int) -> None:
        self.states = tuple(RowState.of(state) for state in group.states)
        self.gate = group.gate.name if group.gate is not None else None
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
        opens(self._gate.table, self._threshold, out=self._open)
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

    def copy_writes(self) -> None:
        """Copy what comes in the rows that write."""
        for state in self.states:
            np.copyto(state.live.table, state.coming.table, where=self._column)


class RowMemory:
    """States, answers and counters of all rows.

    Attributes:
        counters: A ledger for each row.
        shown: Outputs and gates as each row shows them, by name.
        is_initial: Whether the episode of each row began with the initial states, ``(rows,)`` bool.
    """

    def __init__(self, buffers: Buffers, outputs: Sequence[TensorSpec], rows: int) -> None:
        self._groups = tuple(RowGroup(group, rows) for group in buffers.groups)
        self._gated = tuple(group for group in self._groups if group.gate is not None)
        self._states = {s.live.name: s for group in self._groups for s in group.states}
        self._outputs = [
            RowAnswer.of(slot.name, slot.array, spec.safe_array())
            for slot, spec in zip(buffers.outputs, outputs, strict=True)
        ]
        gates = [RowAnswer.of(slot.name, slot.array, None) for slot in buffers.gates]
        self._answers = (*self._outputs, *gates)
        self.shown = {answer.shown.name: answer.shown.array for answer in self._answers}
        self.counters = RowCounters(buffers.groups, rows)
        self._is_owed = False
        self.is_initial = np.ones(rows, dtype=bool)
        # Made once, so that no step makes an array.
        self._refused, self._sound, self._wrote = (np.zeros(rows, dtype=bool) for _ in range(3))
        self._shown_column = self._sound[:, np.newaxis]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states."""
        return tuple(self._states)

    def view(self, row: int, name: str) -> Array:
        """One state of one row, ``(1, ...)``; a view."""
        if name not in self._states:
            raise StepInputError(f"there is no state {name!r}", expected=", ".join(self._states))
        return self._states[name].live.array[row : row + 1]

    def initial(self, row: int) -> dict[str, Array]:
        """The initial value of each state of a row, ``(1, ...)``; views."""
        return {name: s.initial.array[row : row + 1] for name, s in self._states.items()}

    def begin(
        self,
        row: int,
        states: Mapping[str, Array] | None = None,
        counter: str = "resets",
        past: Ledger | None = None,
    ) -> None:
        """Begin an episode in a row: it inherits no answer.

        Args:
            row: Which one.
            states: An array ``(1, ...)`` for each state; None for their initial values.
            counter: What it counts as.
            past: A ledger from which the row goes on.
        """
        if states is not None:
            check_states(states, {name: self.view(row, name) for name in self._states})
        for name, state in self._states.items():
            value = state.initial.rows[row] if states is None else states[name].reshape(-1)
            np.copyto(state.coming.rows[row], value)
        for answer in self._answers:
            np.copyto(answer.computed.rows[row], answer.start.rows[row])
        for mask in (self._sound, *(group.writes for group in self._groups)):
            mask.fill(False)
            mask[row] = True
        self.counters.prepare()
        self.counters.put_in(row, counter)
        if past is not None:
            self.counters.put_past(row, past)
        self.is_initial[row] = states is None
        self._is_owed = True
        self.settle()

    def commit(self, stepped: Array) -> dict[int, str]:
        """Decide over a step that the engine has computed, row by row, and count it.

        Every gate is asked and every next state and output looked at before anything is copied: a
        row of which one part is not finite keeps all its states, and what it answered before.

        Args:
            stepped: Mask ``(rows,)``; other rows keep every byte and every counter.

        Returns:
            What was found in each row that was refused.
        """
        refused: dict[int, str] = {}
        for group in self._groups:
            group.decide(stepped)
            for row, what in group.faults(stepped):
                refused.setdefault(row, what)
        for answer in self._outputs:
            for row in answer.computed.not_finite(stepped):
                refused.setdefault(row, f"output {answer.computed.name!r}")
        self._refused.fill(False)
        for row in refused:
            self._refused[row] = True
        # Of truth values, "greater" is "and not".
        np.greater(stepped, self._refused, out=self._sound)
        for group in self._groups:
            np.logical_and(group.writes, self._sound, out=group.writes)
        self._prepare_counts(stepped)
        self._is_owed = True
        self.settle()
        return refused

    def _prepare_counts(self, stepped: Array) -> None:
        put = self.counters.put
        self.counters.prepare()
        np.copyto(self._wrote, self._sound)
        if self._gated:
            self._wrote.fill(False)
        for group in self._groups:
            if group.gate is None:
                put("ungated_writes", group.writes)
            else:
                np.logical_or(self._wrote, group.writes, out=self._wrote)
                np.multiply(group.openings, group.writes, out=group.openings)
                self.counters.put_openings(group.gate, group.openings)
        put("steps", stepped)
        put("writes", self._wrote)
        put("suppressed_writes", self._refused)
        put("faults", self._refused)

    def settle(self) -> None:
        """Finish a transition that was begun; nothing to do where none is owed."""
        if not self._is_owed:
            return
        for group in self._groups:
            group.copy_writes()
        for answer in self._answers:
            np.copyto(answer.shown.table, answer.computed.table, where=self._shown_column)
        self.counters.count()
        self._is_owed = False
