"""Replaying a bundle's golden episode: does this machine do what the exporter saw?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.contract import Bundle
from stategate.contract.episode import Episode
from stategate.runtime.buffers import Array
from stategate.runtime.full_pool import open_stepper


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay.

    Attributes:
        steps: Steps that were compared.
        max_output_error: Largest difference of any output element; see `worst_difference`.
        max_state_error: The same of the states after the last step.
        gate_flips: Gate decisions that differed.
        tolerance: What the errors are held against.
    """

    steps: int
    max_output_error: float
    max_state_error: float
    gate_flips: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance and no gate flipped."""
        # Written so that NaN fails.
        worst = max(self.max_output_error, self.max_state_error)
        return worst <= self.tolerance and self.gate_flips == 0


def difference(a: Array, b: Array) -> float:
    """Largest difference of any element, in units of the reference's largest magnitude.

    Args:
        a: What came out.
        b: The reference. Where all of it is smaller than 1, the unit is 1.

    Returns:
        Infinity where either side is not finite or the shapes differ.
    """
    if a.shape != b.shape:
        return float("inf")
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    gap = np.max(np.abs(wide_a - wide_b), initial=0.0) / np.max(np.abs(wide_b), initial=1.0)
    return float(gap) if np.isfinite(gap) else float("inf")


def worst_difference(a: Array, b: Array, sessions: int) -> float:
    """The `difference` of the session that differs most, each in units of its own reference.

    Args:
        a: What came out; with more than one session, a row for each.
        b: The reference, likewise.
        sessions: How many.
    """
    if sessions == 1 or a.shape != b.shape:
        return difference(a, b)
    return max(difference(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def replay(path: str | Path, tolerance: float = 1e-4) -> Replay | None:
    """Step a bundle through its golden episode on this machine.

    Args:
        path: The bundle.
        tolerance: Largest error allowed.

    Returns:
        The comparison, or None where the bundle carries no golden episode.
    """
    bundle = Bundle.open(path)
    golden = bundle.manifest.golden
    if golden is None:
        return None
    file = next(f for f in bundle.manifest.files if f.path == golden)
    episode = Episode.load(bundle.read(file))
    thresholds = {g.name: g.threshold for g in bundle.manifest.gates if g.threshold is not None}
    output_error = 0.0
    flips = 0
    sessions = bundle.manifest.sessions
    with closing(open_stepper(path)) as session:
        for t, inputs in enumerate(episode):
            outputs = session.step(**inputs)
            for name, expected in episode.outputs.items():
                output_error = max(
                    output_error, worst_difference(outputs[name], expected[t], sessions)
                )
            for name, threshold in thresholds.items():
                ours = session.gates[name] > np.float32(threshold)
                flips += int((ours != (episode.gates[name][t] > np.float32(threshold))).sum())
        state_error = max(
            (
                worst_difference(session.state(name), last, sessions)
                for name, last in episode.states.items()
            ),
            default=0.0,
        )
    return Replay(episode.steps, output_error, state_error, flips, tolerance)
