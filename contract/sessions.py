"""Several sessions in one graph: the leading axis of every tensor that belongs to a session.

One row of that axis is one session. Constants and thresholds belong to the model and have no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from stategate.contract.errors import SpecError
from stategate.contract.specs import GateSpec, StateSpec, StepSpec, TensorSpec

# ``Pool.step(rows=None, **inputs)`` keeps this name for itself.
_RESERVED = "rows"
_ROWS_FIRST = (
    "put a batch axis first in every input, output, state and gate of step_spec(), name it in "
    "lift(..., session_axes={...}), or export for one session"
)

_Rowed = TypeVar("_Rowed", TensorSpec, StateSpec, GateSpec)


def batched(spec: StepSpec, sessions: int) -> StepSpec:
    """The signature of one step that serves several sessions at once."""
    _check_count(sessions)
    if sessions == 1:
        return spec
    check_rows(spec, 1)
    return StepSpec(
        tuple(_widened(tensor, sessions) for tensor in spec.inputs),
        tuple(_widened(tensor, sessions) for tensor in spec.outputs),
        tuple(_widened(state, sessions) for state in spec.states),
        tuple(_widened(gate, sessions) for gate in spec.gates),
        spec.constants,
    )


def one_row(states: tuple[StateSpec, ...]) -> tuple[StateSpec, ...]:
    """The states of a single session among several: leading extents of 1."""
    return tuple(_widened(state, 1) for state in states)


def check_rows(spec: StepSpec, sessions: int, remedy: str = _ROWS_FIRST) -> None:
    """Check that every input, output, state and gate has one row for each session, and no ring."""
    _check_count(sessions)
    if any(state.cursor is not None for state in spec.states):
        # Rows of a pool are put in place as a whole: nothing would be appended.
        raise SpecError(
            "writes are not deferred in a pool",
            found="a bundle in deferred form",
            expected="a bundle that was exported with --sessions",
            remedy="step it with Session.open, or export the model again without --defer",
        )
    for kind, name, shape in _leading(spec):
        if shape[:1] != (sessions,):
            raise SpecError(
                f"{kind} {name!r} has no row for each session",
                found=f"shape {list(shape)}",
                expected=f"{sessions} as the leading axis",
                remedy=remedy,
            )
    if any(tensor.name == _RESERVED for tensor in spec.inputs):
        raise SpecError(
            f"an input of a pool cannot be called {_RESERVED!r}",
            expected="another name; Pool.step(rows=...) chooses the sessions",
        )


def _widened(tensor: _Rowed, sessions: int) -> _Rowed:
    changed: dict[str, object] = {"shape": (sessions, *tensor.shape[1:])}
    if isinstance(tensor, StateSpec):
        changed["bytes"] = 0  # computed anew from the shape
    return msgspec.structs.replace(tensor, **changed)


def _leading(spec: StepSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield from (("input", t.name, t.shape) for t in spec.inputs)
    yield from (("output", t.name, t.shape) for t in spec.outputs)
    yield from (("state", s.name, s.shape) for s in spec.states)
    yield from (("gate", g.name, g.shape) for g in spec.gates)


def _check_count(sessions: int) -> None:
    if sessions < 1:
        raise SpecError("a bundle serves at least one session", found=f"sessions {sessions}")
