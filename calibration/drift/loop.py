"""Drift: a candidate bundle beside its float model, each in closed loop on its own state.

Everything is kept in running figures and a few hundred samples spread evenly over the logarithm of
the step, so a roll of 100,000 steps takes no more memory than one of 1,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np

from stategate.calibration.drift.judge import check_alike, check_judge
from stategate.calibration.drift.record import DriftLimits, DriftReport, Point, Side
from stategate.calibration.health.warm_up import steps_to_warm, summary
from stategate.contract import Bundle, Episode, Manifest
from stategate.contract.errors import CalibrationError, EpisodeError, RuntimeFault
from stategate.contract.stored import Array, values
from stategate.contract.write_rule import opens
from stategate.runtime.session import Session

_PER_DECADE = 24
_LINEAR = 100
_WARM_CUTS, _WARM_STEPS = 8, 250

Arrays = Mapping[str, Array]


def drift(
    reference: Path,
    candidate: Path,
    episodes: Iterable[tuple[str, Episode]],
    horizon: int,
    *,
    repeat: bool = False,
    limits: DriftLimits = DriftLimits(),  # noqa: B008  (frozen)
    report: Callable[[int], None] = lambda _: None,
) -> DriftReport:
    """Step two bundles through the same episodes and compare them.

    Both start every episode at their initial state. A candidate that fails (NaN in a state, an
    output that is not finite) ends the comparison there, and does not pass.

    Args:
        reference: The float model's bundle, for one session.
        candidate: The bundle that is judged.
        episodes: Names and held-out inputs.
        horizon: Steps of each episode, at most; the longest one's, or more.
        repeat: Whether a shorter episode goes on from its beginning until the horizon.
        limits: What the figures are held against.
        report: Called with the number of steps done in all episodes.
    """
    check_judge(Bundle.open(reference), Bundle.open(candidate))
    judged, roll = Bundle.open(candidate), _Roll(horizon, limits)
    cold: list[float] = []
    looked = 0
    names = []
    for name, episode in episodes:
        names.append(name)
        steps = horizon if repeat else min(horizon, episode.steps)
        with ExitStack() as stack:
            sides = [
                stack.enter_context(Session.open(path, health="off"))
                for path in (reference, candidate)
            ]
            check_alike(sides[0].manifest.step, sides[1].manifest.step)
            for side in sides:
                episode.check(side.manifest.step, starts=True)
                episode.begin(side, [state.name for state in side.manifest.states])
            episode.check_finite(name)
            roll.through(name, episode, steps, sides[0], sides[1], report)
        if roll.fault is not None:
            break
        look = min(_WARM_STEPS, episode.steps // 4)
        with suppress(RuntimeFault):  # a cold memory may fail where a warm one does not
            cold += steps_to_warm(judged, episode, _WARM_CUTS, look)
            looked = max(looked, look)
    if roll.total is None:
        raise EpisodeError("there is nothing to step", found="0 episodes", expected="at least one")
    judgement = roll.result(tuple(names), [_side(session) for session in sides])
    return msgspec.structs.replace(judgement, warm_up=summary(cold, looked))


def _side(session: Session) -> Side:
    manifest = session.manifest
    return Side(
        manifest.model.name,
        session.bundle_digest,
        session.engine_name,
        manifest.state_bytes,
        manifest.step_graph.precision,
    )


class _Gap:
    """Running error of one tensor; ``recent`` counts from the last point."""

    def __init__(self) -> None:
        self.unit = self.worst = self.recent = self.total = 0.0

    def add(self, reference: Array, candidate: Array) -> float:
        """Take one step in; the largest error in it."""
        if reference.dtype.kind == "f":
            # float64: the difference of two large float32 would itself be rounded.
            difference = np.subtract(candidate, reference, dtype=np.float64)
            gap = float(np.abs(difference).max(initial=0.0))
            self.unit = max(self.unit, float(np.abs(reference).max(initial=0.0)))
        else:
            gap, self.unit = float(not np.array_equal(candidate, reference)), 1.0
        self.worst, self.recent = max(self.worst, gap), max(self.recent, gap)
        self.total += gap
        return self.ratio(gap)

    def ratio(self, gap: float) -> float:
        """In units of the largest magnitude so far."""
        return gap / self.unit if self.unit else float(gap > 0)


class _Figures:
    """Running figures of one episode."""

    def __init__(self, gates: Mapping[str, int], outputs: Iterable[str], states: Iterable[str]):
        self.outputs = {name: _Gap() for name in outputs}
        self.states = {name: _Gap() for name in states}
        self.norms = {name: [0.0, 0.0] for name in self.states}
        self.flips = {name: np.zeros(size, dtype=np.int64) for name, size in gates.items()}
        self.right = [0, 0]
        self.judged = 0

    def add_states(self, reference: Arrays, candidate: Arrays) -> None:
        """Errors and norms of the states that both have."""
        for name, gap in self.states.items():
            gap.add(reference[name], candidate[name])
            norms = self.norms[name]
            for i, array in enumerate((reference[name], candidate[name])):
                norms[i] = max(norms[i], float(np.linalg.norm(array.astype(np.float64))))

    def point(self, step: int, writes: tuple[int, int]) -> Point:
        """The figures as they stand; starts a new interval."""
        growth = [new / old for old, new in self.norms.values() if old > 0]
        outputs, states = self.outputs.values(), self.states.values()
        point = Point(
            step=step,
            steps=step,
            output_error=max(g.ratio(g.worst) for g in outputs),
            recent_output_error=max(g.ratio(g.recent) for g in outputs),
            output_error_mean=max(g.ratio(g.total / step) for g in outputs),
            state_error=max((g.ratio(g.worst) for g in states), default=0.0),
            recent_state_error=max((g.ratio(g.recent) for g in states), default=0.0),
            flips=sum(int(flips.sum()) for flips in self.flips.values()),
            decisions=step * sum(flips.size for flips in self.flips.values()),
            writes=writes,
            norm_growth=max(growth, default=1.0),
            norms={name: (norms[0], norms[1]) for name, norms in self.norms.items()},
            right=(self.right[0], self.right[1]),
            judged=self.judged,
        )
        for gap in (*outputs, *states):
            gap.recent = 0.0
        return point


class _Roll:
    """The figures of all episodes."""

    def __init__(self, horizon: int, limits: DriftLimits) -> None:
        tens = [10**k for k in range(len(str(horizon)))]
        self._milestones = {t for t in tens if t <= horizon} | {horizon}
        spread = np.geomspace(1, horizon, int(_PER_DECADE * np.log10(max(horizon, 2))) + 2)
        even = np.linspace(1, horizon, _LINEAR)
        self._sampled = {int(t) for t in (*spread, *even)} | self._milestones
        self._limits = limits
        self._points: dict[int, Point] = {}
        self._tensors: dict[str, float] = {}
        self._flips: dict[str, np.ndarray] = {}
        self._halved: dict[str, int] = {}
        self._not_compared: dict[str, str] = {}
        self._first_flip: tuple[int, str] | None = None
        self._first_divergence: tuple[int, str] | None = None
        self._done = 0
        self.total: Point | None = None
        self.fault: str | None = None

    def through(
        self,
        name: str,
        episode: Episode,
        steps: int,
        reference: Session,
        candidate: Session,
        report: Callable[[int], None],
    ) -> None:
        """Step both through one episode."""
        states, gates = self._in_common(reference.manifest, candidate.manifest)
        figures = _Figures(gates, (t.name for t in reference.manifest.outputs), states)
        thresholds = [side.manifest.step.thresholds for side in (reference, candidate)]
        done = 0
        for t in range(steps):
            at = t % episode.steps
            inputs = {tensor: array[at, ...] for tensor, array in episode.inputs.items()}
            outputs = self._outputs(reference, candidate, inputs, t)
            if outputs is None:  # the candidate failed: figures end with the step before
                break
            done = t + 1
            errors = [gap.add(*(side[n] for side in outputs)) for n, gap in figures.outputs.items()]
            if self._first_divergence is None and max(errors) > self._limits.diverged_above:
                self._first_divergence = (t, name)
            self._count_halves(*outputs)
            figures.add_states(_states(reference), _states(candidate))
            for gate in gates:
                decisions = [
                    opens(side.gates[gate].ravel(), limits[gate])
                    for side, limits in zip((reference, candidate), thresholds, strict=True)
                ]
                flipped = decisions[0] != decisions[1]
                figures.flips[gate] += flipped
                if self._first_flip is None and flipped.any():
                    self._first_flip = (t, name)
            for output, labels in episode.labels.items():
                if labels[at] >= 0:
                    figures.judged += 1
                    for i, side in enumerate(outputs):
                        figures.right[i] += int(side[output].argmax() == labels[at])
            if done in self._sampled:
                point = figures.point(done, (reference.ledger.writes, candidate.ledger.writes))
                before = self._points.get(done)
                self._points[done] = point if before is None else before.merged(point)
                report(self._done + done)
        if done:
            end = figures.point(done, (reference.ledger.writes, candidate.ledger.writes))
            self.total = end if self.total is None else self.total.merged(end)
        self._done += done
        for tensor, gap in (*figures.outputs.items(), *figures.states.items()):
            self._tensors[tensor] = max(self._tensors.get(tensor, 0.0), gap.ratio(gap.worst))
        for gate, flips in figures.flips.items():
            self._flips[gate] = self._flips.get(gate, 0) + flips

    def result(self, names: tuple[str, ...], sides: list[Side]) -> DriftReport:
        """The report, judged."""
        assert self.total is not None
        points = [self._points[t] for t in sorted(self._points)]
        return DriftReport(
            reference=sides[0],
            candidate=sides[1],
            episodes=names,
            total=self.total,
            milestones=tuple(p for p in points if p.step in self._milestones),
            samples=tuple(points),
            tensors=self._tensors,
            gates={name: tuple(flips.tolist()) for name, flips in self._flips.items()},
            halved=self._halved,
            not_compared=self._not_compared,
            first_flip=self._first_flip,
            first_divergence=self._first_divergence,
            fault=self.fault,
            limits=self._limits,
        ).judged()

    def _outputs(
        self, reference: Session, candidate: Session, inputs: Arrays, t: int
    ) -> tuple[Arrays, Arrays] | None:
        """Answers of both, or None where the candidate has failed."""
        try:
            right = reference.step(**inputs)
        except RuntimeFault as fault:
            raise CalibrationError(
                f"the float model itself fails in step {t}",
                found=fault.what,
                remedy="give episodes that the model is made for",
            ) from fault
        if not all(np.isfinite(array).all() for array in right.values()):
            raise CalibrationError(f"the float model gives NaN or Inf in step {t}")
        try:
            answers = candidate.step(**inputs)
        except RuntimeFault as fault:
            self.fault = f"the candidate fails in step {t}: {fault.what}"
            return None
        for name, array in answers.items():
            if not np.isfinite(array).all():
                self.fault = f"the candidate gives NaN or Inf in output {name!r} of step {t}"
                return None
        return right, answers

    def _count_halves(self, reference: Arrays, candidate: Arrays) -> None:
        """Where an output is one number, whether the two lie on different sides of 0.5."""
        for name, array in reference.items():
            if array.size == 1 and array.dtype.kind == "f":
                differs = (array.item() > 0.5) != (candidate[name].item() > 0.5)
                self._halved[name] = self._halved.get(name, 0) + differs

    def _in_common(
        self, reference: Manifest, candidate: Manifest
    ) -> tuple[list[str], dict[str, int]]:
        """States, and hard gates with their elements, of both; for the others the reason."""
        blank = [
            values(m.states, {s.name: np.zeros(s.shape, s.dtype) for s in m.states})
            for m in (reference, candidate)
        ]
        shapes, others = ({n: list(a.shape) for n, a in arrays.items()} for arrays in blank)
        rows, other_rows = (
            {s.name: s.rows for s in m.states if s.cursor is not None}
            for m in (reference, candidate)
        )
        if rows != other_rows:  # between two folds the matrices lack what waits
            for state in (*reference.states, *candidate.states):
                if state.folds is not None or state.cursor is not None:
                    for name in {state.name, state.cursor} - {None}:
                        shapes.pop(str(name), None)
                    self._not_compared[f"state {state.name}"] = (
                        "writes are deferred in one bundle and not, or for longer, in the other"
                    )
        for name, shape in shapes.items():
            if others.get(name) != shape:
                other = others.get(name, "nothing of that name")
                self._not_compared[f"state {name}"] = f"the candidate has {other}, not {shape}"
        hard, other_hard = (
            {g.name: g.shape for g in m.step.deciding_gates if g.kind == "hard"}
            for m in (reference, candidate)
        )
        for name, gate_shape in hard.items():
            if other_hard.get(name) != gate_shape:
                self._not_compared[f"gate {name}"] = "the candidate has none like it"
        return (
            [name for name, shape in shapes.items() if others.get(name) == shape],
            {n: int(np.prod(s)) for n, s in hard.items() if other_hard.get(n) == s},
        )


def _states(session: Session) -> Arrays:
    """The states as numbers, whatever precision they are stored in."""
    states = session.manifest.states
    return values(states, {s.name: session.state(s.name) for s in states})
