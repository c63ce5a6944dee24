"""Several sessions in one graph: their streams, their references, and is every row alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stategate.contract import Episode, StateSpec, TensorSpec
from stategate.contract.errors import EpisodeError, ExportError
from stategate.contract.failures import failures, first_line
from stategate.export.candidate import Arrays, Reference

_DRAWS = 32  # a gate that mixes rows shows only where they decide differently
_TOLERANCE = 1e-3  # a product of many rows rounds differently from that of one


def side_by_side(streams: Sequence[Episode]) -> Episode:
    """The inputs ``(steps, 1, ...)`` of one stream for each session as those of a pool."""
    names = streams[0].inputs
    return Episode({n: np.concatenate([s.inputs[n] for s in streams], axis=1) for n in names})


def staggered(stream: Episode, sessions: int) -> Episode:
    """One recorded stream for every session, each starting at another place of it.

    A stream that has a row for each session is left as it is.
    """
    if any(array.shape[1:2] != (1,) for array in stream.inputs.values()):
        return stream
    if stream.start:
        raise EpisodeError(
            "one stream that starts from given states cannot serve several sessions",
            found=", ".join(f"start.{name}" for name in stream.start),
            expected=f"inputs of {sessions} rows, and states of as many",
        )
    starts = [row * stream.steps // sessions for row in range(sessions)]
    return side_by_side(
        [Episode({n: np.roll(a, -t, axis=0) for n, a in stream.inputs.items()}) for t in starts]
    )


class RowsReference:
    """One reference for each session, every one on a state of its own."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self._references = references
        self.name = f"{references[0].name}, {len(references)} sessions alone"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps so far did not show in one session or another."""
        every = [note for each in self._references for note in getattr(each, "notes", ())]
        return tuple(dict.fromkeys(every))

    def begin(self, states: Arrays) -> None:
        """Start every row from its own of these states."""
        for row, reference in enumerate(self._references):
            begin = getattr(reference, "begin")  # noqa: B009  (a reference need not have it)
            begin({name: array[row : row + 1] for name, array in states.items()})

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, by name, ``(rows, ...)``."""
        results = [
            reference.step({name: array[row : row + 1] for name, array in inputs.items()})
            for row, reference in enumerate(self._references)
        ]
        outputs, states, gates = (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*results, strict=True)
        )
        return outputs, states, gates


def check_rows_are_independent(
    run: Callable[[Arrays], Arrays],
    tensors: Iterable[TensorSpec | StateSpec],
    sessions: int,
    error: type[ExportError],
    *,
    expected: str,
    remedies: tuple[str, str],
) -> None:
    """Run a step for several sessions and for one of them alone, and compare.

    The other sessions hold random numbers first and NaN then; neither may be seen in a row. ``run``
    takes inputs and states of any number of rows by name. The remedies are for a step that fails
    with several rows, and for one whose rows depend on others.
    """

    def rigid(symptom: str) -> ExportError:
        return error(
            f"the step cannot serve {sessions} sessions at once",
            found=symptom,
            expected=expected,
            remedy=remedies[0],
        )

    tensors = list(tensors)
    rng = np.random.default_rng(0)
    for row in [-draw % sessions for draw in range(_DRAWS)]:
        drawn = {t.name: _random(t, rng) for t in tensors}
        single = run({name: array[row : row + 1] for name, array in drawn.items()})
        for rows in (drawn, {name: _poisoned(array, row) for name, array in drawn.items()}):
            try:
                together = run(rows)
            except failures() as problem:  # a user's step may raise anything
                raise rigid(first_line(problem)) from problem
            for name, array in together.items():
                if array.shape != (sessions, *single[name].shape[1:]):
                    raise rigid(f"{name} of shape {list(array.shape)}")
                if not _alike(array[row], single[name][0]):
                    raise error(
                        "the step mixes its sessions",
                        found=f"{name} of row {row} depends on other rows",
                        expected="every row computed from that row alone",
                        remedy=remedies[1],
                    )


def _random(tensor: TensorSpec | StateSpec, rng: np.random.Generator) -> np.ndarray:
    if np.dtype(tensor.dtype).kind == "f":
        return rng.standard_normal(tensor.shape).astype(tensor.dtype)
    return rng.integers(0, 2, tensor.shape).astype(tensor.dtype)


def _poisoned(array: np.ndarray, row: int) -> np.ndarray:
    """NaN in every row but one; integers have none and stay."""
    if array.dtype.kind != "f":
        return array
    poisoned = np.full_like(array, np.nan)
    poisoned[row] = array[row]
    return poisoned


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.abs(np.nan_to_num(b, nan=0.0, posinf=0.0, neginf=0.0)).max(initial=1.0)
    return np.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)
