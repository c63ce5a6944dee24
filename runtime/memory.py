"""The memory of a session: which bank of each state is live, and who may change that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import StateFault
from stategate.runtime.buffers import Array, Buffers, Group, Slot, StateBanks, is_finite
from stategate.runtime.engine import Engine, Resident
from stategate.runtime.ledger import Counters


class Memory:
    """Commits steps: every gate and every next state is asked before anything is swapped.

    Attributes:
        parity: Mask that tells the engine which banks to read; see `Engine.run`.
    """

    def __init__(
        self,
        buffers: Buffers,
        counters: Counters,
        thresholds: Sequence[np.float32] | None,
        engine: Engine | None = None,
    ) -> None:
        """Start with every state at its initial value.

        Args:
            buffers: The banks.
            counters: Where commits are counted.
            thresholds: Of the hard gates, in their order; a list that somebody else may change
                between steps, or None for those of the manifest.
            engine: What steps; asked for its states where it keeps them itself.
        """
        self._resident = engine if isinstance(engine, Resident) else None
        self.parity = 0
        self._states = buffers.states
        self._bits = {s.spec.name: buffers.bit_of(s) for s in buffers.states}
        self._counters = counters
        self._gated = tuple(g for g in buffers.groups if g.gate is not None)
        hard = {g.gate_slot.name for g in self._gated if g.gate_slot is not None}
        self._soft = tuple(slot for slot in buffers.gates if slot.name not in hard)
        self._always = next((g for g in buffers.groups if g.gate is None), None)
        if thresholds is None:
            thresholds = [np.float32(g.gate.threshold) for g in self._gated if g.gate is not None]
        self._thresholds = thresholds

    @property
    def on_device(self) -> bool:
        """Whether the engine keeps the states where no other one sees them."""
        return self._resident is not None

    @property
    def changes_without_gate(self) -> bool:
        """Whether a quiet step changes a state all the same."""
        return bool(self._gated) and self._always is not None

    def commit(
        self, may_write: Callable[[], bool], write: Callable[[int], None]
    ) -> tuple[bool, bool]:
        """Take over what the engine computed, as far as gates and budget let it.

        Args:
            may_write: Asked once, only if the step wants to write; may raise, and then nothing
                has changed.
            write: The engine's, called once if a gate is open and the step may write.

        Returns:
            Whether the step wanted to write, and whether it did.

        Raises:
            StateFault: A gate, or a next state that was to be taken over, is not finite. Nothing
                has changed.
            EngineError: The engine failed to write. Nothing has changed.
        """
        counters = self._counters
        for slot in self._soft:
            if not is_finite(slot.flat):
                self._fault(slot, "gate")
        swaps = 0
        opened: list[tuple[int, int]] = []
        for i, group in enumerate(self._gated):
            count = self._open_elements(group, self._thresholds[i])
            if count:
                swaps |= group.bit
                opened.append((i, count))
        always = self._always
        if always is not None:
            self._check_next(always)
        wanted = swaps != 0 or not self._gated
        writes = wanted and may_write()
        if writes and opened:
            write(self.parity)
            for i, _ in opened:
                self._check_next(self._gated[i])
        counters.steps += 1
        if always is not None and (writes or self._gated):
            counters.ungated_writes += 1
            self.parity ^= always.bit
        if writes:
            self.parity ^= swaps
            counters.writes += 1
            for i, count in opened:
                counters.openings[i] += count
        else:
            counters.suppressed_writes += wanted
        return wanted, writes

    def commit_chunk(self, gates: Mapping[str, Slot], steps: int) -> NDArray[np.bool_]:
        """Take over what a chunk graph computed.

        Args:
            gates: Gates of the chunk by name, each ``(1, chunk, ...)``.
            steps: How many of the chunk's steps are meant.

        Returns:
            ``(steps,)``: which of them wrote.

        Raises:
            StateFault: A gate or a next state is not finite. Nothing has changed.
        """
        counters = self._counters
        for slot in gates.values():
            if not is_finite(slot.array[0, :steps].reshape(-1)):  # what padding gave is no matter
                self._fault(slot, "gate")
        wrote = np.full(steps, not self._gated)
        swaps = 0
        counts = []
        for threshold, group in zip(self._thresholds, self._gated, strict=True):
            assert group.gate is not None
            values = gates[group.gate.name].array[0, :steps].reshape(steps, -1)
            is_open = values > threshold
            any_open = is_open.any(axis=1)
            wrote |= any_open
            counts.append(int((any_open if group.whole else is_open).sum()))
            if counts[-1]:
                self._check_next(group)
                swaps |= group.bit
        if self._always is not None:
            self._check_next(self._always)
            swaps |= self._always.bit
            counters.ungated_writes += steps
        self.parity ^= swaps
        counters.steps += steps
        counters.writes += int(wrote.sum())
        for i, count in enumerate(counts):
            counters.openings[i] += count
        return wrote

    def refused(self) -> None:
        """Count a step whose write was refused before it was committed."""
        self._counters.steps += 1
        self._counters.suppressed_writes += 1

    def _open_elements(self, group: Group, threshold: np.float32) -> int:
        slot, mask = group.gate_slot, group.open_mask
        assert slot is not None
        if mask is None:
            value = slot.flat[0]
            if not isfinite(value):
                self._fault(slot, "gate")
            return int(value > threshold)
        if not is_finite(slot.flat):
            self._fault(slot, "gate")
        np.greater(slot.flat, threshold, out=mask)
        count = int(np.count_nonzero(mask))
        # A gate of step granularity guards as one: open anywhere is open.
        return min(count, 1) if group.whole else count

    def _check_next(self, group: Group) -> None:
        spare = not self.parity & group.bit
        if self._resident is not None:
            if not self._resident.finite(group, self.parity):
                self._fault(group.states[0].banks[spare], "next state")
            return
        for state in group.states:
            if not is_finite(state.banks[spare].flat):
                self._fault(state.banks[spare], "next state")

    def _fault(self, slot: Slot, what: str) -> None:
        self.refused()
        raise StateFault(
            f"the {what} {slot.name!r} holds NaN or Inf; the write was refused",
            found=f"in step {self._counters.steps}",
            expected="finite numbers",
            remedy="the state before this step is in place: go on, or call reset()",
        )

    def live(self) -> dict[str, Array]:
        """The bank of each state that the next step reads, by name; not copies."""
        if self._resident is not None:
            self._resident.fetch(self.parity)
        return {s.spec.name: self._bank(s) for s in self._states}

    def load(self, states: Mapping[str, Array]) -> None:
        """Copy values into the live banks; ``states`` has one array for each state."""
        for state in self._states:
            np.copyto(self._bank(state), states[state.spec.name])
        if self._resident is not None:
            self._resident.push(self.parity)

    def reset(self) -> None:
        """Put every state back to its initial value."""
        self.load({s.spec.name: s.initial for s in self._states})

    def _bank(self, state: StateBanks) -> Array:
        return state.banks[bool(self.parity & self._bits[state.spec.name])].array
