"""The memory of a session: which bank of each state is live, and what is in the other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import SupportsIndex

import numpy as np

from stategate.contract.chain import START, chained_sums, sums_of
from stategate.contract.errors import SpecError, StateFault
from stategate.contract.write_rule import opens, opens_number
from stategate.runtime.base.buffers import Array, Buffers, Group, Slot, StateBanks, is_finite
from stategate.runtime.base.ledger import Counters
from stategate.runtime.engines.engine import Chaining, Engine, Resident
from stategate.runtime.memory.rings import Rings


class Memory:
    """Holds the banks, and says whether what an engine put into them may be read next.

    A signal's handler may raise between any two calls. So what belongs together is worked out
    first, and then stored in consecutive lines that call nothing: it happens as a whole or not.

    Attributes:
        parity: Mask that tells the engine which banks to read; see `Engine.run`.
        has_gates: Whether there is a hard gate; without one every step is a write.
        has_ungated: Whether there is a state that no hard gate guards.
        committed: Steps whose result was put in place, since the memory was made.
        is_initial: Whether the episode began with the initial states, and not with given ones.
        after_fault: What a fault says is in place then, and what to do.
        chain: Of hashes, over all states after each step up to the last `chain_up`; None where
            nobody asked for one.
        replacements: How often states were put in place by something else than a step.
        began: What ``committed`` was when the states were last replaced from outside: an episode
            begins there.
    """

    def __init__(
        self,
        buffers: Buffers,
        counters: Counters,
        thresholds: list[float] | None = None,
        resident: Resident | None = None,
        keeps_steps: bool = False,
    ) -> None:
        """Start with every state at its initial value.

        Args:
            buffers: The banks.
            counters: Where steps are counted.
            thresholds: Of the hard gates, float32; whoever owns the list may move them. None for
                those of the manifest.
            resident: The engine, where it keeps the states itself.
            keeps_steps: Whether steps shall be taken back.
        """
        self._resident = resident
        self.parity = 0
        self.committed = self.began = 0
        self.is_initial = True
        self.chain: int | None = None
        self._chained_steps = self.replacements = 0
        self._sums: list[int] = []
        self._sums_key = (-1, 0)
        self._chaining: Callable[[int, int], int] = self._chained_in_numpy
        self.after_fault = "the state before this step is in place: go on, or call reset()"
        self._states = buffers.states
        self._bits = {s.spec.name: buffers.bit_of(s) for s in buffers.states}
        self._outputs = tuple(s for s in buffers.outputs if s.array.dtype.kind == "f")
        ring = next((group for group in buffers.groups if group.appends), None)
        self.rings = None if ring is None else Rings(buffers, ring, keeps_steps)
        self._every_bit = (1 << len(buffers.groups)) - 1
        self._counters = counters
        self._gated = tuple(g for g in buffers.groups if g.gate is not None)
        hard = {g.gate_slot.name for g in self._gated if g.gate_slot is not None}
        self._soft = tuple(slot for slot in buffers.gates if slot.name not in hard)
        self._hard = [
            (g.gate_slot, g.open_mask, g.whole) for g in self._gated if g.gate_slot is not None
        ]
        self._ungated = next((g for g in buffers.groups if g.gate is None), None)
        self.has_gates, self.has_ungated = bool(self._gated), self._ungated is not None
        self._thresholds = thresholds or [
            float(np.float32(g.gate.threshold)) for g in self._gated if g.gate is not None
        ]

    @property
    def on_device(self) -> bool:
        """Whether the engine keeps the states where no other one sees them."""
        return self._resident is not None

    def open_gates(self, finite: bool) -> list[tuple[int, int]]:
        """The hard gates that are open: the position of each, and how many of its elements are.

        Args:
            finite: Whether the engine has seen that every gate is; see `Engine.run`.
        """
        if not finite:
            for slot in self._soft:
                if not slot.finite():
                    raise self._fault(slot, "gate")
        opened = []
        for i, (slot, mask, whole) in enumerate(self._hard):
            if mask is None:
                value: float = slot.numbers[0]
                if not isfinite(value):
                    raise self._fault(slot, "gate")
                count = 1 if opens_number(value, self._thresholds[i]) else 0
            else:
                if not slot.finite():
                    raise self._fault(slot, "gate")
                opens(slot.flat, self._thresholds[i], out=mask)
                count = int(np.count_nonzero(mask))
            if count:
                opened.append((i, 1 if whole else count))
        return opened

    def check_next(self, opened: list[tuple[int, int]], swaps_ungated: bool, finite: bool) -> int:
        """The parity after this step, if everything that it would put in place is finite.

        Args:
            opened: Gates whose states are written; see `open_gates`.
            swaps_ungated: Whether the states that no hard gate guards are replaced.
            finite: Whether the engine has seen that every output is.
        """
        parity = self.parity
        if self._ungated is not None:
            self._check_group(self._ungated)
            if swaps_ungated:
                parity ^= self._ungated.bit
        for i, _ in opened:
            group = self._gated[i]
            self._check_group(group)
            if not group.appends:
                parity ^= group.bit
        if not finite:
            for slot in self._outputs:
                if not slot.finite():
                    raise self._fault(slot, "output")
        return parity

    def commit_chunk(
        self, outputs: Mapping[str, Slot], gates: Mapping[str, Slot], steps: int
    ) -> None:
        """Take over what a chunk graph computed.

        Args:
            outputs: Outputs of the chunk by name, each ``(1, chunk, ...)``.
            gates: Its gates, the same.
            steps: How many of the chunk's steps are meant.
        """
        counters = self._counters
        for slot in gates.values():
            if not is_finite(slot.array[0, :steps].reshape(-1)):  # what padding gave is no matter
                raise self._fault(slot, "gate")
        wrote = np.full(steps, not self._gated)
        swaps = 0
        counts = []
        for threshold, group in zip(self._thresholds, self._gated, strict=True):
            assert group.gate is not None
            values = gates[group.gate.name].array[0, :steps].reshape(steps, -1)
            is_open = opens(values, threshold)
            any_open = is_open.any(axis=1)
            wrote |= any_open
            counts.append(int((any_open if group.whole else is_open).sum()))
            if counts[-1]:
                self._check_group(group)
                swaps |= group.bit
        if self._ungated is not None:
            self._check_group(self._ungated)
            swaps |= self._ungated.bit
        for slot in outputs.values():
            if not is_finite(slot.array[0, :steps].reshape(-1)):
                raise self._fault(slot, "output")
        writes = int(wrote.sum())
        openings = [a + b for a, b in zip(counters.openings, counts, strict=True)]
        # From here on nothing is called.
        self.committed += steps
        self.parity ^= swaps
        counters.steps += steps
        counters.writes += writes
        counters.openings = openings
        if self.has_ungated:
            counters.ungated_writes += steps

    def _check_group(self, group: Group) -> None:
        live = bool(self.parity & group.bit)
        if self._resident is not None:
            if not self._resident.finite(group, self.parity):
                raise self._fault(group.states[0].target(live), "next state")
            return
        for state in group.states:
            target = state.target(live)
            if not target.finite():
                raise self._fault(target, "next state")

    def _fault(self, slot: Slot, what: str) -> StateFault:
        """The error for a tensor that is not finite, once it is counted."""
        problem = StateFault(
            f"the {what} {slot.name!r} holds NaN or Inf; the write was refused",
            found=f"in step {self._counters.read().steps + 1}",
            expected="finite numbers",
            remedy=self.after_fault,
        )
        self._counters.steps += 1
        self._counters.suppressed_writes += 1
        self._counters.faults += 1
        return problem

    def keep_chain(self, engine: Engine) -> None:
        """Chain the states from now on, as fast as an engine can."""
        self.chain_up()
        self.chain = START if self.chain is None else self.chain
        self._chained_steps = self.committed
        # An engine sees all of a ring, and not only the rows that count.
        own = engine.chaining() if isinstance(engine, Chaining) and self.rings is None else None
        self._chaining = own or self._chained_in_numpy

    def chain_up(self) -> None:
        """Take the states after the last step into the chain, if they are not in it yet.

        Called before they can change, and so before the next step and not after the last: an
        exception of a signal's handler then leaves no step out.
        """
        if self.chain is not None and self._chained_steps != self.committed:
            chain = self._chaining(self.chain, self.parity)
            self.chain = chain
            self._chained_steps = self.committed

    def _chained_in_numpy(self, chain: int, parity: int) -> int:
        key = (parity, self.replacements)
        # A quiet step leaves every byte where it is; rings grow in the bank that is live.
        if self._sums_key != key or self.rings is not None:
            self._sums = [total for array in self.live().values() for total in sums_of(array)]
            self._sums_key = key
        return chained_sums(chain, self._sums)

    @property
    def is_full(self) -> bool:
        """Whether there are rings, and no row more fits: the next write folds them."""
        rings = self.rings
        return rings is not None and rings.count(self.parity) >= rings.rows

    def lay_rows(self, opened: list[tuple[int, int]]) -> tuple[bool, tuple[int, int]]:
        """See `Rings.step`; there are rings."""
        assert self.rings is not None
        return self.rings.step(self.parity, any(self._gated[i].appends for i, _ in opened))

    def _rewindable(self) -> Rings:
        if self.rings is None or self._resident is not None:
            raise SpecError(
                "no step of this memory can be taken back",
                found="an engine that keeps the states itself" if self.rings else "no rings",
                expected="a bundle in deferred form, stepped in the process's memory",
                remedy="stategate export MODEL --defer 16; or session.branch()",
            )
        return self.rings

    def rewind(self, steps: SupportsIndex) -> None:
        """Take back the last steps, and count that."""
        rings = self._rewindable()
        self.chain_up()
        before = rings.position[1]
        parity, position = rings.take_back(steps, self.parity)
        self.replacements += 1
        # From here on nothing is called.
        self.parity, rings.position = parity, position
        self._counters.rewound_steps += before - position[1]

    def prepare_retreat(self, resets: bool) -> None:
        """Refuse to take back steps after faults where that cannot be, or the bundle ``resets``."""
        if resets:
            raise SpecError(
                "this bundle resets its memory after a fault, so no step is taken back",
                found="on_fault in the resets of its observation contract",
                remedy='Session.open(path, on_fault="hold")',
            )
        self._rewindable()
        self.after_fault = "the last write is taken back where it was kept: go on, or call reset()"

    def retreat(self) -> None:
        """Take back the last write after a fault, or as much of what came since as is kept."""
        steps = self._rewindable().steps_to_retreat(self.parity)
        if steps:
            self.rewind(steps)

    def live(self) -> dict[str, Array]:
        """What the next step reads, by name; not copies, but of rings, of which rows are held."""
        if self._resident is not None:
            self._resident.fetch(self.parity)
        live = {s.spec.name: self._bank(s, self.parity) for s in self._states}
        if self.rings is not None:
            for state in self._states:
                if state.row is not None:
                    name = state.spec.name
                    live[name] = self.rings.readable(live[name], self.parity)
        return live

    def restore(self, states: Mapping[str, Array]) -> None:
        """Take back a snapshot's states, and count that; ``states`` has an array for each."""
        parity = self._laid_ready(states)
        self.parity, self.began, self.is_initial = parity, self.committed, False
        self._counters.restores += 1

    def put(self, states: Mapping[str, Array]) -> None:
        """Put states in place and count nothing, as somebody does who replays steps."""
        self.parity = self._laid_ready(states)

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Put everything back at the end, and count the steps that were taken meanwhile."""
        began, is_initial, committed = self.began, self.is_initial, self.committed
        rewound = self._counters.rewound_steps
        states = {name: array.copy() for name, array in self.live().items()}
        try:
            yield
        finally:
            self.put(states)
            steps = self.committed - committed
            # The episode is as long as it was; what was taken back within counts once.
            self.began, self.is_initial = began + steps, is_initial
            self._counters.rewound_steps = max(self._counters.rewound_steps, rewound + steps)

    def begin(self, states: Mapping[str, Array] | None = None) -> None:
        """Begin an episode, and count a reset.

        Args:
            states: An array for each state; None for their initial values.
        """
        is_initial = states is None
        parity = self._laid_ready(self.initial() if states is None else states)
        self.parity, self.began, self.is_initial = parity, self.committed, is_initial
        self._counters.resets += 1

    def initial(self) -> dict[str, Array]:
        """The initial value of each state, by name; not copies."""
        return {s.spec.name: s.initial for s in self._states}

    def _laid_ready(self, states: Mapping[str, Array]) -> int:
        """Copy values into the banks that are not read; the parity with which they will be."""
        self.chain_up()
        if self.rings is not None:
            self.rings.check(states)
            self.rings.begin()
        self.replacements += 1
        parity = self.parity ^ self._every_bit
        for state in self._states:
            np.copyto(self._bank(state, parity), states[state.spec.name])
        if self._resident is not None:
            self._resident.push(parity)
        return parity

    def _bank(self, state: StateBanks, parity: int) -> Array:
        return state.banks[bool(parity & self._bits[state.spec.name])].array
