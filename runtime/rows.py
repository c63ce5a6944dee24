"""Row by row: tensors and counters whose leading axis is the sessions of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stategate.runtime.buffers import Array, Group, is_finite
from stategate.runtime.ledger import Ledger, tally

_COUNTERS = (
    "steps",
    "writes",
    "suppressed_writes",
    "ungated_writes",
    "snapshots",
    "persisted_bytes",
    "restores",
    "resets",
    "faults",
)


@dataclass(frozen=True, slots=True)
class RowTensor:
    """A buffer with a row for each session.

    Attributes:
        name: Its name in the graph.
        array: The buffer in the tensor's shape, ``(rows, ...)``.
        flat: The same memory, 1-d.
        table: The same memory as ``(rows, elements of a row)``.
        rows: The same memory, a 1-d view for each row.
    """

    name: str
    array: Array
    flat: Array
    table: Array
    rows: tuple[Array, ...]

    @classmethod
    def of(cls, name: str, array: Array) -> RowTensor:
        """The rows of a contiguous array."""
        table = array.reshape(len(array), -1)
        return cls(name, array, array.reshape(-1), table, tuple(table))

    def not_finite(self, among: Array) -> Sequence[int]:
        """Rows that hold NaN or Inf, of those that the mask ``among`` names."""
        if is_finite(self.flat):
            return ()
        return [r for r, values in enumerate(self.rows) if among[r] and not is_finite(values)]


class RowCounters:
    """A ledger for each row while it counts, in int64 arrays made once."""

    def __init__(self, groups: Sequence[Group], rows: int) -> None:
        self._groups, self._rows = tuple(groups), rows
        self._counts = {name: np.zeros(rows, dtype=np.int64) for name in _COUNTERS}
        gated = sum(group.gate is not None for group in groups)
        self._openings = [np.zeros(rows, dtype=np.int64) for _ in range(gated)]
        self._one = np.ones(rows, dtype=np.int64)

    def add(self, name: str, mask: Array) -> None:
        """Add 1 to one counter of the masked rows."""
        count = self._counts[name]
        np.add(count, self._one, out=count, where=mask)

    def add_openings(self, gate: int, mask: Array, elements: Array) -> None:
        """Add the open elements ``(rows,)`` of one gate, in the masked rows."""
        count = self._openings[gate]
        np.add(count, elements, out=count, where=mask)

    def add_in(self, row: int, name: str, amount: int = 1) -> None:
        """Add to one counter of one row."""
        self._counts[name][row] += amount

    def go_on_from(self, row: int, past: Ledger) -> None:
        """Add an earlier ledger to the counters of one row."""
        for name, count in self._counts.items():
            count[row] += getattr(past, name)
        gated = (group.gate.name for group in self._groups if group.gate is not None)
        for count, name in zip(self._openings, gated, strict=True):
            count[row] += past.gate_openings.get(name, 0)

    def read(self, row: int) -> Ledger:
        """The counters of one row as they stand."""
        counted = {name: int(count[row]) for name, count in self._counts.items()}
        openings = [int(count[row]) for count in self._openings]
        return tally(self._groups, counted, openings, self._rows)

    def clear(self, row: int) -> None:
        """Start the ledger of one row anew, for another session."""
        for count in (*self._counts.values(), *self._openings):
            count[row] = 0
