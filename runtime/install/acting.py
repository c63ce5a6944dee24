"""What acts of an installation: the session of a slot, its memory, and what was counted."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import SLOTS
from stategate.contract.errors import InstallError, RuntimeFault, StategateError
from stategate.contract.failures import failures
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.install.decide import Event, Phase, decide, runs
from stategate.runtime.install.memories import (
    ledger_in,
    move_account,
    saved_states,
    states_for_update,
)
from stategate.runtime.install.record import Installed, InstallFolder
from stategate.runtime.keep.policy import SnapshotPolicy
from stategate.runtime.session import Session


class ActingSlot:
    """The slot that runs, opened with the memory that it had."""

    def __init__(
        self, folder: InstallFolder, policy: SnapshotPolicy, opening: dict[str, Any]
    ) -> None:
        self._folder, self._policy, self._opening = folder, policy, opening
        self._locks = ExitStack()
        self._session: Session | None = None
        self._memory_words = ""
        self._record, self._version = Installed(), (0, 0)
        self._slot, self._is_fixed = 0, False
        # What is not in the acting session's counters.
        self._others = Ledger()

    @property
    def _acting(self) -> Session:
        if self._session is None:
            raise RuntimeFault("the installation is closed", remedy="Installation.open(folder)")
        return self._session

    @property
    def _is_on_trial(self) -> bool:
        slots = self._record.slots
        return slots.phase is Phase.TRIAL and runs(slots) == self._slot

    def _change(self, event: Event, why: str, **fields: Any) -> bool:
        """Write a decision, unless somebody else has written one since the last look."""
        record = self._folder.change(event, why, only_at=self._record.number, **fields)
        if record is not None:
            self._record, self._version = record, self._folder.version()
        return record is not None

    def _start(self) -> None:
        folder = self._folder
        self._record = folder.read()
        if runs(self._record.slots) is None:
            raise InstallError(
                "nothing is installed here",
                found=folder.path,
                remedy=f"stategate install BUNDLE --into {folder.quoted}",
            )
        try:
            self._locks.enter_context(folder.exclusive("running", "stop it before this one starts"))
            self._change(Event.STARTED, "three starts, and the update got no further")
        except failures(OSError):
            # Where nothing can be written, as on a card that the kernel has mounted read-only, a
            # trial cannot count its starts.
            self._is_fixed = True
            slots = self._record.slots
            if slots.phase is Phase.TRIAL:
                slots = decide(slots, Event.REFUSED) or slots
            self._record = msgspec.structs.replace(self._record, slots=slots)
        self._slot = self._whole_slot()
        self._session = self._opened(self._slot, self._policy_of(self._slot))
        self._restore(self._session)
        self._others = self._ledger_of_others()
        self._version = (0, 0)  # the first step obeys the record

    def _whole_slot(self) -> int:
        """The slot that runs, once its bytes are those that were installed."""
        problem = None
        for _ in SLOTS:
            slot = runs(self._record.slots)
            assert slot is not None
            problem = self._damage(slot)
            if problem is None:
                return slot
            event = Event.REFUSED if self._record.slots.phase is Phase.TRIAL else Event.LOST_GOOD
            why = f"slot {SLOTS[slot]} is damaged: {problem}"
            if not self._change(event, why):
                break
            warnings.warn(f"{self._folder.path}: {why}", UserWarning, 5)
        raise InstallError(
            "no bundle of the installation can be run",
            found=problem,
            remedy=f"install it again, into {self._folder.path}; the memory is kept",
        )

    def _damage(self, slot: int) -> str | None:
        """What is wrong with a slot's bytes; None where nothing is."""
        try:
            digest = Bundle.open(self._folder.slot(slot)).digest
        except StategateError as problem:
            return problem.reason
        expected = self._record.digests[slot]
        return None if digest == expected else f"it is bundle {digest[:12]}, not {expected[:12]}"

    def _other_manifest(self) -> Manifest | None:
        """The manifest of the slot that does not act, where that is whole."""
        other = 1 - self._slot
        if not self._record.digests[other]:
            return None
        try:
            bundle = Bundle.open(self._folder.slot(other))
        except StategateError:
            return None
        return bundle.manifest if bundle.digest == self._record.digests[other] else None

    def _policy_of(self, slot: int) -> SnapshotPolicy:
        """Snapshots in a slot's folder, with the account of the budgets in it."""
        folders = [self._folder.memory(self._record, each) for each in (slot, 1 - slot)]
        move_account(folders[0], folders[1:])
        return replace(self._policy, folder=folders[0])

    def _opened(self, slot: int, policy: SnapshotPolicy | None) -> Session:
        """A session of a slot, if its bundle is the one that was installed."""
        place, digest = self._folder.slot(slot), self._record.digests[slot]
        session = Session.open(place, snapshots=policy, **self._opening)
        if session.bundle_digest != digest:
            session.close()
            raise InstallError(
                "this is another bundle than was installed",
                found=f"{session.bundle_digest[:12]} in {place}",
                expected=digest[:12],
                remedy=f"stategate install status {self._folder.quoted}",
            )
        return session

    def _restore(self, session: Session) -> None:
        """Go on with the slot's own memory, or with that of the other slot where that may be."""
        restored = session.restore()
        if restored is not None:
            self._memory_words = f"the memory goes on after {restored.steps:,} steps"
            return
        self._memory_words = "the memory begins at its initial states"
        older = self._other_manifest()
        if older is not None:
            folder = self._folder.memory(self._record, 1 - self._slot)
            states = saved_states(folder, older)
            if states is not None:
                memory, self._memory_words = states_for_update(older, states, session)
                if memory is not None:
                    session.load_state(memory)

    def _ledger_of_others(self) -> Ledger:
        """What other memories of the installation have counted."""
        older, before = self._other_manifest(), self._record.retired
        if older is None:
            return before
        folder = self._folder.memory(self._record, 1 - self._slot)
        return ledger_in(folder, older).after(before)
