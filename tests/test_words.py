"""Plain words: names say what a thing is, and no phrase misleads."""

from __future__ import annotations

from collections import Counter

import pytest

from lab.words import INSTALLED, OUTSIDE, PHRASES, trips, words_of_room

# How much of the old dialect a room still holds. Ceilings only fall; those not here are 0.
CEILINGS = {
    "export": 12,
    "runtime": 1,
    "contract": 1,
    "lab": 8,
    "scripts": 2,
    "tests": 570,
}


@pytest.mark.parametrize("room", [*INSTALLED, *OUTSIDE])
def test_a_room_speaks_no_more_dialect_than_before(room: str) -> None:
    words = words_of_room(room)
    listed = "\n".join(f"{w.path}:{w.line}: {w.kind} {w.text}" for w in words)
    assert len(words) <= CEILINGS.get(room, 0), f"{Counter(w.text for w in words)}\n{listed}"


@pytest.mark.parametrize("name", ["told", "_kept", "with_tensorrt_told", "plans_here", "ours"])
def test_a_name_that_names_nothing_trips_a_reader(name: str) -> None:
    assert trips(name)


@pytest.mark.parametrize("name", ["is_known", "kept_states", "bytes_left", "override", "_"])
def test_a_name_that_says_what_it_is_does_not_trip_a_reader(name: str) -> None:
    assert not trips(name)


def test_a_sentence_that_names_what_is_impossible_is_plain() -> None:
    assert not PHRASES.search("the graph cannot be read")
    assert PHRASES.search("an idle gap cannot be")
    assert PHRASES.search("an idle gap cannot be\n  found: -1")
