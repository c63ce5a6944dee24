"""The ledger: what the memory did, in integers that only grow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counters of one session at one moment.

    Every step that ran is a write, a quiet step or a suppressed write:
    ``steps == writes + quiet_steps + suppressed_writes``.

    Attributes:
        steps: Steps that ran, refused ones included.
        writes: Steps in which a gate opened and its states changed; in a model without hard
            gates, every step.
        quiet_steps: Steps in which every gate stayed closed.
        suppressed_writes: Steps whose write was refused and whose old state stayed.
        memory_bytes_written: Bytes of state replaced in memory, ungated states included.
        resets: Calls of ``reset``.
        faults: Steps that ended in an error inside the engine or in a refused state.
    """

    steps: int = 0
    writes: int = 0
    quiet_steps: int = 0
    suppressed_writes: int = 0
    memory_bytes_written: int = 0
    resets: int = 0
    faults: int = 0

    @property
    def write_ratio(self) -> float | None:
        """Steps per write: how many times fewer writes than writing always; None before one."""
        return self.steps / self.writes if self.writes else None


class Counters:
    """The same counters while they count; one mutable object, no allocation but Python's ints."""

    __slots__ = tuple(Ledger.__dataclass_fields__)

    steps: int
    writes: int
    quiet_steps: int
    suppressed_writes: int
    memory_bytes_written: int
    resets: int
    faults: int

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def read(self) -> Ledger:
        """A copy that no longer counts."""
        return Ledger(*(getattr(self, name) for name in self.__slots__))
