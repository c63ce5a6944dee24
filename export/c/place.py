"""Where temporaries lie: those that are never needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ALIGN = 64  # elements: a cache line at least, whatever their type


@dataclass(frozen=True, slots=True)
class Life:
    """A temporary: its elements, and the first and last function that needs it."""

    elements: int
    first: int
    last: int


def placed(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Where each temporary begins in a pool of its type, in elements, and where the pool ends.

    Large ones first, each at the first place that is free while it is needed.
    """
    places: dict[str, int] = {}
    for name, new in sorted(lives.items(), key=lambda item: -item[1].elements):
        at = 0
        others = [n for n in places if _meet(lives[n], new)]
        for other in sorted(others, key=lambda n: places[n]):
            if at + _room(new) <= places[other]:
                break
            at = max(at, places[other] + _room(lives[other]))
        places[name] = at
    return places, max((at + _room(lives[name]) for name, at in places.items()), default=0)


def _meet(one: Life, other: Life) -> bool:
    return one.first <= other.last and other.first <= one.last


def _room(life: Life) -> int:
    return -(-life.elements // _ALIGN) * _ALIGN


def lives_of(
    reads: Sequence[Sequence[str]], writes: Sequence[Sequence[str]], elements: Mapping[str, int]
) -> dict[str, Life]:
    """From the first function that writes each temporary to the last that reads it."""
    spans: dict[str, tuple[int, int]] = {}
    for i, (read, written) in enumerate(zip(reads, writes, strict=True)):
        for name in (*read, *written):
            if name in elements:
                spans[name] = (spans.get(name, (i, i))[0], i)
    return {name: Life(elements[name], *span) for name, span in spans.items()}
