"""Which of two bundles runs: one pure function of a small state and of what happened.

`stategate_install.h` is the same table in C; a test holds both against each other for every pair.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

STARTS = 3  # with an update that gets no further; the next one refuses it


class Phase(IntEnum):
    """What happens to the slot that is not the good one."""

    EMPTY = 0  # nothing is installed at all
    STEADY = 1  # nothing
    UNPACKING = 2  # it is being written
    STAGED = 3  # its bundle is whole, and waits for its shadow run
    TRIAL = 4  # its bundle runs; the good one waits for the way back


class Event(IntEnum):
    """What can happen to an installation."""

    INSTALL = 0  # somebody wants to put a bundle of this release into it
    UNPACKED = 1  # that bundle is whole, and does here what its golden episode says
    REFUSED = 2  # the other slot is not to be used: unfit, different, broken on trial
    AGREED = 3  # the shadow run found no reason against it
    STARTED = 4  # a process is about to run what `runs` says
    CONFIRMED = 5  # the trial is over, and it stays
    GO_BACK = 6  # somebody wants the bundle from before
    LOST_GOOD = 7  # the bytes of the good slot are not those that were installed


class Slots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state: small numbers.

    Attributes:
        phase: See `Phase`.
        good: Slot of the newest confirmed bundle: 0 is ``a``, 1 is ``b``.
        has_back: Whether the other slot has the bundle that was confirmed before it.
        starts: Since the update was staged, or went on trial.
        floor: The highest release that was ever confirmed; it never goes down.
        releases: Of the bundles in both slots.
    """

    phase: Phase = Phase.EMPTY
    good: int = 0
    has_back: bool = False
    starts: int = 0
    floor: int = 0
    releases: tuple[int, int] = (0, 0)


def runs(state: Slots) -> int | None:
    """The slot whose bundle is to run; None where nothing is installed."""
    if state.phase is Phase.EMPTY:
        return None
    return 1 - state.good if state.phase is Phase.TRIAL else state.good


def target(state: Slots) -> int:
    """The slot that an installation writes to: never one that runs."""
    return state.good if state.phase is Phase.EMPTY else 1 - state.good


def decide(
    state: Slots, event: Event, release: int = 0, older_allowed: bool = False
) -> Slots | None:
    """The state after an event; None where the event is not permitted, and nothing changes.

    Args:
        state: As it is.
        event: What happened.
        release: Of the bundle that ``INSTALL`` and ``UNPACKED`` are about.
        older_allowed: Whether ``INSTALL`` may go below the floor.
    """
    phase, replace = state.phase, msgspec.structs.replace
    other = 1 - state.good
    steady = replace(state, phase=Phase.STEADY, has_back=False, starts=0)
    # The other bundle for good, where it is whole.
    promoted = replace(steady, good=other, floor=max(state.floor, state.releases[other]))
    if event is Event.INSTALL:
        if phase is Phase.TRIAL or (release < state.floor and not older_allowed):
            return None
        return state if phase is Phase.EMPTY else replace(steady, phase=Phase.UNPACKING)
    if event is Event.UNPACKED:
        first, second = state.releases
        releases = (release, second) if target(state) == 0 else (first, release)
        if phase is Phase.EMPTY:
            return replace(steady, floor=release, releases=releases)
        if phase is Phase.UNPACKING:
            return replace(state, phase=Phase.STAGED, releases=releases)
        return None
    if event is Event.AGREED:
        return replace(state, phase=Phase.TRIAL, starts=0) if phase is Phase.STAGED else None
    if event is Event.CONFIRMED:
        return replace(promoted, has_back=True) if phase is Phase.TRIAL else None
    if phase is Phase.EMPTY:
        return state if event in (Event.REFUSED, Event.STARTED) else None
    if event is Event.REFUSED:
        return steady
    if event is Event.STARTED:
        # A shadow can end its process too, with native code.
        if phase not in (Phase.STAGED, Phase.TRIAL):
            return state
        return replace(state, starts=state.starts + 1) if state.starts < STARTS else steady
    if event is Event.GO_BACK and phase is not Phase.STEADY:
        return steady
    if phase is Phase.UNPACKING or (phase is Phase.STEADY and not state.has_back):
        return None
    return promoted  # GO_BACK of a confirmed bundle, or LOST_GOOD
