"""The parity check that stands between a candidate and a bundle; alone in export to use runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from stategate.contract import Verification
from stategate.contract.episode import Episode
from stategate.contract.errors import ParityError
from stategate.contract.stored import values
from stategate.runtime.full_pool import open_stepper
from stategate.runtime.golden import Gaps, chunk_gap

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


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a candidate may part from its model.

    Attributes:
        error: Largest error, see `Gaps`: of outputs and states, or of outputs alone where
            ``flip_rate`` is given.
        flip_rate: Share of gate decisions that may differ, for a candidate in lower precision;
            None for one in float32, of which none may.
    """

    error: float = TOLERANCE
    flip_rate: float | None = None


STRICT = Limits()


def verify(
    candidate: Path,
    reference: Reference,
    episode: Episode,
    limits: Limits = STRICT,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Verification, Episode]:
    """Step a bundle and its model side by side, each on its own state.

    A bundle for several sessions has all of them stepped, and every row is judged by itself.

    Args:
        candidate: Folder of the bundle.
        reference: The model.
        episode: Inputs; every step of it is taken.
        limits: How far they may part.
        report: Called with the number of steps done.

    Returns:
        The receipt, and the golden episode: the first steps with the model's own answers, or, in
        lower precision, with the bundle's, which another machine must repeat.

    Raises:
        ParityError: An error beyond the tolerance, or a gate that decided differently; with the
            chunk graph too, where there is one.
    """
    flipped: list[list[str]] = []
    kept: list[tuple[Arrays, Arrays]] = []
    states: Arrays = {}
    lower = limits.flip_rate is not None
    flips = decisions = 0
    with closing(open_stepper(candidate)) as session:
        rows = session.manifest.sessions
        thresholds = session.manifest.step.thresholds
        opened = dict.fromkeys(thresholds, 0)
        output_gaps, state_gaps = Gaps(rows), Gaps(rows)
        for t, inputs in enumerate(episode):
            # The reference goes first: it has a word for what the engine only fails on.
            outputs, after, gates = reference.step(inputs)
            ours = session.step(**inputs)
            output_gaps.add(ours, outputs)
            stored = {s.name: session.state(s.name) for s in session.manifest.states}
            state_gaps.add(values(session.manifest.states, stored), after)
            flipped.append([])
            for name, threshold in thresholds.items():
                here, there = (
                    (values[name] > np.float32(threshold)).reshape(rows, -1)
                    for values in (session.gates, gates)
                )
                parted = np.flatnonzero((here != there).any(axis=1))
                flipped[t] += [f"{name} in row {row}" if rows > 1 else name for row in parted]
                opened[name] += int(there.any(axis=1).sum())
                flips += int((here != there).sum())
                decisions += here.size
            if t < GOLDEN_STEPS:
                if lower:
                    outputs, after, gates = ours, stored, session.gates
                kept.append((_copied(outputs), _copied(gates)))
                states = _copied(after)
            report(t + 1)
        engine = session.engine_name
    if lower:
        _judge_lower(reference, output_gaps.worst(), flips / max(1, decisions), limits)
    else:
        _judge(reference, output_gaps, state_gaps, flipped, limits.error)
    golden = Episode(
        inputs={name: array[:GOLDEN_STEPS] for name, array in episode.inputs.items()},
        outputs=_stacked([outputs for outputs, _ in kept]),
        gates=_stacked([gates for _, gates in kept]),
        states=dict(states),
    )
    chunk_error = chunk_gap(candidate, golden)
    if chunk_error is not None and not chunk_error <= limits.error:
        raise ParityError(
            "the chunk graph parts from the step",
            found=f"output error {chunk_error:.3g} within {golden.steps} steps",
            expected=f"at most {limits.error:g}",
            remedy="chunk() must give what as many calls of step() give; nothing was written",
        )
    receipt = Verification(
        reference=reference.name,
        engine=engine,
        steps=episode.steps,
        max_output_error=output_gaps.worst(),
        max_state_error=state_gaps.worst(),
        gate_flips=flips,
        tolerance=limits.error,
        gate_openings=opened,
        max_chunk_error=chunk_error,
    )
    return receipt, golden


def _judge(
    reference: Reference, outputs: Gaps, states: Gaps, flipped: list[list[str]], tolerance: float
) -> None:
    errors = np.zeros((2, len(flipped)))
    for row, gaps in zip(errors, (outputs, states), strict=True):
        row[:] = gaps.per_step() if gaps.per_step().size else 0.0
    # Written so that NaN fails.
    bad = ~(errors.max(axis=0) <= tolerance) | np.array([bool(names) for names in flipped])
    if bad.any():
        t = int(bad.argmax())
        raise ParityError(
            f"the bundle parts from {reference.name} at step {t}",
            found=f"output error {errors[0, t]:.3g}, state error {errors[1, t]:.3g}, "
            f"flipped gates: {', '.join(flipped[t]) or 'none'}",
            expected=f"errors at most {tolerance:g} and no flipped gate",
            remedy="look for memory that is not declared (Python attributes, random numbers), and "
            "for operations that the engine computes differently (logsigmoid, softplus); "
            "nothing was written",
        )


def _judge_lower(reference: Reference, worst: float, flip_rate: float, limits: Limits) -> None:
    # Written so that NaN fails.
    if not (worst <= limits.error and flip_rate <= (limits.flip_rate or 0.0)):
        raise ParityError(
            f"the candidate in lower precision parts from {reference.name}",
            found=f"output error {worst:.3g}, {flip_rate:.3%} of gate decisions flipped",
            expected=f"at most {limits.error:g} and {limits.flip_rate:.3%}",
            remedy="store states in more bits, or allow more; nothing was written",
        )


def _copied(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def _stacked(steps: list[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}
