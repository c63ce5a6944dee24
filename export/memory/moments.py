"""What the places of a module hold at one moment, and what a step did to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from stategate.export.memory.flow import Flow, Number
from stategate.export.memory.reach import Contents, Opaque, Place, places
from stategate.models.step import Tensors


class Moment(NamedTuple):
    """A place at one moment."""

    place: Place  # with the very object that was there
    print: object  # equal as long as its value is the same, bit for bit
    version: int  # how often a tensor was written in place
    copy: torch.Tensor | None  # the numbers of a tensor that is no parameter

    @property
    def is_tensor(self) -> bool:
        """Whether it held a tensor."""
        return isinstance(self.place.value, torch.Tensor)

    @property
    def is_count(self) -> bool:
        """Whether it held a number that another object can stand for."""
        return type(self.place.value) in (int, float, complex) and self.place.cell is not None

    def differs(self, other: Moment) -> bool:
        """Whether a step assigned it, with the same value or with another."""
        if not self.is_tensor or not other.is_tensor:
            return self.print != other.print
        same = self.place.value is other.place.value
        # Bytes too: writes through ``.data`` do not count as a version.
        return not same or (self.print, self.version) != (other.print, other.version)

    def restore(self) -> None:
        """Give a tensor that was written in place its numbers back."""
        if self.copy is not None and print_of(self.place.value) != self.print:
            self.place.value.data = self.copy.clone()

    def grew(self, name: str, before: dict[str, Moment]) -> bool:
        """Whether it is larger than before: more elements, or an entry more."""
        if name in before:
            old = before[name].place.value
            both = self.is_tensor and isinstance(old, torch.Tensor)
            return both and self.place.value.numel() > old.numel()
        # What was None has its first value now, and did not grow.
        return name.endswith("]") and name.rpartition("[")[0] not in before


class Round(NamedTuple):
    """One step: all places before and after it, and what it did to them."""

    before: dict[str, Moment]
    after: dict[str, Moment]
    assigned: dict[str, None]  # names of what it assigned, in order
    flow: Flow | None  # what went where; None where that cannot be followed
    result: Tensors
    uses: set[str]  # names of numbers that something came of


class View(NamedTuple):
    """All places of a module at one moment, by name, and the containers among them."""

    at: dict[str, Moment]
    contents: list[Contents]


def look(module: nn.Module, without: Iterable[str]) -> View:
    """All places of a module as they are now."""
    moments: dict[str, Moment] = {}
    contents: list[Contents] = []
    for place in places(module, without, contents):
        name, value = place.name, place.value
        while name in moments:  # two hooks of one name
            name += "'"
        is_tensor = isinstance(value, torch.Tensor)
        # Parameters are most of the bytes, and a module that writes them is refused anyway.
        is_copied = is_tensor and not isinstance(value, nn.Parameter)
        moments[name] = Moment(
            place,
            print_of(value),
            value._version if is_tensor else 0,
            value.detach().clone() if is_copied else None,
        )
    return View(moments, contents)


def decides(name: str, rounds: Sequence[Round]) -> bool:
    """Whether something comes of what a place holds before a step assigns it."""
    for r in rounds:
        if name in r.before and r.before[name].is_tensor:
            if r.flow is None:
                return True
            if r is rounds[0] and is_borrowed(name, rounds):
                continue  # later rounds tell the two apart
            flows = name in r.flow.names_of(*r.result.values()) | r.flow.read
            if flows and not is_constant(name, rounds):
                return True
    if not any(name in r.assigned for r in rounds[1:]):
        return False  # set by the first step alone, which is looked at by itself
    last = rounds[-1]
    moment = last.before.get(name)
    if moment is None or name not in last.after:
        return True  # it comes and goes, or there are more with every step
    if moment.is_tensor:
        return False
    return name in last.uses or not moment.is_count


def is_borrowed(name: str, rounds: Sequence[Round]) -> bool:
    """Whether its first tensor is that of another place, which no step assigns: a parameter."""
    at = rounds[0].before
    if name not in at or not at[name].is_tensor:
        return False
    storage = at[name].place.value.untyped_storage()._cdata
    return any(
        other.is_tensor
        and other.place.value.untyped_storage()._cdata == storage
        and not any(n in r.assigned for r in rounds)
        for n, other in at.items()
    )


def is_constant(name: str, rounds: Sequence[Round]) -> bool:
    """Whether the first step sets a place, for ever, to what depends on nothing: a table."""
    first = rounds[0]
    if first.flow is None or name not in first.after or any(name in r.assigned for r in rounds[1:]):
        return False
    moment = first.after[name]
    if not moment.is_tensor:  # in a cache: no tensor becomes a number where nothing is read
        return name not in first.before and moment.place.cell is None and not first.flow.read
    was_tensor = name in first.before and first.before[name].is_tensor
    return not was_tensor and not first.flow.names_of(moment.place.value) - {name}


def root(name: str) -> str:
    """The name without what is inside of a tuple, list or dict at its end."""
    return re.sub(r"(\[[^]]*\])+$", "", name)


def _has_no_bytes(tensor: torch.Tensor) -> bool:
    """Whether a tensor only stands for others, as the fake ones in a traced program do."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def print_of(value: object) -> object:
    """Something that is equal as long as the value is the same."""
    if isinstance(value, torch.Tensor) and _has_no_bytes(value):
        return (type(value), str(value.dtype), tuple(value.shape), id(value))
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return (str(value.dtype), tuple(value.shape), hash(raw.numpy().tobytes()))
    if isinstance(value, (np.ndarray, np.generic)):
        return (str(value.dtype), value.shape, hash(value.tobytes()))
    if isinstance(value, (Number, Opaque)):
        return (type(value), str(tuple(value)) if isinstance(value, Opaque) else value.value)
    return (type(value), repr(value))
