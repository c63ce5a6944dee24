"""States that are stored in fewer bits than they are computed in, and how their bytes are read.

``float16`` keeps the name and shape of the state. ``int8`` splits it: ``S`` holds integers q in
[-127, 127], ``S.scale`` one float32 for each row, and with error feedback ``S.residual`` what
rounding left over, r in [-127, 127], in steps of 1/254 of the scale:

    value = (q + r / 254) * scale,    scale = largest magnitude of the row / 127

A row is the last axis that is longer than 1; with ``int8-tensor`` it is the whole state of a
session. The layout text of a state says how its bytes are read, so that a bundle needs no further
field for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import SpecError
from stategate.contract.specs import StateSpec

Array = NDArray[Any]

KINDS = ("float32", "float16", "int8", "int8-tensor")
LEVELS = 127
FINER = 2 * LEVELS  # a residual is at most half a step, and has as many levels as the step
_FLOAT16 = "stored as float16"
_INT8 = "stored as int8, times "
_PLUS = " plus 1/254 of "


def scale_name(state: str) -> str:
    """Name of the scales of a state in int8."""
    return f"{state}.scale"


def residual_name(state: str) -> str:
    """Name of what rounding left over of a state in int8 with error feedback."""
    return f"{state}.residual"


def stored_layout(state: StateSpec, kind: str, error_feedback: bool) -> str:
    """The layout text of a stored state: its own, and how its bytes are read."""
    how = _FLOAT16
    if kind != "float16":
        more = f"{_PLUS}{residual_name(state.name)}" if error_feedback else ""
        how = f"{_INT8}{scale_name(state.name)}{more}"
    return f"{state.layout}; {how}" if state.layout else how


def shared_axes(shape: tuple[int, ...], kind: str, sessions: int) -> tuple[int, ...]:
    """Axes along which one scale serves; with several sessions the leading one is theirs."""
    first = 0 if sessions == 1 else 1
    if kind == "int8":
        long = [axis for axis in range(first, len(shape)) if shape[axis] > 1]
        return (long[-1],) if long else (len(shape) - 1,)
    return tuple(range(first, len(shape)))


def quantised(
    value: Array, kind: str, error_feedback: bool, sessions: int = 1
) -> tuple[Array, Array, Array | None]:
    """A float32 state as int8: integers, scales, and residuals where they are wanted."""
    axes = shared_axes(value.shape, kind, sessions)
    scale = np.max(np.abs(value), axis=axes, keepdims=True).astype(np.float32) / np.float32(LEVELS)
    steps = value / np.where(scale > 0, scale, np.float32(1))
    whole = np.rint(steps)
    residual = np.rint((steps - whole) * FINER).astype(np.int8) if error_feedback else None
    return whole.astype(np.int8), scale, residual


def values(states: Iterable[StateSpec], stored: Mapping[str, Array]) -> dict[str, Array]:
    """What the model remembers, in the numbers it computes with.

    Returns:
        Arrays by name; scales and residuals are taken into the states that they belong to.
    """
    read, parts = {}, set()
    for state in states:
        array = stored[state.name]
        how, named = _how(state)
        if how == _FLOAT16:
            array = array.astype(np.float32)
        elif named:
            parts.update(named)
            if not parts <= set(stored):
                raise SpecError(
                    f"the layout of state {state.name!r} names a state that is not there",
                    found=how,
                    expected=", ".join(stored),
                )
            array = array.astype(np.float32)
            if len(named) > 1:
                array += stored[named[1]] * np.float32(1 / FINER)
            array = array * stored[named[0]]
        read[state.name] = array
    return {name: array for name, array in read.items() if name not in parts}


def quanta(states: Iterable[StateSpec], stored: Mapping[str, Array]) -> dict[str, Array]:
    """How far apart the values lie between which a state in fewer bits can tell.

    Returns:
        For each state in fewer bits, and no other, an array that broadcasts to its shape: the
        spacing of float16 at each element, or the step of an integer, with error feedback of a
        residual.
    """
    steps: dict[str, Array] = {}
    for state in states:
        how, named = _how(state)
        if how == _FLOAT16:
            steps[state.name] = np.spacing(np.abs(stored[state.name])).astype(np.float32)
        elif named:
            steps[state.name] = stored[named[0]] / np.float32(FINER if len(named) > 1 else 1)
    return steps


def _how(state: StateSpec) -> tuple[str, list[str]]:
    """How a state is stored, and the states that an int8 one is read with: scale, residual."""
    how = state.layout.rpartition("; ")[2]
    return how, how.removeprefix(_INT8).split(_PLUS) if how.startswith(_INT8) else []
