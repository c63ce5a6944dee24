"""A candidate in deferred form, held against the plain model."""

from __future__ import annotations

from dataclasses import replace
from typing import SupportsIndex

import numpy as np

from stategate.contract.errors import SpecError
from stategate.contract.write_rule import opens
from stategate.export.candidate import Arrays, Candidate, Reference
from stategate.models.deferral import COUNT, FOLD, DeferredStep
from stategate.models.load import LoadedModel
from stategate.models.memories.matrix import Ring


def deferred(loaded: LoadedModel, length: SupportsIndex | str) -> LoadedModel:
    """The model in deferred form, known by the same name and the same weights."""
    return replace(loaded, model=DeferredStep(loaded.module, length))


class DeferredReference:
    """The plain model, which folds nothing, beside a bundle that does."""

    def __init__(self, plain: Reference, rings: tuple[Ring, ...], candidate: Candidate) -> None:
        self.name, self.notes = plain.name, getattr(plain, "notes", ())
        self._plain, self._rings, self._spec = plain, rings, candidate.spec
        self._gate = next(s.gate for s in self._spec.states if s.cursor is not None)
        self._length = 1 + next(s.rows for s in self._spec.states if s.cursor is not None)
        self._writes = 0

    def begin(self, states: Arrays) -> None:
        """Start from these states of the plain model."""
        if odd := [name for name in states if name == COUNT or name in self._names]:
            raise SpecError(
                "an episode of the deferred form starts from states of the plain model",
                found=", ".join(f"start.{name}" for name in odd),
            )
        self._plain.begin(states)  # type: ignore[attr-defined]

    @property
    def _names(self) -> set[str]:
        return {ring.name for ring in self._rings}

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states and gates of the plain model; and whether it is the turn of a fold."""
        outputs, states, gates = self._plain.step(inputs)
        gate = str(self._gate)
        writes = bool(opens(gates[gate], self._spec.thresholds[gate]).any())
        self._writes += writes
        folds = writes and self._writes % self._length == 0
        return outputs, states, {**gates, FOLD: np.full((1, 1), folds, np.float32)}

    def plain_states(self, states: Arrays) -> Arrays:
        """States of the bundle as the plain model has them: every ring folded."""
        waiting = {COUNT, *self._names}
        plain = {name: array for name, array in states.items() if name not in waiting}
        for ring in self._rings:
            plain |= folded(ring, states)
        return plain


def folded(ring: Ring, states: Arrays) -> dict[str, np.ndarray]:
    """The matrices that a ring waits for, with its rows folded one by one, in float64."""
    count = int(states[COUNT][0])
    start, result = ring.decay, {}
    for name, key in ring.parts.items():
        form = (ring.heads, ring.value, key) if ring.value_first else (ring.heads, key, ring.value)
        S = states[name].reshape(form).astype(np.float64)
        if ring.value_first:
            S = S.swapaxes(-1, -2)
        for row in states[ring.name][0, :count].astype(np.float64):
            k = row[:, start : start + ring.updates * key].reshape(ring.heads, -1, key)
            u = row[:, -ring.updates * ring.value :].reshape(ring.heads, -1, ring.value)
            S = row[:, : ring.decay, None] * S + k.swapaxes(-1, -2) @ u
        if ring.value_first:
            S = S.swapaxes(-1, -2)
        result[name] = S.reshape(states[name].shape).astype(states[name].dtype)
        start += key
    return result


def check_deferred(sessions: int, operators: str, lower: bool) -> None:
    """Refuse what the deferred form has not."""
    for problem, choice in (
        ("a pool", sessions > 1 and f"{sessions} sessions"),
        ("operators of their own", operators != "portable" and operators),
        ("lower precision", lower and "a precision other than float32"),
    ):
        if choice:
            raise SpecError(
                f"writes are not deferred in {problem}",
                found=choice,
                expected="one session, portable operators, float32",
                remedy="leave --defer away",
            )
