"""Temporaries of a generated function in static memory that they share, where they are too many.

A stack may have no room for them, and memory for each of its own would push the weights out of the
caches: those that are never needed at the same time lie in the same place. Each type has a pool
of its own, so that no byte is read as another type than it was written as.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DECLARED = re.compile(r"^    (\w+) (tmp\d+\w*)((?:\[\d+\])+);\n", re.MULTILINE)
_NAME = re.compile(r"\btmp\d+\w*")
_ONE_CALL = re.compile(r"    \w+\([^;{}]*\);")
_WIDEST = 8  # bytes of the widest element
_ALIGN = 64  # elements: a cache line at least, whatever their type


@dataclass(frozen=True, slots=True)
class _Temporary:
    kind: str
    name: str
    extents: str
    first: int  # the line that writes it
    last: int  # the last line that reads it

    @property
    def elements(self) -> int:
        extents = [int(extent) for extent in re.findall(r"\d+", self.extents)]
        return -(-int(np.prod(extents, dtype=np.int64)) // _ALIGN) * _ALIGN

    def declaration(self, at: int) -> str:
        """As a pointer into the pool of its type, to be used as the array that it was."""
        inner = self.extents.partition("]")[2]
        return f"    {self.kind} (*const {self.name}){inner} = (void *)({self.kind}_pool + {at});\n"


def off_the_stack(text: str, room: int) -> str:
    """The C with temporaries in static memory, one set a thread, where they need more than a room.

    Args:
        text: Of one generated function with temporaries, and what it calls.
        room: Bytes that a stack may have for them.
    """
    declared = list(_DECLARED.finditer(text))
    if not declared:
        return text
    begin = declared[0].start()
    end = text.index("\n}", begin)
    body = _DECLARED.sub("", text[begin:end])
    temporaries = _lives(declared, body.splitlines())
    if sum(temporary.elements for temporary in temporaries) * _WIDEST <= room:
        return text
    lines = []
    for kind in dict.fromkeys(temporary.kind for temporary in temporaries):
        places, total = _places([t for t in temporaries if t.kind == kind])
        memory = f"{kind}_memory[{total}] __attribute__((aligned(64)))"
        lines.append(f"    STATEGATE_TEMPORARY {kind} {memory};\n")
        lines.append(f"    {kind} *const {kind}_pool = STATEGATE_ONCE({kind}_memory);\n")
        lines += [temporary.declaration(at) for temporary, at in places.items()]
    return text[:begin] + "".join(lines) + body + text[end:]


def _lives(declared: Sequence[re.Match[str]], lines: Sequence[str]) -> list[_Temporary]:
    """The temporaries that are used, and from where to where: always, where there are branches."""
    lives: dict[str, tuple[int, int]] = {}
    for i, line in enumerate(lines):
        for name in _NAME.findall(line):
            lives[name] = (lives.get(name, (i, i))[0], i)
    # Where the lines are more than calls in a row, their order says nothing of when each is run.
    if not all(_ONE_CALL.fullmatch(line) for line in lines):
        lives = dict.fromkeys(lives, (0, len(lines)))
    return [
        _Temporary(kind, name, extents, *lives[name])
        for kind, name, extents in (match.groups() for match in declared)
        if name in lives
    ]


def _places(temporaries: Sequence[_Temporary]) -> tuple[dict[_Temporary, int], int]:
    """Where each begins in a pool, and where all end.

    Large ones first, each at the first place that is free while it is needed.
    """
    places: dict[_Temporary, int] = {}
    for new in sorted(temporaries, key=lambda t: -t.elements):
        at = 0
        others = [t for t in places if t.first <= new.last and new.first <= t.last]
        for other in sorted(others, key=lambda t: places[t]):
            if at + new.elements <= places[other]:
                break
            at = max(at, places[other] + other.elements)
        places[new] = at
    return places, max(at + temporary.elements for temporary, at in places.items())
