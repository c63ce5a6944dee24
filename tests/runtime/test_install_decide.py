"""The decision core of updates: every state that can be reached, with every event."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from stategate.runtime.install.decide import STARTS, Event, Phase, Slots, decide, runs, target

RELEASES = (0, 1, 2)
EVENTS = [
    (event, release, older)
    for event in Event
    for release in (RELEASES if event in (Event.INSTALL, Event.UNPACKED) else (0,))
    for older in ((False, True) if event is Event.INSTALL else (False,))
]
State = tuple[Slots, tuple[bool, bool]]


def walk() -> list[tuple[State, tuple[Event, int, bool], State | None]]:
    """Every reachable state with what its slots hold, every event, and what follows.

    What is in the slots follows from what an installer does, not from the state: it makes a slot
    unusable when it begins, and whole when it ends; it unpacks what it was permitted to install.
    """
    start: State = (Slots(), (False, False))
    reached_states, queue, steps = {start}, deque([start]), []
    while queue:
        state = queue.popleft()
        slots, whole = state
        for event in EVENTS:
            after = decide(slots, *event)
            if after is None:
                steps.append((state, event, None))
                continue
            content, goal = list(whole), target(slots)
            if event[0] in (Event.INSTALL, Event.UNPACKED):
                content[goal] = event[0] is Event.UNPACKED
            if event[0] is Event.LOST_GOOD:
                content[slots.good] = False
            if event[0] is Event.REFUSED and slots.phase is Phase.TRIAL:
                content[1 - slots.good] = False  # the worst: its bytes rot
            reached = (after, (content[0], content[1]))
            steps.append((state, event, reached))
            if reached not in reached_states:
                reached_states.add(reached)
                queue.append(reached)
    return steps


STEPS = walk()


def test_what_runs_is_whole_in_every_state_that_can_be_reached() -> None:
    assert len({state for state, _, _ in STEPS}) > 100
    for (slots, whole), _, _ in STEPS:
        slot = runs(slots)
        assert slot is None or whole[slot], slots
        if slots.phase in (Phase.STAGED, Phase.TRIAL) or slots.has_back:
            assert whole == (True, True), slots


def test_an_installation_never_writes_to_the_slot_that_runs() -> None:
    for (slots, _), (event, *_), after in STEPS:
        if event in (Event.INSTALL, Event.UNPACKED) and after is not None:
            assert target(slots) != runs(slots)
            assert slots.phase is not Phase.TRIAL


def test_no_event_empties_an_installation_or_lowers_its_floor() -> None:
    for (slots, _), _, after in STEPS:
        if after is not None:
            assert after[0].floor >= slots.floor
            assert slots.phase is Phase.EMPTY or runs(after[0]) is not None


def test_an_older_release_is_refused_unless_somebody_asks_for_it() -> None:
    for (slots, _), (event, release, older), after in STEPS:
        if event is Event.INSTALL and slots.phase is not Phase.TRIAL:
            assert (after is None) == (release < slots.floor and not older)


def test_only_a_confirmation_ends_a_trial_otherwise_than_by_going_back() -> None:
    for (slots, _), (event, *_), after in STEPS:
        if slots.phase is Phase.TRIAL and after is not None:
            stays = event in (Event.CONFIRMED, Event.LOST_GOOD)
            assert after[0].phase is Phase.TRIAL or (after[0].good != slots.good) == stays


@pytest.mark.parametrize("phase", [Phase.STAGED, Phase.TRIAL])
def test_starts_without_a_step_forward_give_an_update_up(phase: Phase) -> None:
    slots = Slots(phase, good=0, releases=(1, 2), floor=1)
    for _ in range(STARTS):
        slots = decide(slots, Event.STARTED) or slots
        assert slots.phase is phase and runs(slots) == (phase is Phase.TRIAL)
    slots = decide(slots, Event.STARTED) or slots
    assert runs(slots) == 0 and slots.phase is Phase.STEADY


def test_the_state_survives_its_record() -> None:
    for (slots, _), _, _ in STEPS:
        assert msgspec.json.decode(msgspec.json.encode(slots), type=Slots) == slots


@pytest.mark.parametrize("event", Event)
def test_an_event_is_refused_or_leads_to_a_state_of_the_table(event: Event) -> None:
    reached = {state for state, _, _ in STEPS}
    for _, (other, *_), after in STEPS:
        assert other is not event or after is None or after in reached
