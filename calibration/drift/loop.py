"""Drift: a candidate bundle beside its float model, each in closed loop on its own state.

Everything is kept in running figures and a few hundred samples spread evenly over the logarithm of
the step, so a roll of 100,000 steps takes no more memory than one of 1,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.drift.record import DriftLimits, DriftReport, Point, Side
from stategate.contract import Bundle, Episode, GateSpec, Manifest, StateSpec
from stategate.contract.errors import CalibrationError, EpisodeError, RuntimeFault
from stategate.contract.stored import Array, values
from stategate.contract.write_rule import opens
from stategate.runtime.session import Session

_PER_DECADE = 24
_LINEAR = 100

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
        episodes: Names and held-out inputs, with labels where answers are judged.
        horizon: Steps of each episode, at most; the longest one's, or more.
        repeat: Whether a shorter episode goes on from its beginning until the horizon.
        limits: What the figures are held against.
        report: Called with the number of steps done in all episodes.

    Raises:
        CalibrationError: The first is not sealed in float32, the bundles do not take and give the
            same, or the float model fails.
        EpisodeError: There are no episodes, or one does not fit the model.
        StepInputError: An input is not finite.
    """
    check_judge(Bundle.open(reference), Bundle.open(candidate))
    roll = _Roll(horizon, limits)
    names = []
    for name, episode in episodes:
        names.append(name)
        steps = horizon if repeat else min(horizon, episode.steps)
        with ExitStack() as stack:
            sides = [stack.enter_context(Session.open(path)) for path in (reference, candidate)]
            _check_alike(sides[0].manifest, sides[1].manifest)
            episode.check(sides[0].manifest.step)
            episode.check_finite(name)
            roll.through(name, episode, steps, sides[0], sides[1], report)
        if roll.fault is not None:
            break
    if roll.total is None:
        raise EpisodeError("there is nothing to step", found="0 episodes", expected="at least one")
    return roll.result(tuple(names), [_side(session) for session in sides])


def _side(session: Session) -> Side:
    manifest = session.manifest
    return Side(
        manifest.model.name, session.bundle_digest, session.engine_name, manifest.state_bytes
    )


def _check_alike(reference: Manifest, candidate: Manifest) -> None:
    for what, ours, theirs in (
        ("inputs", candidate.inputs, reference.inputs),
        ("outputs", candidate.outputs, reference.outputs),
    ):
        found, expected = (
            sorted(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)
            for tensors in (ours, theirs)
        )
        if found != expected:
            raise CalibrationError(
                f"the two bundles have different {what} and cannot be compared",
                found=", ".join(found),
                expected=", ".join(expected),
                remedy="give the float bundle of the model that the candidate was made from",
            )


class _Gap:
    """Running error of one tensor."""

    def __init__(self) -> None:
        self.unit = self.worst = self.here = self.total = 0.0

    def add(self, ours: Array, theirs: Array) -> float:
        """Take one step in; the largest error in it."""
        if ours.dtype.kind == "f":
            gap = float(np.abs(np.subtract(ours, theirs, dtype=np.float64)).max(initial=0.0))
            self.unit = max(self.unit, float(np.abs(theirs).max(initial=0.0)))
        else:
            gap, self.unit = float(not np.array_equal(ours, theirs)), 1.0
        self.worst, self.here = max(self.worst, gap), max(self.here, gap)
        self.total += gap
        return self.ratio(gap)

    def ratio(self, gap: float) -> float:
        """In units of the largest magnitude so far."""
        return gap / self.unit if self.unit else float(gap > 0)


class _Episode:
    """Running figures of one episode."""

    def __init__(self, gates: dict[str, int]) -> None:
        self.outputs: dict[str, _Gap] = {}
        self.states: dict[str, _Gap] = {}
        self.norms: dict[str, list[float]] = {}
        self.flips = {name: np.zeros(size, dtype=np.int64) for name, size in gates.items()}
        self.right = [0, 0]
        self.judged = 0

    def add_states(self, ours: Arrays, theirs: Arrays) -> None:
        """Errors and norms of the states that both have."""
        for name, state in theirs.items():
            self.states.setdefault(name, _Gap()).add(ours[name], state)
            norms = self.norms.setdefault(name, [0.0, 0.0])
            for side, array in enumerate((state, ours[name])):
                norms[side] = max(norms[side], float(np.linalg.norm(array.astype(np.float64))))

    def point(self, step: int, writes: tuple[int, int]) -> Point:
        """The figures as they stand; starts a new interval."""
        growth = [ours / theirs for theirs, ours in self.norms.values() if theirs > 0]
        decisions = step * sum(flips.size for flips in self.flips.values())
        point = Point(
            step=step,
            steps=step,
            output_error=max(g.ratio(g.worst) for g in self.outputs.values()),
            output_error_here=max(g.ratio(g.here) for g in self.outputs.values()),
            output_error_mean=max(g.ratio(g.total / step) for g in self.outputs.values()),
            state_error=max((g.ratio(g.worst) for g in self.states.values()), default=0.0),
            state_error_here=max((g.ratio(g.here) for g in self.states.values()), default=0.0),
            flips=sum(int(flips.sum()) for flips in self.flips.values()),
            decisions=decisions,
            writes=writes,
            norm_growth=max(growth, default=1.0),
            norms={name: (norms[0], norms[1]) for name, norms in self.norms.items()},
            right=(self.right[0], self.right[1]),
            judged=self.judged,
        )
        for gap in (*self.outputs.values(), *self.states.values()):
            gap.here = 0.0
        return point


class _Roll:
    """What is kept over all episodes."""

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
        figures = _Episode({gate: array.size for gate, array in self._flips.items()})
        limits = [
            {g: np.float32(t) for g, t in side.manifest.step.thresholds.items()}
            for side in (reference, candidate)
        ]
        done = 0
        for t in range(steps):
            at = t % episode.steps
            inputs = {tensor: array[at, ...] for tensor, array in episode.inputs.items()}
            outputs = self._outputs(reference, candidate, inputs, t)
            if outputs is None:
                break
            done = t + 1
            errors = [
                figures.outputs.setdefault(n, _Gap()).add(outputs[1][n], outputs[0][n])
                for n in outputs[0]
            ]
            for n, theirs in outputs[0].items():
                if theirs.size == 1 and theirs.dtype.kind == "f":
                    apart = (theirs.item() > 0.5) != (outputs[1][n].item() > 0.5)
                    self._halved[n] = self._halved.get(n, 0) + apart
            if self._first_divergence is None and max(errors) > self._limits.diverged_above:
                self._first_divergence = (t, name)
            both = [self._values(side) for side in (reference, candidate)]
            figures.add_states(both[1], {n: both[0][n] for n in states})
            for gate in gates:
                theirs = opens(reference.gates[gate].ravel(), limits[0][gate])
                flipped = theirs != opens(candidate.gates[gate].ravel(), limits[1][gate])
                figures.flips[gate] += flipped
                if self._first_flip is None and flipped.any():
                    self._first_flip = (t, name)
            for output, labels in episode.labels.items():
                if labels[at] >= 0:
                    figures.judged += 1
                    for side in (0, 1):
                        right = int(outputs[side][output].argmax()) == labels[at]
                        figures.right[side] += int(right)
            if done in self._sampled:
                self._sample(figures.point(done, _writes(reference, candidate)))
                report(self._done + done)
        if done:
            end = figures.point(done, _writes(reference, candidate))
            self.total = end if self.total is None else self.total.merged(end)
        self._done += done
        for gap_name, gap in (*figures.outputs.items(), *figures.states.items()):
            worst = max(self._tensors.get(gap_name, 0.0), gap.ratio(gap.worst))
            self._tensors[gap_name] = worst
        for gate, flips in figures.flips.items():
            self._flips[gate] += flips

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
        self, reference: Session, candidate: Session, inputs: dict[str, Array], t: int
    ) -> tuple[Arrays, Arrays] | None:
        """Both answers, or None where the candidate has failed."""
        try:
            theirs = reference.step(**inputs)
        except RuntimeFault as fault:
            raise CalibrationError(
                f"the float model itself fails in step {t}",
                found=fault.what,
                remedy="give episodes that the model is made for",
            ) from fault
        if not all(np.isfinite(array).all() for array in theirs.values()):
            raise CalibrationError(f"the float model gives NaN or Inf in step {t}")
        try:
            ours = candidate.step(**inputs)
        except RuntimeFault as fault:
            self.fault = f"the candidate fails in step {t}: {fault.what}"
            return None
        for name, array in ours.items():
            if not np.isfinite(array).all():
                self.fault = f"the candidate gives NaN or Inf in output {name!r} of step {t}"
                return None
        return theirs, ours

    def _sample(self, point: Point) -> None:
        before = self._points.get(point.step)
        self._points[point.step] = point if before is None else before.merged(point)

    def _in_common(self, reference: Manifest, candidate: Manifest) -> tuple[list[str], list[str]]:
        """States and hard gates that both have; the others are noted with the reason."""
        ours, theirs = ({n: a.shape for n, a in _blank(m).items()} for m in (candidate, reference))
        for name, shape in theirs.items():
            if ours.get(name) != shape:
                told = list(ours[name]) if name in ours else "nothing of that name"
                self._not_compared[f"state {name}"] = f"the candidate has {told}, not {list(shape)}"
        hard = [{g.name: g for g in m.gates if g.kind == "hard"} for m in (reference, candidate)]
        gates = []
        for name, gate in hard[0].items():
            other: GateSpec | None = hard[1].get(name)
            if other is None or other.shape != gate.shape:
                self._not_compared[f"gate {name}"] = "the candidate has none like it"
            else:
                gates.append(name)
                self._flips.setdefault(name, np.zeros(int(np.prod(gate.shape)), dtype=np.int64))
        return [name for name, shape in theirs.items() if ours.get(name) == shape], gates

    @staticmethod
    def _values(session: Session) -> dict[str, Array]:
        states = session.manifest.states
        return values(states, {s.name: session.state(s.name) for s in states})


def _writes(reference: Session, candidate: Session) -> tuple[int, int]:
    return reference.ledger.writes, candidate.ledger.writes


def _blank(manifest: Manifest) -> dict[str, Array]:
    """States as they are read, of zeros: for their names and shapes."""
    states: tuple[StateSpec, ...] = manifest.states
    return values(states, {s.name: np.zeros(s.shape, s.dtype) for s in states})
