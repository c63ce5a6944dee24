"""How the memory of another bundle becomes that of this one: data, and no code that is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StateSpec, fits

Array = NDArray[Any]


class StateOrigin(Record, frozen=True):
    """Where a state of this bundle comes from.

    Attributes:
        state: Its name here.
        source: Its name in the older memory. Its values are cast to the dtype that they have here;
            where they are fewer along an axis, they stand first. None where it is new.
        fill: What stands in elements that no source gives; None is the initial state.
        crop: Whether values beyond the shape here may be left out.
    """

    state: str
    source: str | None = None
    fill: float | None = None
    crop: bool = False


class Migration(Record, frozen=True):
    """From one older memory to that of the bundle.

    Attributes:
        memory_sha256: The older memory, by its identity: weights, gates, and the names, shapes,
            dtypes and layouts of its states.
        states: One entry for each state of the bundle.
        dropped: States of the older memory that are left behind.
    """

    memory_sha256: str
    states: tuple[StateOrigin, ...]
    dropped: tuple[str, ...] = ()

    def check(self, specs: Sequence[StateSpec]) -> None:
        """Refuse a migration that leaves a state open, or names one twice."""
        names = sorted(spec.name for spec in specs)
        if sorted(origin.state for origin in self.states) != names:
            raise SpecError(
                "a migration says of every state where it comes from",
                found=", ".join(origin.state for origin in self.states) or "none",
                expected=", ".join(names),
            )
        sources = [origin.source for origin in self.states if origin.source is not None]
        if len({*sources, *self.dropped}) != len(sources) + len(self.dropped):
            raise SpecError("a migration takes or drops a state twice", found=sorted(sources))

    def try_on(self, older: Sequence[StateSpec], specs: Sequence[StateSpec]) -> None:
        """Refuse a migration that could not take any memory of these forms; see `apply`."""
        empty = ({s.name: np.zeros(s.shape, s.dtype) for s in each} for each in (older, specs))
        states, initial = empty
        self.apply(states, specs, initial)

    def apply(
        self,
        older: Mapping[str, Array],
        specs: Sequence[StateSpec],
        initial: Mapping[str, Array],
    ) -> dict[str, Array]:
        """The states of the bundle, by name.

        Args:
            older: Those of the older memory.
            specs: Of the bundle's states.
            initial: Its initial states.

        Raises:
            SpecError: A state is left over or missing, does not fit, or loses its value by a cast.
        """
        used = {origin.source for origin in self.states if origin.source is not None}
        if used | set(self.dropped) != set(older):
            raise SpecError(
                "a migration says of every older state what becomes of it",
                found=", ".join(sorted(used | set(self.dropped))) or "none",
                expected=", ".join(sorted(older)),
            )
        by_name = {spec.name: spec for spec in specs}
        states = {}
        for origin in self.states:
            spec = by_name[origin.state]
            array = initial[origin.state].copy()
            if origin.fill is not None:
                if not (math.isfinite(origin.fill) and fits(origin.fill, spec.dtype)):
                    raise SpecError(
                        f"state {origin.state!r} cannot be filled with this number",
                        found=origin.fill,
                        expected=f"a finite number that {spec.dtype} holds",
                    )
                array[...] = origin.fill
            if origin.source is not None:
                _put(array, older[origin.source], origin)
            states[spec.name] = array
        return {spec.name: states[spec.name] for spec in specs}


def _put(array: Array, values: Array, origin: StateOrigin) -> None:
    """Put values to the beginning of an array, and refuse what would not be the same numbers."""
    pairs = list(zip(array.shape, values.shape, strict=False))
    fits = array.ndim == values.ndim and (origin.crop or all(new >= old for new, old in pairs))
    if not fits:
        raise SpecError(
            f"state {origin.source!r} does not fit into {origin.state!r}",
            found=list(values.shape),
            expected=f"at most {list(array.shape)}, or crop",
        )
    place = tuple(slice(0, min(pair)) for pair in pairs)
    with np.errstate(all="ignore"):  # what a cast loses is looked at below
        cast = values[place].astype(array.dtype)
    lost = not np.isfinite(cast).all()
    if not array.dtype.kind == values.dtype.kind == "f":
        # There and back finds a large integer that is rounded; the other one a sign that is lost.
        kinds = (np.float64, values.dtype)
        lost |= any(not np.array_equal(cast.astype(k), values[place].astype(k)) for k in kinds)
    if lost:
        raise SpecError(
            f"state {origin.source!r} cannot become {array.dtype} without losing its value",
            found=f"{values.dtype}, up to {np.abs(values.astype(np.float64)).max():g}",
        )
    array[place] = cast
