"""How far two runs are apart: tensors in units of their own size, gates by their decisions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stategate.contract.write_rule import opens
from stategate.runtime.base.buffers import Array


def flips(
    thresholds: Mapping[str, float], ours: Mapping[str, Array], reference: Mapping[str, Array]
) -> int:
    """Elements of the gates that have a threshold which decide otherwise than the reference's."""
    return sum(
        int((opens(ours[name], threshold) != opens(reference[name], threshold)).sum())
        for name, threshold in thresholds.items()
    )


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

    def add(self, ours: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
        """Compare the tensors of one step."""
        for name, theirs in reference.items():
            for row in range(self._sessions):
                key = (name, row)
                # A state without axes has no rows to take.
                alone = ... if self._sessions == 1 else slice(row, row + 1)
                gap, magnitude = _gap(ours[name][alone], theirs[alone])
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


def _gap(ours: Array, theirs: Array) -> tuple[float, float]:
    """Largest absolute difference, and largest finite magnitude of the reference."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf"), 0.0
    if theirs.dtype.kind != "f":
        return (0.0 if np.array_equal(ours, theirs) else float("inf")), 0.0
    wide, reference = ours.astype(np.float64), theirs.astype(np.float64)
    if theirs.dtype != np.float16:  # an engine may take a number this small for zero
        smallest = np.finfo(theirs.dtype).tiny
        for values in (wide, reference):
            values[np.abs(values) < smallest] = 0.0
    finite = np.isfinite(reference)
    if not np.array_equal(wide[~finite], reference[~finite], equal_nan=True):
        return float("inf"), 0.0
    gap = float(np.max(np.abs(wide[finite] - reference[finite]), initial=0.0))
    magnitude = float(np.max(np.abs(reference[finite]), initial=0.0))
    return (gap if np.isfinite(gap) else float("inf")), magnitude
