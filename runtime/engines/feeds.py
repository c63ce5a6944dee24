"""What a caller hands a step: checked against the manifest, then copied into fixed buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeGuard

import numpy as np

from stategate.contract.errors import NonFiniteInputError, StepInputError
from stategate.runtime.base.buffers import Array, Slot, is_finite
from stategate.runtime.base.rows import RowTensor
from stategate.runtime.engines.engine import Engine, Filling


class Feeds:
    """The inputs of one session."""

    def __init__(self, slots: tuple[Slot, ...], engine: Engine | None = None) -> None:
        self._fill = engine.fill if isinstance(engine, Filling) else None
        self._feeds = tuple((s.name, s.array, s.flat) for s in slots)
        self._bound = tuple((s.name, s.array, s.array.dtype, s.array.shape) for s in slots)
        self._check = slots if self._fill is None else ()

    def take(self, inputs: dict[str, Array]) -> None:
        """Copy every input into its buffer."""
        if self._fill is not None and self._fill(inputs) == 0:
            return
        # Written out for the common case: a step of a small memory takes less time than calls do.
        for name, buffer, dtype, shape in self._bound:
            value = inputs.get(name)
            if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
                value = self._fitting(name, buffer, inputs)
            buffer[...] = value
        if self._check:
            refuse_not_finite(self._check)
        self._refuse_others(inputs)

    def check_history(self, inputs: Mapping[str, Array]) -> int:
        """Hold many steps against the manifest, without copying them anywhere.

        Args:
            inputs: One array ``(steps, *shape)`` for each input.

        Returns:
            The number of steps.
        """
        arrays = (inputs.get(name) for name, _, _ in self._feeds)
        steps = next((len(a) for a in arrays if isinstance(a, np.ndarray) and a.ndim), 0)
        for name, buffer, _ in self._feeds:
            whole = np.broadcast_to(buffer, (steps, *buffer.shape))
            flat = self._fitting(name, whole, inputs).reshape(-1)
            if not is_finite(flat):
                raise not_finite(f"input {name!r}", flat)
        self._refuse_others(inputs)
        return steps

    def _fitting(self, name: str, buffer: Array, inputs: Mapping[str, Array]) -> Array:
        value = inputs.get(name)
        if fits(value, buffer):
            return value
        if value is None:
            raise StepInputError(
                f"input {name!r} is missing",
                found=", ".join(sorted(inputs)) or "no inputs",
                expected=", ".join(feed[0] for feed in self._feeds),
            )
        raise misfit(f"input {name!r}", value, buffer)

    def _refuse_others(self, inputs: Mapping[str, Array]) -> None:
        if len(inputs) != len(self._feeds):
            names = {name for name, _, _ in self._feeds}
            raise StepInputError(
                "the model has no such input",
                found=", ".join(sorted(set(inputs) - names)),
                expected=", ".join(sorted(names)),
            )


class FeedsOnceBegun(Feeds):
    """The inputs of a bundle with a prologue: none is taken before an episode was begun."""

    def __init__(
        self, slots: tuple[Slot, ...], engine: Engine | None, check: Callable[[], None]
    ) -> None:
        super().__init__(slots, engine)
        self._check_begun = check

    def take(self, inputs: dict[str, Array]) -> None:
        """Copy every input into its buffer, if an episode was begun."""
        self._check_begun()
        super().take(inputs)


class RowFeeds(Feeds):
    """The inputs of a pool, of which only the stepped rows are looked at.

    Args:
        slots: Buffers with a row for each session.
        stepped: Mask ``(rows,)``, read anew in every `take`.
    """

    def __init__(self, slots: tuple[Slot, ...], stepped: Array) -> None:
        super().__init__(slots)
        self._stepped = stepped
        self._rows = tuple(
            (RowTensor.of(s.name, s.array), stepped.reshape(-1, *(1,) * (s.array.ndim - 1)))
            for s in slots
        )

    def take(self, inputs: dict[str, Array]) -> None:
        """Copy the stepped rows of every input into its buffer; other rows keep what they had."""
        for (name, buffer, _), (rows, mask) in zip(self._feeds, self._rows, strict=True):
            np.copyto(buffer, self._fitting(name, buffer, inputs), where=mask)
            for row in rows.not_finite(self._stepped):
                problem = not_finite(f"input {name!r} of row {row}", rows.rows[row])
                # NaN left behind would cost every later step the slow search.
                buffer.fill(0)
                raise problem
        self._refuse_others(inputs)


def fits(value: object, buffer: Array) -> TypeGuard[Array]:
    """Whether a value can be copied as it is; nothing is cast or broadcast for a caller."""
    return (
        isinstance(value, (np.ndarray, np.generic))
        and value.dtype == buffer.dtype
        and value.shape == buffer.shape
    )


def misfit(what: str, value: object, buffer: Array) -> StepInputError:
    """The error for a value that does not fit."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype != buffer.dtype:
        return StepInputError(
            f"{what} has the wrong dtype",
            found=getattr(value, "dtype", type(value).__name__),
            expected=buffer.dtype,
            remedy=f"np.asarray(x, dtype=np.{buffer.dtype})",
        )
    return StepInputError(
        f"{what} has the wrong shape",
        found=value.shape,
        expected=buffer.shape,
        remedy=f"x.reshape{buffer.shape}" if value.size == buffer.size else None,
    )


def check_states(states: Mapping[str, Array], places: Mapping[str, Array]) -> None:
    """Hold states from outside against those of the model."""
    for name in states:
        if name not in places:
            raise StepInputError(f"there is no state {name!r}", expected=", ".join(places))
    for name, place in places.items():
        value = states.get(name)
        if value is None:
            raise StepInputError(
                f"state {name!r} is missing",
                found=", ".join(sorted(states)) or "no states",
                expected=", ".join(places),
                remedy=f"give every state; session.state({name!r}) is what it holds now",
            )
        if not fits(value, place):
            raise misfit(f"state {name!r}", value, place)
        if not is_finite(value.reshape(-1)):
            raise not_finite(f"state {name!r}", value.reshape(-1))


def refuse_not_finite(slots: Iterable[Slot]) -> None:
    """Raise where an input holds NaN or infinity."""
    for slot in slots:
        if not slot.finite():
            raise not_finite(f"input {slot.name!r}", slot.flat)


def not_finite(what: str, flat: Array) -> NonFiniteInputError:
    """The error for a value that holds NaN or Inf, with the first of them."""
    bad = int(np.flatnonzero(~np.isfinite(flat))[0])
    return NonFiniteInputError(
        f"{what} is not finite",
        found=f"{flat[bad]} at flat index {bad}",
        expected="finite numbers",
        remedy="hold the last good observation, or skip the step",
    )
