"""Row by row: tensors and counters whose leading axis is the sessions of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stategate.runtime.base.buffers import Array, Group, finiteness, is_finite
from stategate.runtime.base.ledger import COUNTED, Ledger, tally


@dataclass(frozen=True, slots=True)
class RowTensor:
    """A buffer with a row for each session."""

    name: str  # its name in the graph
    array: Array  # the buffer in the tensor's shape, ``(rows, ...)``
    flat: Array  # the same memory, 1-d
    table: Array  # the same memory as ``(rows, elements of a row)``
    rows: tuple[Array, ...]  # the same memory, a 1-d view for each row
    finite: Callable[[], bool]  # whether no row holds NaN or Inf now

    @classmethod
    def of(cls, name: str, array: Array) -> RowTensor:
        """The rows of a contiguous array."""
        table = array.reshape(len(array), -1)
        flat = array.reshape(-1)
        return cls(name, array, flat, table, tuple(table), finiteness(flat))

    def not_finite(self, among: Array) -> Sequence[int]:
        """Rows that hold NaN or Inf, of those that the mask ``among`` names."""
        if self.finite():
            return ()
        return [r for r, values in enumerate(self.rows) if among[r] and not is_finite(values)]


class RowCounters:
    """A ledger for each row while it counts, in one int64 table made once.

    What a transition counts is prepared in a table of the same shape, and then added in one call,
    so that whoever is interrupted has counted all of it or nothing.
    """

    def __init__(self, groups: Sequence[Group], rows: int) -> None:
        self._groups, self._rows = tuple(groups), rows
        self._gates = [group.gate.name for group in groups if group.gate is not None]
        # In the last row the first number counts the transitions themselves.
        height = len(COUNTED) + len(self._gates) + 1
        self._table, self._next = (np.zeros((height, rows), dtype=np.int64) for _ in range(2))
        self._row_of = {name: at for at, name in enumerate(COUNTED)}
        # Apart from those: a gate may have the name of a counter.
        self._row_of_gate = {name: at for at, name in enumerate(self._gates, len(COUNTED))}
        self._transitions = 0

    def prepare(self) -> None:
        """Begin to prepare a transition that counts nothing yet."""
        self._next.fill(0)
        self._next[-1, 0] = 1
        self._transitions = int(self._table[-1, 0]) + 1

    def put(self, name: str, amounts: Array) -> None:
        """Prepare amounts ``(rows,)`` of a counter."""
        np.copyto(self._next[self._row_of[name]], amounts)

    def put_openings(self, gate: str, amounts: Array) -> None:
        """Prepare how many elements ``(rows,)`` of a gate are open."""
        np.copyto(self._next[self._row_of_gate[gate]], amounts)

    def put_in(self, row: int, name: str) -> None:
        """Prepare 1 in a counter of one row."""
        self._next[self._row_of[name], row] = 1

    def put_past(self, row: int, past: Ledger) -> None:
        """Prepare an earlier ledger, from which a row goes on; after `put_in`."""
        for name in COUNTED:
            self._next[self._row_of[name], row] += getattr(past, name)
        for name in self._gates:
            self._next[self._row_of_gate[name], row] = past.gate_openings.get(name, 0)

    def go_on_from(self, row: int, past: Ledger) -> None:
        """Add what was counted elsewhere to the ledger of one row."""
        self.prepare()
        self.put_past(row, past)
        self.count()

    def count(self) -> None:
        """Add what was prepared; a second call changes nothing."""
        if self._table[-1, 0] != self._transitions:
            np.add(self._table, self._next, out=self._table)

    def add(self, name: str, mask: Array) -> None:
        """Add 1 to one counter of the masked rows at once."""
        count = self._table[self._row_of[name]]
        np.add(count, mask, out=count)

    def add_in(self, row: int, name: str, amount: int = 1) -> None:
        """Add to one counter of one row at once."""
        self._table[self._row_of[name], row] += amount

    def read(self, row: int) -> Ledger:
        """The counters of one row as they stand."""
        counts = [int(count) for count in self._table[:-1, row]]
        counted = dict(zip(COUNTED, counts, strict=False))
        return tally(self._groups, counted, counts[len(COUNTED) :], self._rows)

    def clear(self, row: int) -> None:
        """Start the ledger of one row anew, for another session."""
        self._table[:-1, row] = 0
