"""Two bundles on one recording: the first step in which they decide differently."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.contract import Bundle, Manifest
from stategate.contract.errors import BundleError, EpisodeError
from stategate.contract.numbers import bounded
from stategate.contract.write_rule import opens
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.golden import TOLERANCE
from stategate.runtime.check.recording import Keyframe, Recording, Step
from stategate.runtime.check.replay import Stepper, open_stepper
from stategate.runtime.engines.engine import EngineChoice


@dataclass(frozen=True, slots=True)
class Difference:
    """One decision, in both bundles."""

    step: int  # number of the step
    name: str  # of the gate or output; empty of a fault
    recorded: str  # what the recorded bundle decided, in words
    other: str  # what the other one did


@dataclass(slots=True)
class BisectReport:
    """What came of stepping two bundles side by side."""

    engines: tuple[str, str]  # what stepped the recorded bundle, and the other one
    tolerance: float  # of outputs, as a share of the largest magnitude that they have reached
    first_step: int | None = None  # number of the first step that both took
    last_step: int = 0  # number of the last one
    steps: int = 0  # how many
    # the first step that NaN or Inf refused in one of them alone; None without one
    fault: Difference | None = None
    gate: Difference | None = None  # the first step in which a hard gate decided differently
    # the first step in which another element of an output was the largest
    largest: Difference | None = None
    # the first step in which an output was further off than the tolerance
    output: Difference | None = None

    @property
    def first(self) -> int | None:
        """The first step in which they differ in any of the four ways; None where in none."""
        ways = (self.fault, self.gate, self.largest, self.output)
        return min((way.step for way in ways if way is not None), default=None)

    @property
    def passed(self) -> bool:
        """Whether both decided alike in every step."""
        return self.first is None


def bisect(
    path: str | Path,
    bundle: str | Path | Bundle,
    other: str | Path | Bundle,
    *,
    engine: EngineChoice | None = None,
    tolerance: float = TOLERANCE,
) -> BisectReport:
    """Step the recorded bundle and another one through a recording, each on its own states.

        report = stategate.bisect("robot.rec", "build/float", "build/int8")
        print(report.first, report.gate)

    Where their states have the same form, both begin from the recorded ones; else at the first
    reset.

    Args:
        path: The file of the black box.
        bundle: That was recorded.
        other: The one to compare; its inputs must have the same names and shapes.
        engine: What steps both; see `stategate.replay`.
        tolerance: Largest difference of an output, as a share of its size.

    Raises:
        EpisodeError: Nothing in the file could be stepped by both.
        BundleError: It is the recording of another bundle, or the other takes other inputs.
        StategateError: As of `stategate.replay`.
    """
    tolerance = bounded("tolerance", tolerance)
    recording = Recording(path)
    opened = [Bundle.open(bundle), Bundle.open(other)]
    recording.check_bundle(opened[0])
    first, second = (each.manifest for each in opened)
    forms = [[(s.name, s.shape, s.dtype) for s in each.inputs] for each in (first, second)]
    if forms[0] != forms[1]:
        raise BundleError(
            "the two bundles do not take the same inputs",
            found=", ".join(f"{name} {list(shape)} {dtype}" for name, shape, dtype in forms[1]),
            expected=", ".join(f"{name} {list(shape)} {dtype}" for name, shape, dtype in forms[0]),
        )
    same_states = _form_of_states(first) == _form_of_states(second)
    steppers = [open_stepper(each, recording.opening, engine) for each in opened]
    with steppers[0].session, steppers[1].session:
        names = (steppers[0].session.engine_name, steppers[1].session.engine_name)
        report, pair = BisectReport(names, tolerance), _Pair(*steppers)
        follows = False
        for event in recording.events(first):
            if isinstance(event, Keyframe) and event.is_jump:
                follows = same_states or event.states is None
                if follows:
                    pair.begin(event)
            elif isinstance(event, Step) and follows:
                pair.step(event, report)
                if report.gate and report.largest and report.output:
                    break
    if report.first_step is None:
        raise EpisodeError(
            f"nothing in {recording.path.name} could be stepped by both bundles",
            found="states of another form, and no reset after which both begin alike",
            expected="a recording with session.reset() in it",
        )
    return report


def _form_of_states(manifest: Manifest) -> list[tuple[str, tuple[int, ...], str]]:
    return [(state.name, state.shape, state.dtype) for state in manifest.states]


class _Pair:
    """Two bundles that are given the same steps."""

    def __init__(self, recorded: Stepper, other: Stepper) -> None:
        self._both = (recorded, other)
        self._largest: dict[str, float] = {}

    def begin(self, keyframe: Keyframe) -> None:
        """Both go on from a keyframe."""
        for stepper in self._both:
            stepper.begin(keyframe)

    def step(self, event: Step, report: BisectReport) -> None:
        """Both take a step, and what they decide is compared."""
        for stepper in self._both:
            stepper.step(event)
        report.first_step = event.step if report.first_step is None else report.first_step
        report.last_step = event.step
        report.steps += 1
        faults = [stepper.fault for stepper in self._both]
        if any(faults):
            if report.fault is None and not all(faults):
                words = [fault or "no NaN and no Inf" for fault in faults]
                report.fault = Difference(event.step, "", *words)
            return
        report.gate = report.gate or self._gates(event)
        report.largest = report.largest or self._largest_elements(event)
        report.output = report.output or self._outputs(event, report.tolerance)

    def _gates(self, event: Step) -> Difference | None:
        sessions = [stepper.session for stepper in self._both]
        thresholds = [session.manifest.step.thresholds for session in sessions]
        for name in thresholds[0].keys() & thresholds[1].keys():
            values = [session.gates[name].reshape(-1) for session in sessions]
            limits = [each[name] + event.shift for each in thresholds]
            masks = [opens(value, limit) for value, limit in zip(values, limits, strict=True)]
            if masks[0].shape != masks[1].shape or (masks[0] == masks[1]).all():
                continue
            at = int(np.flatnonzero(masks[0] != masks[1])[0])
            words = [
                f"{'open' if mask[at] else 'closed'}: {value[at]:.9g}, threshold {limit:g}"
                for mask, value, limit in zip(masks, values, limits, strict=True)
            ]
            return Difference(event.step, _element(name, at, values[0].size), *words)
        return None

    def _pairs(self) -> list[tuple[str, Array, Array]]:
        """Outputs that both have, flat."""
        first, second = (stepper.session.outputs for stepper in self._both)
        flat = [(name, first[name].reshape(-1), second[name].reshape(-1)) for name in first]
        return [(name, a, b) for name, a, b in flat if a.shape == b.shape and a.size]

    def _largest_elements(self, event: Step) -> Difference | None:
        for name, *pair in self._pairs():
            at = [int(values.argmax()) for values in pair]
            if at[0] != at[1]:
                words = [f"element {i}: {v[i]:.9g}" for i, v in zip(at, pair, strict=True)]
                return Difference(event.step, name, *words)
        return None

    def _outputs(self, event: Step, tolerance: float) -> Difference | None:
        for name, a, b in self._pairs():
            first, second = a.astype(np.float64), b.astype(np.float64)
            unit = max(self._largest.get(name, 0.0), float(np.abs(first).max()))
            self._largest[name] = unit
            gaps = np.abs(first - second)
            at = int(gaps.argmax())
            if not gaps[at] <= tolerance * max(unit, float(np.finfo(np.float32).tiny)):
                words = [f"{values[at]:.9g}" for values in (a, b)]
                return Difference(event.step, _element(name, at, a.size), *words)
        return None


def _element(name: str, at: int, size: int) -> str:
    return name if size == 1 else f"{name}[{at}]"
