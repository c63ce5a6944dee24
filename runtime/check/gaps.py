"""Two things stepped side by side: how far they are apart.

Tensors are compared in units of their own size, gates by their decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from stategate.contract import Episode, Manifest
from stategate.contract.stored import values
from stategate.contract.write_rule import opens
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.full_pool import Stepper

_NOTHING: Mapping[str, Array] = {}


class Answer(NamedTuple):
    """What one step gives, by name; the arrays may be overwritten by the next step."""

    outputs: Mapping[str, Array]
    gates: Mapping[str, Array] = _NOTHING  # the gates that are to be compared
    # the states after it, as the bundle stores them, where they are to be compared
    states: Mapping[str, Array] = _NOTHING


def live(
    stepper: Stepper,
    episode: Episode,
    step: Callable[[int, dict[str, Array]], Mapping[str, Array]] | None = None,
) -> Iterator[Answer]:
    """Step something through an episode; the last answer has its states.

    Args:
        stepper: What is stepped.
        episode: Its inputs, and perhaps the states from which it starts.
        step: Takes a step by its number and inputs in place of the stepper's own ``step``.
    """
    names = [state.name for state in stepper.manifest.states]
    episode.begin(stepper, names)
    for t, inputs in enumerate(episode):
        outputs = stepper.step(**inputs) if step is None else step(t, inputs)
        ended = t == episode.steps - 1
        states = {name: stepper.state(name) for name in names} if ended else _NOTHING
        yield Answer(outputs, stepper.gates, states)


def recorded(episode: Episode) -> Iterator[Answer]:
    """The answers that an episode carries; the last one has its states."""
    for t in range(episode.steps):
        yield Answer(
            {name: array[t] for name, array in episode.outputs.items()},
            {name: array[t] for name, array in episode.gates.items()},
            episode.states if t == episode.steps - 1 else _NOTHING,
        )


class SideBySide:
    """What came of comparing two runs of a bundle, step by step.

    Attributes:
        outputs: Differences of the outputs.
        states: Differences of the states, in the numbers that the model computes with.
        flips: Elements of hard gates that decided differently.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._thresholds, self._specs = manifest.step.thresholds, manifest.states
        self.outputs, self.states = Gaps(manifest.sessions), Gaps(manifest.sessions)
        self.flips = 0

    def add(self, answer: Answer, reference: Answer) -> None:
        """Compare one step, as far as the reference has something to compare with."""
        self.outputs.add(answer.outputs, reference.outputs)
        for name in reference.gates.keys() & self._thresholds.keys():
            tested, reference_values = (
                opens(side.gates[name], self._thresholds[name]) for side in (answer, reference)
            )
            self.flips += int((tested != reference_values).sum())
        if reference.states:
            self.states.add(
                values(self._specs, answer.states), values(self._specs, reference.states)
            )


def side_by_side(
    manifest: Manifest, answers: Iterable[Answer], references: Iterable[Answer]
) -> SideBySide:
    """Take two runs in step, and compare each answer with that of the reference."""
    run = SideBySide(manifest)
    for answer, reference in zip(answers, references, strict=True):
        run.add(answer, reference)
    return run


class Gaps:
    """Differences between two runs, tensor by tensor and step by step.

    A difference is given in units of the largest magnitude that the reference tensor reached in
    the whole run, so that a tensor of small numbers is judged as sharply as one of large ones.
    Equal NaNs and infinities agree; integers and booleans agree or differ without measure.
    Numbers below the smallest normal one of float32 or float64 are zero.

    Args:
        sessions: Rows of every tensor, each judged by itself.
    """

    def __init__(self, sessions: int = 1) -> None:
        self._sessions = sessions
        self._gaps: dict[tuple[str, int], list[float]] = {}
        self._units: dict[tuple[str, int], float] = {}

    def add(self, tested: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
        """Compare the tensors of one step."""
        for name, reference_values in reference.items():
            for row in range(self._sessions):
                key = (name, row)
                # A state without axes has no rows to take.
                own_rows = ... if self._sessions == 1 else slice(row, row + 1)
                gap, magnitude = gap_of(tested[name][own_rows], reference_values[own_rows])
                self._gaps.setdefault(key, []).append(gap)
                self._units[key] = max(self._units.get(key, 0.0), magnitude)

    def per_step(self) -> np.ndarray:
        """Largest difference of any tensor in each step, ``(steps,)`` float64."""
        columns = []
        for key, gaps in self._gaps.items():
            column = np.array(gaps)
            nonzero = column > 0.0
            column[nonzero] /= max(self._units[key], float(np.finfo(np.float32).tiny))
            columns.append(column)
        return np.max(columns, axis=0) if columns else np.zeros(0)

    def worst(self) -> float:
        """Largest difference of all; infinity where something finite met something that is not."""
        return float(np.max(self.per_step(), initial=0.0))

    def usual(self) -> float:
        """The median over the steps."""
        return float(np.median(self.per_step())) if self._gaps else 0.0


def gap_of(tested: Array, reference_values: Array) -> tuple[float, float]:
    """Largest absolute difference, and largest finite magnitude of the reference."""
    if tested.shape != reference_values.shape or tested.dtype != reference_values.dtype:
        return float("inf"), 0.0
    if reference_values.dtype.kind != "f":
        return (0.0 if np.array_equal(tested, reference_values) else float("inf")), 0.0
    wide, reference = tested.astype(np.float64), reference_values.astype(np.float64)
    if reference_values.dtype != np.float16:  # an engine may take a number this small for zero
        smallest = np.finfo(reference_values.dtype).tiny
        for values in (wide, reference):
            values[np.abs(values) < smallest] = 0.0
    finite = np.isfinite(reference)
    if not np.array_equal(wide[~finite], reference[~finite], equal_nan=True):
        return float("inf"), 0.0
    gap = float(np.max(np.abs(wide[finite] - reference[finite]), initial=0.0))
    magnitude = float(np.max(np.abs(reference[finite]), initial=0.0))
    return (gap if np.isfinite(gap) else float("inf")), magnitude
