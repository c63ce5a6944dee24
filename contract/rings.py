"""Rings: states that are appended to by the row, and what they are folded into now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from stategate.contract.errors import SpecError, StepInputError

if TYPE_CHECKING:
    from stategate.contract.specs import StateSpec

Array = NDArray[Any]


def following(state: StateSpec, states: Mapping[str, Array], after: Array) -> Array:
    """A state after a step that writes it."""
    if state.cursor is None:
        return after
    ring, count = states[state.name].copy(), int(states[state.cursor][0])
    if count < state.rows:
        ring[:, count] = after
    return ring


def check_form(values: Mapping[str, Array], states: Sequence[StateSpec]) -> None:
    """Refuse states of the plain form in place of the deferred one, and the other way round."""
    own = {state.name for state in states}
    waiting = {state.name for state in states if state.cursor is not None}
    waiting |= {str(state.cursor) for state in states if state.cursor is not None}
    more = sorted(values.keys() - own)
    if own < values.keys():
        raise StepInputError(
            f"there is no state {more[0]!r}",
            found=f"{', '.join(more)} besides those of this memory",
            expected=", ".join(sorted(own)),
            remedy="step the bundle that they are of: where it was exported with --defer, its "
            "matrices lack the rows that wait",
        )
    if waiting and values.keys() == own - waiting:
        names = ", ".join(map(repr, sorted(waiting)))
        raise StepInputError(
            "these states are of the plain form of the model, and this one is deferred",
            found=f"no {', '.join(sorted(waiting))}",
            expected=", ".join(sorted(own)),
            remedy="if they are of a bundle without --defer, nothing waits: session.reset(); "
            "session.load_state({**states, **{n: session.state(n) for n in [" + names + "]}})",
        )


def check_rings(states: Sequence[StateSpec], hard: set[str]) -> None:
    """Check that rings of a step are appended to together, and that a cursor counts their rows."""
    rings = {state.name: state for state in states if state.cursor is not None}
    if not rings and all(state.folds is None for state in states):
        return
    forms = {(ring.cursor, ring.rows, ring.shape[0], ring.gate) for ring in rings.values()}
    if len(forms) != 1:
        raise SpecError(
            "the rings of a step are appended to together",
            found=", ".join(rings) or "no ring",
            expected="rings of one length, with one cursor and one gate",
        )
    ((name, _, sessions, gate),) = forms
    if sessions != 1:
        raise SpecError(
            "a ring belongs to one session",
            found=f"{sessions} sessions in one step",
            expected="1",
            remedy="export without --sessions, or without --defer",
        )
    cursor = next((s for s in states if s.name == name), None)
    if cursor is None or (cursor.gate, cursor.shape) != (None, (1,)) or cursor.dtype != "int32":
        raise SpecError(
            "rings need a count of the rows that they hold",
            found=f"cursor {name!r}",
            expected="a state of shape [1] of int32 that no gate guards",
        )
    others = [s.name for s in states if s.gate == gate and s.name not in rings]
    if gate not in hard or others:
        raise SpecError(
            "rings are appended to by a hard gate that guards nothing else",
            found=f"gate {gate!r}, which guards {', '.join([*rings, *others])}",
        )
    strangers = [s.name for s in states if s.folds is not None and s.folds not in rings]
    if strangers:
        raise SpecError("only the rows of a ring are folded", found=", ".join(strangers))
