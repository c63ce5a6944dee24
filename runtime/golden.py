"""Replaying a bundle's golden episode: does this machine do what the exporter saw."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.contract import Bundle, Episode
from stategate.contract.errors import EpisodeError
from stategate.contract.stored import values
from stategate.runtime.buffers import Array, Buffers
from stategate.runtime.engine import Engine, EngineChoice, open_engine
from stategate.runtime.full_pool import open_stepper
from stategate.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay.

    Attributes:
        steps: Steps that were compared.
        max_output_error: Largest difference of any output element; see `Gaps`.
        max_state_error: The same of the states after the last step.
        max_chunk_error: Between chunk and step, see `chunk_gap`; None without a chunk graph.
        gate_flips: Gate decisions that differed.
        tolerance: What the errors are held against.
        max_fused_error: As `max_output_error`, in one graph where the bundle runs in two; None
            where it does not.
    """

    steps: int
    max_output_error: float
    max_state_error: float
    gate_flips: int
    tolerance: float
    max_chunk_error: float | None = None
    max_fused_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance and no gate flipped."""
        others = (self.max_chunk_error or 0.0, self.max_fused_error or 0.0)
        errors = (self.max_output_error, self.max_state_error, *others)
        # Written so that NaN fails.
        return all(error <= self.tolerance for error in errors) and self.gate_flips == 0


class Gaps:
    """Differences between two runs, tensor by tensor and step by step.

    A difference is given in units of the largest magnitude that the reference tensor reached in
    the whole run, so that a tensor of small numbers is judged as sharply as one of large ones.
    Equal NaNs and infinities agree; integers and booleans agree or differ without measure.

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
    finite = np.isfinite(reference)
    if not np.array_equal(wide[~finite], reference[~finite], equal_nan=True):
        return float("inf"), 0.0
    gap = float(np.max(np.abs(wide[finite] - reference[finite]), initial=0.0))
    magnitude = float(np.max(np.abs(reference[finite]), initial=0.0))
    return (gap if np.isfinite(gap) else float("inf")), magnitude


def chunk_gap(path: str | Path, golden: Episode) -> float | None:
    """Take a golden episode in by the chunk and by the step, and compare all that they leave.

    Two histories: one of whole chunks, and one that ends within a chunk.

    Args:
        path: The bundle.
        golden: Its golden episode.

    Returns:
        The largest difference of outputs and states, see `Gaps`; infinity where the ledgers differ.
        None where the bundle has no chunk graph.

    Raises:
        EpisodeError: The episode is no longer than a chunk.
    """
    graph = Bundle.open(path).manifest.chunk_graph
    if graph is None:
        return None
    if golden.steps <= graph.steps:
        raise EpisodeError(
            "the episode is too short to try the chunk graph",
            found=f"{golden.steps} steps",
            expected=f"more than the {graph.steps} of a chunk",
        )
    whole = golden.steps // graph.steps * graph.steps
    ragged = golden.steps if golden.steps > whole else whole - 1
    return max(_history_gap(path, golden, steps) for steps in (whole, ragged))


def _history_gap(path: str | Path, golden: Episode, steps: int) -> float:
    history = {name: array[:steps] for name, array in golden.inputs.items()}
    outputs, states = Gaps(), Gaps()
    with Session.open(path) as by_chunk, Session.open(path) as by_step:
        given = by_chunk.prefill(**history)
        for t in range(steps):
            right = by_step.step(**{name: array[t] for name, array in history.items()})
            outputs.add({name: array[t] for name, array in given.items()}, right)
        specs = by_step.manifest.states
        ended = [{s.name: each.state(s.name) for s in specs} for each in (by_chunk, by_step)]
        states.add(values(specs, ended[0]), values(specs, ended[1]))
        if by_chunk.ledger != by_step.ledger:
            return float("inf")
    return max(outputs.worst(), states.worst())


def fused_gap(path: str | Path, golden: Episode) -> float | None:
    """Step a bundle that runs in two graphs through its golden episode in one.

    Args:
        path: The bundle.
        golden: Its golden episode.

    Returns:
        The largest difference of outputs, see `Gaps`; None where the bundle runs in one anyway.
    """
    bundle = Bundle.open(path)
    if bundle.manifest.graph_of("read") is None:
        return None
    gaps = Gaps()
    with Session.open(path) as session:

        def fused(engine: Engine, buffers: Buffers) -> Engine:
            engine.close()
            return open_engine(bundle, buffers, bundle.manifest.step_graph, "onnxruntime")

        session.replace_engine(fused)
        for t, inputs in enumerate(golden):
            gaps.add(session.step(**inputs), {n: a[t] for n, a in golden.outputs.items()})
    return gaps.worst()


def replay(
    path: str | Path, tolerance: float = 1e-4, engine: EngineChoice = "auto"
) -> Replay | None:
    """Step a bundle through its golden episode on this machine.

    Args:
        path: The bundle.
        tolerance: Largest error allowed.
        engine: Which engine steps it.

    Returns:
        The comparison, or None where the bundle carries no golden episode.

    Raises:
        EpisodeError: The golden episode does not fit the model.
    """
    bundle = Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        return None
    flips = 0
    sessions = bundle.manifest.sessions
    outputs, states = Gaps(sessions), Gaps(sessions)
    with closing(open_stepper(path, engine)) as session:
        for t, inputs in enumerate(golden):
            given = session.step(**inputs)
            outputs.add(given, {name: array[t] for name, array in golden.outputs.items()})
            for name, threshold in bundle.manifest.step.thresholds.items():
                ours = session.gates[name] > np.float32(threshold)
                flips += int((ours != (golden.gates[name][t] > np.float32(threshold))).sum())
        specs = bundle.manifest.states
        ended = {name: session.state(name) for name in golden.states}
        states.add(values(specs, ended), values(specs, golden.states))
    # No other graph is used then, and onnxruntime may not be there.
    if engine in ("native", "tensorrt"):
        return Replay(golden.steps, outputs.worst(), states.worst(), flips, tolerance)
    by_chunk, fused = chunk_gap(path, golden), fused_gap(path, golden)
    return Replay(golden.steps, outputs.worst(), states.worst(), flips, tolerance, by_chunk, fused)
