"""The parity check that stands between a candidate and a bundle; alone in export to use runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.contract.episode import Episode
from stategate.contract.errors import ParityError
from stategate.contract.receipts import InputsRef, Verification
from stategate.contract.stored import quanta, values
from stategate.contract.write_rule import opens
from stategate.export.candidate import Arrays, Reference
from stategate.export.seal.answers import Answers
from stategate.runtime.check.full_pool import Stepper, open_stepper
from stategate.runtime.check.gaps import Gaps
from stategate.runtime.check.golden import TOLERANCE, chunk_gap, fused_gap, stepped

__all__ = [
    "TOLERANCE",
    "Comparison",
    "Gaps",
    "Limits",
    "Reference",
    "compare",
    "verify",
]

STEPS = 1000
GOLDEN_STEPS = 256
SECOND_STEPS = 32  # that are stepped again after a reset
TRAIL_BYTES = 1 << 20  # of recorded states in a golden episode
_FAILS = (
    "in lower precision keep more of it in float (stategate model sensitivity), and a state in "
    "float32; else look for operations that the engine computes differently; nothing was written"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a bundle may part from its model in the parity check."""

    # largest error, see `Gaps`: of outputs and states, or of outputs alone where ``flip_rate`` is
    # given; infinity where that is left to the drift test
    error: float = TOLERANCE
    # share of gate decisions that may differ, for a candidate in lower precision; None for one in
    # float32, of which none may
    flip_rate: float | None = None
    accepted: str | None = None  # who takes a candidate that is beyond these limits, and why
    because: str = ""  # why the error is not the usual one, in words


STRICT = Limits()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of stepping a bundle beside its model."""

    # largest difference of any output in each step, see `Gaps`; ``(steps,)``
    output_error: np.ndarray
    state_error: np.ndarray  # the same of the states
    flipped: list[list[str]]  # gates that decided differently, step by step
    flips: int  # elements of gates that did, over all steps
    decisions: int  # elements of hard gates over all steps
    opened: dict[str, int]  # steps in which each hard gate of the model was open, over all rows
    unchanged: tuple[str, ...]  # states that kept their first value, though no gate was always shut
    engine: str  # what stepped the bundle
    golden: Episode  # the first steps, with the model's answers or the bundle's own

    @property
    def has_flips(self) -> np.ndarray:
        """Whether any gate decided differently, ``(steps,)`` bool."""
        return np.array([bool(names) for names in self.flipped])

    @property
    def flip_rate(self) -> float:
        """Share of gate decisions that differed."""
        return self.flips / self.decisions if self.decisions else 0.0


def compare(
    candidate: Path,
    reference: Reference,
    episode: Episode,
    report: Callable[[int], None] = lambda _: None,
    *,
    own_answers: bool = False,
    inputs: InputsRef = InputsRef(),  # noqa: B008  (frozen)
) -> Comparison:
    """Step a bundle and its model side by side, each on its own state."""
    answers = Answers(reference, episode, inputs)
    # Of a bundle in deferred form the model has other states.
    as_plain: Callable[[Arrays], Arrays] = getattr(reference, "plain_states", lambda states: states)
    flipped: list[list[str]] = []
    own_first: list[Arrays] = []
    first_answers: list[tuple[Arrays, Arrays]] = []
    states: Arrays = {}
    flips = decisions = 0
    with closing(open_stepper(candidate)) as session:
        rows = session.manifest.sessions
        thresholds = session.manifest.step.thresholds
        opened = dict.fromkeys(thresholds, 0)
        output_gaps, state_gaps = Gaps(rows), Gaps(rows)
        specs = session.manifest.states
        episode.begin(session, [state.name for state in specs])
        stored = {s.name: session.state(s.name) for s in specs}
        first, unchanged = stored, set(stored)
        trail: list[Arrays] = [stored]
        room = TRAIL_BYTES // max(1, session.manifest.state_bytes) - 1
        room = min(GOLDEN_STEPS, room) if own_answers and quanta(specs, stored) else 0
        for t, feed in enumerate(episode):
            # The reference goes first: it can name what the engine only fails on.
            outputs, after, gates = answers.step(t, feed)
            if not answers.are_finite:  # the rest is stepped to count how often
                continue
            answer = stepped(session, feed, t, reference.name, _FAILS)
            if t < SECOND_STEPS:
                own_first.append(_copied(answer))
            output_gaps.add(answer, outputs)
            stored = {s.name: session.state(s.name) for s in specs}
            unchanged -= {name for name in unchanged if not _same(stored[name], first[name])}
            state_gaps.add(as_plain(values(specs, stored)), after)
            if t < room:
                trail.append(stored)
            flipped.append([])
            for name, threshold in thresholds.items():
                own, right = (
                    opens(side[name], threshold).reshape(rows, -1)
                    for side in (session.gates, gates)
                )
                parted = np.flatnonzero((own != right).any(axis=1))
                flipped[t] += [f"{name} in row {row}" if rows > 1 else name for row in parted]
                opened[name] += int(right.any(axis=1).sum())
                flips += int((own != right).sum())
                decisions += own.size
            if t < GOLDEN_STEPS:
                if own_answers:
                    outputs, gates = answer, session.gates
                if own_answers or hasattr(reference, "plain_states"):
                    after = stored
                # Both sides write their next answers into the same arrays.
                first_answers.append((_copied(outputs), _copied(gates)))
                states = _copied(after)
            report(t + 1)
        engine = session.engine_name
        if answers.are_finite:
            _check_reset(session, episode, own_first, reference.name)
    answers.check()
    golden = Episode(
        inputs={name: array[:GOLDEN_STEPS] for name, array in episode.inputs.items()},
        outputs=_stacked([outputs for outputs, _ in first_answers]),
        gates=_stacked([gates for _, gates in first_answers]),
        states=dict(states),
        trail=_stacked(trail) if room > 0 else {},
        start=episode.start,
        prologue=episode.prologue,
    )
    output_error, state_error = (
        gaps.per_step() if gaps.per_step().size else np.zeros(len(flipped))
        for gaps in (output_gaps, state_gaps)
    )
    never = {name for name, openings in opened.items() if not openings}
    still = tuple(s.name for s in specs if s.name in unchanged and s.gate not in never)
    return Comparison(
        output_error, state_error, flipped, flips, decisions, opened, still, engine, golden
    )


def _check_reset(
    session: Stepper, episode: Episode, own_first: Sequence[Arrays], name: str
) -> None:
    """Step the first inputs again, after another past: what answers otherwise remembers more."""
    session.reset()
    episode.begin(session, [state.name for state in session.manifest.states])
    for t, (feed, before) in enumerate(zip(episode, own_first, strict=False)):
        answer = stepped(session, feed, t, name, _FAILS)
        parted = [n for n, array in before.items() if not _same(np.asarray(answer[n]), array)]
        if parted:
            raise ParityError(
                f"the bundle answers otherwise after a reset, in step {t}",
                found=f"{', '.join(parted)}, with the same inputs and the same states",
                expected="a memory that is in the states alone",
                remedy="look for random numbers and for memory inside of an operator; nothing was "
                "written",
            )


def verify(
    candidate: Path,
    reference: Reference,
    episode: Episode,
    limits: Limits = STRICT,
    report: Callable[[int], None] = lambda _: None,
    inputs: InputsRef = InputsRef(),  # noqa: B008  (frozen)
) -> tuple[Verification, Episode]:
    """Hold a bundle against its model, each on its own state.

    A bundle for several sessions has all of them stepped, and every row is judged by itself.

    Returns:
        The receipt, and the golden episode: the first steps with the model's own answers, or, in
        lower precision, with the bundle's, which another machine must repeat.
    """
    lower = limits.flip_rate is not None
    result = compare(candidate, reference, episode, report, own_answers=lower, inputs=inputs)
    beyond = _judge_lower(reference, result, limits) if lower else None
    if not lower:
        _judge(reference, result, limits)
    golden = result.golden
    chunk_error, fused_error = chunk_gap(candidate, golden), fused_gap(candidate, golden)
    for error, problem, remedy in (
        (
            chunk_error,
            "the chunk graph parts from the step",
            "chunk() must give what as many calls of step() give",
        ),
        (
            fused_error,
            "the step in one graph parts from the step in two",
            "export it with --split fused",
        ),
    ):
        if error is not None and not error <= limits.error:  # written so that NaN fails
            raise ParityError(
                problem,
                found=f"output error {error:.3g} within {golden.steps} steps",
                expected=f"at most {limits.error:g}",
                remedy=f"{remedy}; nothing was written",
            )
    receipt = Verification(
        reference=reference.name,
        engine=result.engine,
        steps=episode.steps,
        max_output_error=_worst(result.output_error),
        max_state_error=_worst(result.state_error),
        gate_flips=result.flips,
        tolerance=limits.error if np.isfinite(limits.error) else None,
        gate_openings=result.opened,
        max_chunk_error=chunk_error,
        max_fused_error=fused_error,
        flip_rate=result.flip_rate,
        max_flip_rate=limits.flip_rate,
        accepted=f"{limits.accepted} (overruled: {beyond})" if beyond else None,
        inputs=inputs,
        # A reference of a file with branches knows which it took.
        notes=getattr(reference, "notes", ())
        + tuple(
            f"state {name} kept its first value in every step of the check: the model does not "
            "give its next value back, or needs other inputs to change it"
            for name in result.unchanged
        ),
    )
    return receipt, golden


def _worst(errors: np.ndarray) -> float | None:
    worst = float(np.max(errors, initial=0.0))
    return worst if np.isfinite(worst) else None


def _judge(reference: Reference, result: Comparison, limits: Limits) -> None:
    errors = np.stack([result.output_error, result.state_error])
    # Written so that NaN fails.
    bad = ~(errors.max(axis=0) <= limits.error) | result.has_flips
    if bad.any():
        t = int(bad.argmax())
        raise ParityError(
            f"the bundle parts from {reference.name} at step {t}",
            found=f"output error {errors[0, t]:.3g}, state error {errors[1, t]:.3g}, "
            f"flipped gates: {', '.join(result.flipped[t]) or 'none'}",
            expected=f"errors at most {limits.error:g} and no flipped gate"
            + (f"; {limits.because}" if limits.because else ""),
            remedy=(
                "export it in float32: module.float(), with inputs and first values in float32; or "
                if limits.because
                else ""
            )
            + "look for memory that is not declared (Python attributes, random numbers), for a "
            "second name or a view of a tensor that is a state, and for "
            "operations that the engine computes differently (logsigmoid, softplus); nothing was "
            "written",
        )


def _judge_lower(reference: Reference, result: Comparison, limits: Limits) -> str | None:
    """What is beyond the limits and accepted; None where nothing is beyond them."""
    worst = float(np.max(result.output_error, initial=0.0))
    flip_rate = limits.flip_rate or 0.0
    distance = f"output error {worst:.3g}, {result.flip_rate:.3%} of gate decisions flipped"
    if worst <= limits.error and result.flip_rate <= flip_rate:
        return None
    finite = bool(np.isfinite(worst))
    if limits.accepted and finite:
        return f"{distance}; limits {limits.error:g} and {flip_rate:.3%}"
    bad = ~(result.output_error <= limits.error) | result.has_flips
    raise ParityError(
        f"the candidate in lower precision parts from {reference.name}, first at step "
        f"{int(bad.argmax())}",
        found=distance,
        expected=f"at most {limits.error:g} and {flip_rate:.3%}",
        remedy="keep what is sensitive in float (stategate model sensitivity), or say with "
        '--accept "who: why" who takes it as it is; nothing was written'
        if finite
        else "integers of an output differ, which has no measure to accept; nothing was written",
    )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def _copied(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def _stacked(steps: list[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}
