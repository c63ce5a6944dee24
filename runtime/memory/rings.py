"""Rings of a session: rows are appended in place, and the last steps can be taken back.

A ring is not swapped. Its row goes behind those that are held, where nothing is read, and is part
of the memory only once the cursor has moved past it: a step that fails half-way changes nothing.
That is also why steps can be taken back: the cursor and what else every step replaces are put back
to what they were, and rows behind the cursor are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import SupportsIndex

import numpy as np

from stategate.contract.errors import SpecError, StepInputError
from stategate.runtime.base.buffers import Array, Buffers, Group


class Rings:
    """All rings of a session, which are appended to together.

    Attributes:
        rows: Rows of each.
        position: Place of the step that is kept next, and how many steps can be taken back now.
    """

    def __init__(self, buffers: Buffers, group: Group, keeps_steps: bool) -> None:
        """Prepare a view for every row."""
        rings = [state for state in group.states if state.row is not None]
        self._group = group
        self.rows = rings[0].spec.rows
        self._cursor = next(s for s in buffers.states if s.spec.name == rings[0].spec.cursor)
        self._cursor_bit = buffers.bit_of(self._cursor)
        # For each ring: rows of both banks, and what comes next.
        self._places = [
            (tuple([*bank.array.reshape(self.rows, -1)] for bank in ring.banks), ring.row.flat)
            for ring in rings
            if ring.row is not None
        ]
        ungated = next(each for each in buffers.groups if each.gate is None)
        self._ungated = ungated
        self._depth = self.rows if keeps_steps else 0
        # What every step replaces, as it was before each of the last steps; and one place more,
        # so that a step that is refused after it was laid ready overwrites none of them.
        self._slots = self._depth + 1
        self._history = [
            (state, np.zeros((self._slots, *state.spec.shape), state.spec.dtype))
            for state in ungated.states
            if keeps_steps
        ]
        self._counts = next((past for s, past in self._history if s is self._cursor), None)
        self.begin()

    def begin(self) -> None:
        """Forget the steps before: other states are put in place."""
        self.position = (0, 0)
        # Rows that were held when a step failed since the last fold, and that were left of them.
        self._failure: tuple[int, int] | None = None

    def count(self, parity: int) -> int:
        """Rows that the rings hold."""
        return int(self._cursor.banks[bool(parity & self._cursor_bit)].numbers[0])

    def step(self, parity: int, appends: bool) -> tuple[bool, tuple[int, int]]:
        """Lay a step ready: keep what it replaces, and put its rows behind those that are held.

        Returns:
            Whether rows were put, and the next `position`. Full rings take none: that step folds
            them, and its own row with the others.
        """
        place, undoable = self.position
        if self._depth:
            live = bool(parity & self._ungated.bit)
            for state, past in self._history:
                np.copyto(past[place], state.banks[live].array)
            place = (place + 1) % self._slots
            undoable = min(undoable + 1, self._depth)
        if not appends:
            return False, (place, undoable)
        count = self.count(parity)
        if count >= self.rows:
            self._failure = None
            return False, (place, 0)
        live = bool(parity & self._group.bit)
        for banks, row in self._places:
            np.copyto(banks[live][count], row)
        return True, (place, undoable)

    def steps_to_retreat(self, parity: int) -> int:
        """How many of the last steps to take back after a fault: those since before a write.

        The memory may fail again and again where it failed before. So unless it has grown beyond
        that place, one write more is taken back than after the last fault.
        """
        place, undoable = self.position
        rows = self.count(parity)
        if self._failure is None or rows > self._failure[0]:
            self._failure = rows, rows
        furthest, below = self._failure
        self._failure = furthest, below - 1
        counts = self._counts
        assert counts is not None
        back = range(1, undoable + 1)
        return next((n for n in back if counts[(place - n) % self._slots] < below), undoable)

    def take_back(self, steps: SupportsIndex, parity: int) -> tuple[int, tuple[int, int]]:
        """Lay ready what was before the last steps.

        Returns:
            The parity with which it is read, and the next `position`.
        """
        number: object = steps
        place, undoable = self.position
        try:
            steps = 0 if isinstance(steps, bool) else index(steps)
        except TypeError:
            steps = 0
        if not 1 <= steps <= undoable:
            raise SpecError(
                "so many steps cannot be taken back",
                found=f"{number!r} steps",
                expected=f"1 to {undoable}: what the rings hold since the last fold"
                if undoable
                else "a step since the last fold; there is none",
                remedy=None if self._depth else "Session.open(path, rewind=True)",
            )
        place = (place - steps) % self._slots
        spare = not parity & self._ungated.bit
        for state, past in self._history:
            np.copyto(state.banks[spare].array, past[place])
        return parity ^ self._ungated.bit, (place, undoable - steps)

    def readable(self, ring: Array, parity: int) -> Array:
        """A copy of a ring as others see it: zeros behind the rows that are held."""
        copy = ring.copy()
        copy[:, self.count(parity) :] = 0
        return copy

    def check(self, states: Mapping[str, Array]) -> None:
        """Refuse states whose cursor points outside of the rings."""
        name = self._cursor.spec.name
        count = int(states[name][0])
        if not 0 <= count <= self.rows:
            raise StepInputError(
                f"the state {name!r} counts rows that no ring has",
                found=count,
                expected=f"0 to {self.rows}",
            )
