"""What a caller says about snapshots, and what it learns of the one that was taken back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stategate.contract.arguments import check_kinds
from stategate.contract.errors import SpecError
from stategate.contract.numbers import positive, whole
from stategate.runtime.keep.store import OnDamage


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Where snapshots go and when they are written by themselves.

    Attributes:
        folder: Held by one session at a time; made if it is not there.
        every_writes: After so many writes, or None.
        every_seconds: So long after the last, if a state changed since, or None.
        on_damage: What happens where there are snapshots and none can be read. Opening succeeds
            and warns in either case. ``raise``: `restore` raises, and `save` does too, so that
            nothing is overwritten. ``fresh``: `restore` returns None, and the first `save` puts
            the damaged file aside.
        journal: Whether the policy's saves are commits to a journal, a block of 4 KiB or a few,
            which become a snapshot now and then; every write is one where no interval is given.
    """

    folder: str | Path
    every_writes: int | None = None
    every_seconds: float | None = None
    on_damage: OnDamage = "raise"
    journal: bool = False

    def __post_init__(self) -> None:
        """Refuse intervals that are none, and policies that do not exist."""
        check_kinds(self)
        if self.journal and (self.every_writes, self.every_seconds) == (None, None):
            object.__setattr__(self, "every_writes", 1)
        if self.every_writes is not None:
            object.__setattr__(self, "every_writes", whole("every_writes", self.every_writes))
        for name in ("every_writes", "every_seconds"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), 1e9)
        if self.on_damage not in ("raise", "fresh"):
            raise SpecError("unknown on_damage", found=self.on_damage, expected="raise or fresh")


def policy_of(snapshots: SnapshotPolicy | str | Path | None) -> SnapshotPolicy | None:
    """A policy, or that of somebody who named a folder alone."""
    return SnapshotPolicy(snapshots) if isinstance(snapshots, str | Path) else snapshots


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore took back.

    Attributes:
        slot: File that it came from.
        reason: Why that one.
        sequence: Number of the snapshot.
        steps: Steps of the ledger that came with it.
        fresh: The bundle's reset rule by which counters and budgets go on, and the memory began
            anew; empty where it goes on too.
    """

    slot: str
    reason: str
    sequence: int
    steps: int
    fresh: str = ""
