"""The parity check that stands between a candidate and a bundle; alone in export to use runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from stategate.contract import Verification
from stategate.contract.episode import Episode
from stategate.contract.errors import ParityError
from stategate.runtime.full_pool import open_stepper
from stategate.runtime.golden import worst_difference

Arrays = Mapping[str, np.ndarray]

STEPS = 1000
GOLDEN_STEPS = 256
TOLERANCE = 1e-4


class Reference(Protocol):
    """The model as it was before export, on its own state.

    Attributes:
        name: What it is, for the receipt.
    """

    name: str

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step, and gates, by name."""
        ...


def verify(
    candidate: Path,
    reference: Reference,
    episode: Episode,
    tolerance: float = TOLERANCE,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Verification, Episode]:
    """Step a bundle and its model side by side, each on its own state.

    A bundle for several sessions has all of them stepped, and every row is judged by itself.

    Args:
        candidate: Folder of the bundle.
        reference: The model.
        episode: Inputs; every step of it is taken.
        tolerance: Largest error allowed in outputs and states, see `worst_difference`.
        report: Called with the number of steps done.

    Returns:
        The receipt, and the first steps with the model's own answers: the golden episode.

    Raises:
        ParityError: An error beyond the tolerance, or a gate that decided differently.
    """
    worst_output = worst_state = 0.0
    flips = 0
    opened: dict[str, int] = {}
    kept: list[tuple[Arrays, Arrays]] = []
    states: Arrays = {}
    with closing(open_stepper(candidate)) as session:
        rows = session.manifest.sessions
        thresholds = {
            g.name: np.float32(g.threshold)
            for g in session.manifest.gates
            if g.threshold is not None
        }
        engine = session.engine_name
        for t, inputs in enumerate(episode):
            ours = session.step(**inputs)
            outputs, after, gates = reference.step(inputs)
            output_error = max(worst_difference(ours[n], outputs[n], rows) for n in outputs)
            state_error = max(worst_difference(session.state(n), after[n], rows) for n in after)
            flipped = []
            for name, threshold in thresholds.items():
                here, there = (
                    (values[name] > threshold).reshape(rows, -1)
                    for values in (session.gates, gates)
                )
                parted = np.flatnonzero((here != there).any(axis=1))
                flipped += [f"{name} in row {row}" if rows > 1 else name for row in parted]
                opened[name] = opened.get(name, 0) + int(there.any(axis=1).sum())
            worst_output = max(worst_output, output_error)
            worst_state = max(worst_state, state_error)
            flips += len(flipped)
            if flipped or not max(output_error, state_error) <= tolerance:
                raise ParityError(
                    f"the bundle parts from {reference.name} at step {t}",
                    found=f"output error {output_error:.3g}, state error {state_error:.3g}, "
                    f"flipped gates: {', '.join(flipped) or 'none'}",
                    expected=f"errors at most {tolerance:g} and no flipped gate",
                    remedy="look for operations that the engine computes differently "
                    "(logsigmoid, softplus, fast maths); nothing was written",
                )
            if t < GOLDEN_STEPS:
                kept.append(
                    (
                        {name: np.array(array) for name, array in outputs.items()},
                        {name: np.array(array) for name, array in gates.items()},
                    )
                )
                states = {name: np.array(array) for name, array in after.items()}
            report(t + 1)
    receipt = Verification(
        reference=reference.name,
        engine=engine,
        steps=episode.steps,
        max_output_error=worst_output,
        max_state_error=worst_state,
        gate_flips=flips,
        tolerance=tolerance,
        gate_openings=opened,
    )
    golden = Episode(
        inputs={name: array[:GOLDEN_STEPS] for name, array in episode.inputs.items()},
        outputs=_stacked([outputs for outputs, _ in kept]),
        gates=_stacked([gates for _, gates in kept]),
        states=dict(states),
    )
    return receipt, golden


def _stacked(steps: list[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}
